"""One exposure's gate: its terms, made ready to be asked for each user, at whatever door one comes.

Ports and the web's doors ask the same gate. Terms that are replaced hold for who comes from then on; whom
they shut out, whoever holds the door cuts off.
"""

import anyio

from overlay.server.access.bandwidth import Bandwidth
from overlay.server.access.credentials import Asker, Credentials, Desk, Reply, without_link_cookies
from overlay.server.access.meter import Meter
from overlay.server.access.rates import Rates
from overlay.wire.control.terms import NO_TERMS, Terms, parse_frequency
from overlay.wire.ingress.http1 import RequestHead
from overlay.wire.ingress.rewrite import NO_REWRITE
from overlay.wire.networks import NetworkLists

__all__ = ["Asker", "Gate", "Reply"]


class Gate:
    """`terms` may be set anew at any time."""

    def __init__(self, terms: Terms = NO_TERMS, name: str = "x0", path: str = "/", desk: Desk | None = None) -> None:
        """`name`: the exposure's id; `path`: below which it is."""
        self.meter = Meter()
        self.used_up = False
        """Nobody comes in until this is set back."""
        self.opens_in = 0.0
        """s until then, when last looked at."""
        self._name = name
        self._path = path
        self._desk = desk
        self._shared: tuple[Bandwidth, Bandwidth] | None = None
        self._set(terms)

    @property
    def terms(self) -> Terms:
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        """As `check_terms` has let them through."""
        if terms != self._terms:  # a renewal: who has shown a password need not do so again
            self._set(terms)

    def share(self, bandwidths: tuple[Bandwidth, Bandwidth] | None) -> None:
        """Up and down: what all exposures of the node have together."""
        self._shared = bandwidths
        self.meter.limit(self._terms.limits.bandwidth, bandwidths)

    def _set(self, terms: Terms) -> None:
        self._terms = terms
        limits = terms.limits
        self._networks = NetworkLists(terms.access.allow, terms.access.deny)
        self._connections = Rates(*parse_frequency(limits.connection_rate)) if limits.connection_rate else None
        self._requests = Rates(*parse_frequency(limits.request_rate)) if limits.request_rate else None
        self.meter.limit(limits.bandwidth, self._shared)
        self.rewrite = NO_REWRITE if terms.headers == NO_TERMS.headers else terms.headers.rewrite()
        self._credentials: Credentials | None = None
        if terms.access.is_secret:
            self._desk = self._desk or Desk()
            self._credentials = Credentials(terms.access, self._name, self._path, self._desk)

    def shuts_out(self, host: str) -> str:
        """Why nobody from this address may come at all; "": one may."""
        if self.used_up:
            return "quota_used_up"
        return "" if self._networks.empty or self._networks.admits(host) else "source_refused"

    def holds_off(self, host: str) -> str:
        """Why not one more connection, or flow, from there may begin now; "": it may, and is counted."""
        if self._connections is None or not self._connections.take(host, anyio.current_time()):
            return ""
        return "connection_rate"

    def refuses(self, host: str) -> str:
        """Why a connection from there that has just come is not taken; "": it is."""
        return self.shuts_out(host) or self.holds_off(host)

    async def admit(self, request: RequestHead, asker: Asker) -> RequestHead | Reply:
        """→ the request as the target may have it, or what it is answered instead."""
        if self.used_up:
            return Reply(503, "quota_used_up", _retry(self.opens_in))
        if not self._networks.empty and not self._networks.admits(asker.source):
            return Reply(403, "source_refused")
        if self._connections is not None or self._requests is not None:
            now = anyio.current_time()
            if self._connections is not None and self._name not in asker.begun:
                if wait := self._connections.take(asker.source, now):
                    return Reply(429, "connection_rate", _retry(wait))
                asker.begun.add(self._name)
            if self._requests is not None and (wait := self._requests.take(asker.source, now)):
                return Reply(429, "request_rate", _retry(wait))
        if self._credentials is not None:
            return await self._credentials.admit(request, asker, anyio.current_time())
        return without_link_cookies(request)


def _retry(wait: float) -> tuple[str]:
    return (f"Retry-After: {int(wait) + 1}",)
