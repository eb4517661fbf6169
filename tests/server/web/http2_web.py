"""A name that users reach by HTTP/2, and the target behind it by HTTP/1.1."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.server.web.sites import Site
from tests.carrier.streams import Certificate
from tests.server.web.door import Handler, Target
from tests.server.web.http2_user import NAME, Http2User, http2_user
from tests.server.web.shared_port import HOST, SharedPort, shared_port, site_to


class Web:
    def __init__(self, port: SharedPort, certificate: Certificate, site: Site) -> None:
        self.port = port
        self.site = site
        self.certificate = certificate
        self.connections = 0  # to the target, so far
        self.open = 0

    async def until(self, outcome: Callable[[], bool]) -> None:
        while not outcome():  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)


@asynccontextmanager
async def web(certificate: Certificate, handler: Handler) -> AsyncIterator[Web]:
    async def serve(stream: SocketStream) -> None:
        it.connections += 1
        it.open += 1
        async with stream:
            try:
                while True:
                    await handler(Target(stream))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            finally:
                it.open -= 1

    async with (
        shared_port(certificate) as port,
        await anyio.create_tcp_listener(local_host=HOST) as listener,
        anyio.create_task_group() as tasks,
    ):
        site = site_to(listener.extra(SocketAttribute.local_port))
        port.sites.add(NAME, "/", site)
        it = Web(port, certificate, site)
        tasks.start_soon(listener.serve, serve)
        yield it
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def meeting(certificate: Certificate, handler: Handler) -> AsyncIterator[tuple[Web, Http2User]]:
    async with web(certificate, handler) as it, http2_user(it.port, certificate) as user:
        yield it, user


async def tell(target: Target) -> None:
    """Says what it was asked."""
    head = await target.head()
    await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Kept: yes\r\n\r\n%b" % (len(head), head))
