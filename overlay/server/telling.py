"""A tunnel that tells the target who comes: a PROXY header goes before a user's own bytes.

It is the server that knows, so it is the server that says so, in every kind of tunnel alike; nodes pass it on. What a
user says of himself in such a header are bytes of his like all others: they come behind ours.
"""

from collections.abc import Callable

import anyio

from overlay.carrier.port import Stream
from overlay.server.tunnels import Tunnel, TunnelError, Visitor
from overlay.wire.control.terms import Told
from overlay.wire.ingress.proxy_protocol import ProxyHeader, encode


class TellingTunnel:
    """`overlay.server.tunnels.Tunnel`; `told`: what targets are told now."""

    def __init__(self, inner: Tunnel, told: Callable[[], Told]) -> None:
        self._inner = inner
        self._told = told
        self.online = inner.online
        self.endpoint = inner.endpoint

    async def open(self, visitor: Visitor) -> Stream:
        stream = await self._inner.open(visitor)
        header = encode(
            ProxyHeader(visitor.source, visitor.local, "tcp", visitor.alpn, visitor.authority),
            self._told().proxy_protocol,
        )
        try:
            if header:
                await stream.send(header)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            stream.close()
            raise TunnelError(502, "tunnel_broken") from error
        except BaseException:
            stream.close()
            raise
        return stream
