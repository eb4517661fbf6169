"""Two ends of a carrier on real loopback sockets."""

import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute

from overlay.carrier.connection import ConnectionLost, ControlConnection
from overlay.carrier.dialling import dial
from overlay.carrier.limits import DEFAULT_LIMITS, Limits
from overlay.carrier.port import HttpAnswer, Services, ShowCertificate
from overlay.carrier.tcp import serve
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.messages import Message, Ping, Pong, Welcome
from overlay.wire.wireguard.primitives import clamp, public_key

SERVER = clamp(bytes(range(32)))
SERVER_PUBLIC = public_key(SERVER)
NODE = clamp(bytes(range(32, 64)))
NODE_PUBLIC = public_key(NODE)

WELCOME = Welcome(
    number=2,
    name="a",
    addresses=("10.77.0.2",),
    networks=("10.77.0.0/16",),
    domain="local.test",
    ticket=7,
    relays=("192.0.2.1:443",),
    map_key=bytes(32),
)

Handler = Callable[[ControlConnection], Awaitable[object]]


@dataclass
class Running:
    port: int
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def dial(self, limits: Limits = DEFAULT_LIMITS) -> ControlConnection:
        return await dial([self.address], SERVER_PUBLIC, NODE, 5.0, limits)

    def raw(self) -> socket.socket:
        """A connection of somebody who speaks what he likes; blocking, with a time limit."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5.0)

    async def dropped(self, reason: str, count: int = 1) -> None:
        """Wait until the server has counted it."""
        with anyio.fail_after(5):
            while self.drops[reason] < count:  # noqa: ASYNC110 - a counter tells nobody
                await anyio.sleep(0.005)


@asynccontextmanager
async def serving(
    handler: Handler,
    limits: Limits = DEFAULT_LIMITS,
    tls: ShowCertificate | None = None,
    http_answer: HttpAnswer | None = None,
) -> AsyncIterator[Running]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener:
        running = Running(listener.extra(SocketAttribute.local_port))
        async with anyio.create_task_group() as tasks:
            services = Services(tls=tls, http_answer=http_answer)

            async def run() -> None:
                await serve(listener, SERVER, handler, limits, drops=running.drops, services=services)

            tasks.start_soon(run)
            try:
                yield running
            finally:
                tasks.cancel_scope.cancel()


async def answer_pings(connection: ControlConnection) -> None:
    """A handler: welcome, then a pong for each ping, until the connection is lost."""
    await connection.send(WELCOME)
    while True:
        message = await connection.receive()
        if isinstance(message, Ping):
            await connection.send(Pong(seq=message.seq))


async def greeted(connection: ControlConnection) -> ControlConnection:
    """The node's end after it has taken its welcome."""
    assert await connection.receive() == WELCOME
    return connection


async def lost(connection: ControlConnection) -> str:
    """Receive until the end. → its reason"""
    with anyio.fail_after(5):
        while True:
            try:
                await connection.receive()
            except ConnectionLost as error:
                return error.reason


async def answer(connection: ControlConnection, message: Message) -> Message:
    with anyio.fail_after(5):
        await connection.send(message)
        return await connection.receive()


def read_all(connected: socket.socket) -> bytes:
    """What comes until the other side closes, whichever way."""
    data = b""
    try:
        while piece := connected.recv(65536):
            data += piece
    except ConnectionResetError:
        return data
    return data


async def in_thread(function: Callable[[socket.socket], bytes], connected: socket.socket) -> bytes:
    with anyio.fail_after(5):
        return await anyio.to_thread.run_sync(function, connected)


def initiation() -> tuple[NoiseChannel, bytes]:
    channel = NoiseChannel.initiator(NODE, SERVER_PUBLIC, random_bytes=os.urandom)
    return channel, channel.data_to_send()


def reset(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()
