"""The server's shared port over real loopback sockets, with exposures by name behind it."""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import trustme
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream

from overlay.carrier.port import Services
from overlay.carrier.tcp import serve
from overlay.server.callers import Callers
from overlay.server.tunnels import SingleTunnel
from overlay.server.web.door import WebDoor, make_room
from overlay.server.web.guests import WebGuests
from overlay.server.web.sites import Site, Sites
from overlay.server.web.tls_door import TlsDoor
from overlay.wire.control.messages import Message
from tests.carrier.ends import SERVER, answer_pings
from tests.carrier.streams import Certificate

HOST = "127.0.0.1"
PATIENCE = 20.0  # s; a test that waits longer has failed


class SharedPort:
    def __init__(self, port: int, sites: Sites, drops: Counter[str]) -> None:
        self.port = port
        self.sites = sites
        self.drops = drops

    async def dropped(self, reason: str, count: int = 1) -> None:
        while self.drops[reason] < count:  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)


async def _nobody(_node: int, _message: Message) -> bool:
    return False


@asynccontextmanager
async def shared_port(certificate: Certificate) -> AsyncIterator[SharedPort]:
    drops: Counter[str] = Counter()
    sites, room = Sites(), make_room()
    callers = Callers(_nobody, bytes, bytes, drops)
    guests = WebGuests(sites, WebDoor(drops, lambda: 5.0, room), TlsDoor(drops, room), callers)
    services = Services(tls=certificate.context, guests=guests)
    with anyio.fail_after(PATIENCE):
        async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(listener, SERVER, answer_pings, drops=drops, services=services)

            tasks.start_soon(run)
            yield SharedPort(listener.extra(SocketAttribute.local_port), sites, drops)
            tasks.cancel_scope.cancel()


def site_to(port: int) -> Site:
    return Site("x1", SingleTunnel(lambda: (HOST, port), Counter()))


class TlsTarget:
    """A service that speaks TLS for itself, with a certificate of its own."""

    def __init__(self, *names: str) -> None:
        self._ca = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(self._context)
        self.port = 0

    def client(self, *protocols: str) -> ssl.SSLContext:
        """Of somebody who trusts this service's certificate alone."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    @asynccontextmanager
    async def serving(
        self, handler: Callable[[TLSStream], Awaitable[None]], *protocols: str
    ) -> AsyncIterator["TlsTarget"]:
        if protocols:
            self._context.set_alpn_protocols(list(protocols))
        async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
            self.port = listener.extra(SocketAttribute.local_port)
            tls = TLSListener(listener, self._context, standard_compatible=True)
            tasks.start_soon(tls.serve, handler)
            yield self
            tasks.cancel_scope.cancel()
