"""A node that exposes on loopback: 127.77.0.2 is this node, 127.77.0.1 the server, which is a stand-in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.control import Answer
from overlay.node.exposures import Exposures
from overlay.node.status import ExposeWish, ExposureStatus
from overlay.wire.control.messages import (
    Done,
    Expose,
    Exposed,
    Exposure,
    Message,
    Unexpose,
    Watch,
)
from overlay.wire.control.terms import Terms

SERVER, NODE, STRANGER, PEER = "127.77.0.1", "127.77.0.2", "127.77.0.3", "127.77.0.4"


class Server:
    """Answers requests as the real one does, or fails them."""

    def __init__(self) -> None:
        self.exposures: dict[str, Exposure] = {}
        self.requests: list[Message] = []
        self.failure: UserError | None = None
        self.failures: set[str] = set()  # targets of what it refuses
        self.is_old = False  # it does not know terms
        self.has_tun = True

    async def request(self, make: Callable[[int], Message]) -> Answer:
        message = make(len(self.requests) + 1)
        self.requests.append(message)
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        match message:
            case Expose():
                if message.target in self.failures:
                    raise UserError("no", "No.")
                if message.tunnel == "single" and not self.has_tun:
                    raise UserError("no-tunnel", "No.")
                if message.id and message.id not in self.exposures:
                    raise UserError("exposure-unknown", "Gone.")
                name = message.id or f"x{len(self.requests)}"
                tls = message.protocol == "tls"
                self.exposures[name] = Exposure(
                    id=name,
                    protocol=message.protocol,
                    public=f"{message.host}:443"
                    if tls
                    else message.host or f"192.0.2.1:{message.public.rpartition(':')[2] or 20000}",
                    url=f"https://{message.host}/" if message.host and not tls else "",
                    target=message.target,
                    port=message.port,
                    tunnel=message.tunnel,
                    known_as=message.known_as,
                    service=message.service,
                    direct=message.direct,
                    terms=Terms() if self.is_old else message.terms,
                )
                return Exposed(seq=message.seq, exposure=self.exposures[name])
            case Unexpose():
                self.exposures.pop(message.id, None)
                return Done(seq=message.seq)
            case Watch():
                return Done(seq=message.seq)
            case _:
                raise AssertionError(message)

    def list(self) -> tuple[Exposure, ...]:
        return tuple(self.exposures.values())


class Setup:
    def __init__(self, folder: Path) -> None:
        self.server = Server()
        self.said: list[Message] = []
        self.state = StateDir(folder).open()
        self.now = 5.0
        self.names: dict[str, tuple[str, ...]] = {}
        self.exposures = self.make()

    async def add(
        self, target: str, public: str, known_as: tuple[str, ...] = (), service: str = "", **wish: Any
    ) -> ExposureStatus:
        return await self.exposures.add(
            ExposeWish(target=target, public=public, known_as=known_as, service=service, **wish)
        )

    def make(self) -> Exposures:
        return Exposures(
            self.state,
            self.server.request,
            lambda address: address == SERVER,
            lambda address: address == PEER,
            self._say,
            look_up=self.names.get,
            wall=lambda: self.now,
        )

    async def _say(self, message: Message) -> None:
        self.said.append(message)


@asynccontextmanager
async def serving(exposures: Exposures, address: str = NODE) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(exposures.run, address)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def tcp_service(handle: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def echo(stream: SocketStream) -> None:
    async with stream:
        await stream.send((await stream.receive()).upper())


async def shout(stream: SocketStream) -> None:
    """Reads to the end, answers in capitals: both directions and both half-closes are needed."""
    async with stream:
        data = b""
        async for chunk in stream:
            data += chunk
        await stream.send(data.upper())


async def ask(port: int, source: str, data: bytes) -> bytes:
    with anyio.fail_after(5):
        async with await anyio.connect_tcp(NODE, port, local_host=source) as stream:
            await stream.send(data)
            await stream.send_eof()
            answer = b""
            async for chunk in stream:
                answer += chunk
            return answer
