"""Connections that wait for users at the node, without a task each."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from overlay.carrier.carriers import CarrierStream
from overlay.carrier.port import TOKEN, TOKEN_SIZE, Stream
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import OverTcp
from overlay.errors import RemoteProtocolError
from overlay.node.calls import START_SIZE, Calls
from overlay.wire.control.messages import Supply, TunnelCarrier

pytestmark = pytest.mark.anyio

START = (7).to_bytes(START_SIZE, "big")


class Node:
    """`at_once`: whether users are served without a task."""

    def __init__(self, *, at_once: bool) -> None:
        self.drops: Counter[str] = Counter()
        self.calls = Calls(self._dial, self._serve, self.drops, self._serve_now)
        self.servers: list[TcpStream] = []  # the server's ends
        self.waiting: list[tuple[Stream, Callable[[], object]]] = []
        self.served = anyio.Event()
        self.trouble: Exception | None = None  # what comes of serving a user
        self._at_once = at_once

    async def call(self) -> TcpStream:
        """→ the server's end of a connection that has been made and waits."""
        before = len(self.servers)
        self.calls.supply(Supply(carrier="tcp", tokens=(bytes(TOKEN_SIZE),), pin=b""))
        with anyio.fail_after(5):
            while len(self.servers) == before:
                await anyio.lowlevel.checkpoint()
            assert await self.servers[-1].receive() == TOKEN + bytes(TOKEN_SIZE)
        return self.servers[-1]

    async def _dial(self, carrier: TunnelCarrier, pin: bytes) -> CarrierStream:
        ours, theirs = socket.socketpair()
        self.servers.append(TcpStream(theirs))
        return TcpStream(ours)

    async def _serve(self, name: str, stream: Stream) -> None:
        assert name == "x7" and not self._at_once
        self.served.set()
        if self.trouble is not None:
            raise self.trouble
        assert await stream.receive() == b"hello"
        await stream.send(b"good day")
        stream.close()

    def _serve_now(self, name: str, stream: OverTcp, ended: Callable[[], object]) -> bool:
        assert name == "x7"
        if self._at_once:
            self.waiting.append((stream, ended))
            self.served.set()
        return self._at_once


@asynccontextmanager
async def node(*, at_once: bool = False) -> AsyncIterator[Node]:
    it = Node(at_once=at_once)
    async with anyio.create_task_group() as tasks:
        await tasks.start(it.calls.run)
        yield it
        tasks.cancel_scope.cancel()
    for each in it.servers:
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(5):
            await each.receive()  # nothing of it is left
        each.close()
    assert not it.drops and it.calls._count == 0


async def test_the_trouble_of_one_user_is_nobody_elses() -> None:
    async with node() as it:
        for it.trouble in (OSError("not connected"), RemoteProtocolError("bad_tag"), anyio.BrokenResourceError()):
            server = await it.call()
            await server.send(START)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(5):
                await server.receive()
        assert it.drops.pop("call_failed") == 2
        it.trouble = None
        server = await it.call()
        await server.send(START + b"hello")
        with anyio.fail_after(5):
            assert await server.receive() == b"good day"


@pytest.mark.parametrize("cut", range(1, START_SIZE + 1))
async def test_a_user_is_served_however_the_start_comes(cut: int) -> None:
    async with node() as it:
        server = await it.call()
        await server.send(START[:cut])
        await anyio.wait_all_tasks_blocked()
        assert cut == START_SIZE or not it.served.is_set()
        await server.send(START[cut:] + b"hello")
        with anyio.fail_after(5):
            assert await server.receive() == b"good day"


async def test_a_user_is_served_at_once_where_nothing_has_to_be_waited_for() -> None:
    async with node(at_once=True) as it:
        server = await it.call()
        await server.send(START + b"hello")
        with anyio.fail_after(5):
            await it.served.wait()
        ((stream, ended),) = it.waiting
        assert await stream.receive() == b"hello"
        assert it.calls._count == 1
        stream.close()
        ended()


async def test_what_the_server_does_not_need_is_no_failure() -> None:
    async with node() as it:
        for _ in range(2):
            server = await it.call()
            await server.send_eof()
        await it.call()  # still waits at the end
