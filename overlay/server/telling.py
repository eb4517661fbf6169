"""A tunnel that tells the target who comes: a PROXY header goes before a user's own bytes, and before each
of his datagrams.

It is the server that knows, so it is the server that says so, in every kind of tunnel alike. Nodes pass it on, but for
transparent exposures, where it is meant for them. What a user says of himself in such a header are bytes of his like
all others: they come behind ours.
"""

from collections import Counter
from collections.abc import Callable

from overlay.carrier.outlets import HeadedOutlet, Outlet
from overlay.carrier.port import Stream, UserStream
from overlay.server.tunnels import Tunnel, Visitor, send_first
from overlay.wire.control.terms import Told
from overlay.wire.ingress.proxy_protocol import ProxyHeader, Transport, encode


class TellingTunnel:
    """`overlay.server.tunnels.Tunnel`; `told`: what targets are told now."""

    def __init__(self, inner: Tunnel, told: Callable[[], Told], drops: Counter[str]) -> None:
        self._inner = inner
        self._told = told
        self._drops = drops
        self.online = inner.online

    async def open(self, visitor: Visitor) -> Stream:
        stream = await self._inner.open(visitor)
        if header := self._header(visitor, "tcp"):
            await send_first(stream, header)
        return stream

    def open_now(self, visitor: Visitor) -> UserStream | None:
        told = self._told()
        return None if told.transparent or told.proxy_protocol else self._inner.open_now(visitor)

    def outlet(self, visitor: Visitor) -> Outlet | None:
        inner, header = self._inner.outlet(visitor), self._header(visitor, "udp")
        return inner if inner is None or not header else HeadedOutlet(inner, header, self._drops)

    def _header(self, visitor: Visitor, transport: Transport) -> bytes:
        header = ProxyHeader(
            visitor.source, visitor.local, transport, visitor.alpn, authority=visitor.authority, tls=visitor.tls
        )
        told = self._told()
        return encode(header, "v2" if told.transparent else told.proxy_protocol)
