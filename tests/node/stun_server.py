"""The server's STUN service on loopback, with a socket where the engine's main port would be; and a node's engine, as
far as STUN sees it."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from overlay.server.stun import StunService, open_second_port
from overlay.wire.endpoint import Endpoint

HOST = "127.0.0.1"


class UdpPort:
    """A bound UDP socket on loopback that gives what comes to `received`."""

    def __init__(self, received: Callable[[bytes, Endpoint], None] = lambda datagram, source: None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((HOST, 0))
        self.endpoint: Endpoint = self.socket.getsockname()
        self.received = received
        self.count = 0

    def send(self, datagram: bytes, to: Endpoint) -> None:
        self.socket.sendto(datagram, to)

    async def run(self) -> None:
        try:
            while True:
                await anyio.wait_readable(self.socket)
                datagram, source = self.socket.recvfrom(2048)
                self.count += 1
                self.received(datagram, source)
        finally:
            self.socket.close()


class StunServer:
    def __init__(self) -> None:
        self.main = UdpPort()
        sockets = open_second_port([(HOST, 0)], _free_port())
        self.service = StunService(self.main.send, sockets, self.main.endpoint[1], (HOST,), Counter())
        self.main.received = self.service.received
        assert self.service.places.second_port is not None
        self.second: Endpoint = (HOST, self.service.places.second_port)


@asynccontextmanager
async def stun_server() -> AsyncIterator[StunServer]:
    server = StunServer()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.main.run)
            tasks.start_soon(server.service.run)
            yield server
            tasks.cancel_scope.cancel()
    finally:
        server.service.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
