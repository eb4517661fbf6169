"""Users over real loopback sockets, served by the web's door, and targets that say what a test wants."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.port import Guest
from overlay.carrier.stream import TcpStream
from overlay.server.tunnels import SingleTunnel, Visitor
from overlay.server.web.door import WebDoor
from overlay.server.web.sites import Site, Sites
from overlay.wire.endpoint import Endpoint

HOST = "127.0.0.1"
PATIENCE = 10.0  # s; a test that waits longer has failed

Handler = Callable[["Target"], Awaitable[None]]


class Target:
    """The target's end of one connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.data = b""

    async def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        while mark not in self.data:
            self.data += await self.stream.receive()
        found, _, self.data = self.data.partition(mark)
        return found + mark

    async def head(self) -> bytes:
        return await self.until(b"\r\n\r\n")

    async def exactly(self, size: int) -> bytes:
        while len(self.data) < size:
            self.data += await self.stream.receive()
        found, self.data = self.data[:size], self.data[size:]
        return found

    async def say(self, data: bytes) -> None:
        await self.stream.send(data)


class User(Target):
    """A user's end."""

    async def rest(self) -> bytes:
        """What comes until the end of the stream, whichever way."""
        try:
            while True:
                self.data += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return self.data

    async def ask(self, data: bytes) -> bytes:
        """Send, and read to the end."""
        await self.say(data)
        return await self.rest()


@dataclass
class Served:
    port: int
    site: Site
    target: Endpoint
    drops: Counter[str] = field(default_factory=Counter)
    connections: int = 0  # to the target, so far
    users: list[User] = field(default_factory=list)

    async def user(self) -> User:
        user = User(await anyio.connect_tcp(HOST, self.port))
        self.users.append(user)
        return user

    async def logged(self, count: int) -> None:
        """Wait for so many requests in the log."""
        while self.site.count < count:  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Served]:
    """The site "site.test" below "/", whose target is `handler`."""
    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
    public = socket.create_server((HOST, 0))
    public.setblocking(False)
    endpoint: Endpoint = (HOST, listener.extra(SocketAttribute.local_port))
    site = Site("x1", SingleTunnel(lambda: served.target, Counter()))
    served = Served(public.getsockname()[1], site, endpoint)
    sites = Sites()
    sites.add("site.test", "/", site)
    door = WebDoor(served.drops, wall=lambda: 5.0)

    async def answer(stream: SocketStream) -> None:
        served.connections += 1
        async with stream:
            try:
                await handler(Target(stream))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def serve_user(stream: TcpStream, visitor: Visitor) -> None:
        try:
            await door.serve(Guest(stream, b"", secure=False), visitor, lambda head: sites.find(head.host, head.path))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            served.drops["broken"] += 1
        finally:
            stream.close()

    async def accept() -> None:
        while True:
            await anyio.wait_readable(public)
            accepted, address = public.accept()
            tasks.start_soon(serve_user, TcpStream(accepted), Visitor.of(accepted, address))

    with anyio.fail_after(PATIENCE):
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            tasks.start_soon(accept)
            try:
                yield served
            finally:
                for user in served.users:
                    await user.stream.aclose()
                tasks.cancel_scope.cancel()
                public.close()


def on_door(handler: Handler, test: Callable[[Served], Awaitable[None]]) -> None:
    async def main() -> None:
        async with serving(handler) as served:
            await test(served)

    anyio.run(main)
