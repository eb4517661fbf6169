"""One exposure's gate: its terms, made ready to be asked for each user, at whatever door one comes.

Ports and the web's doors ask the same gate. Terms that are replaced hold for who comes from then on.
"""

import anyio

from overlay.server.access.credentials import Asker, Credentials, Desk, Reply
from overlay.wire.control.terms import NO_TERMS, Terms
from overlay.wire.ingress.http1 import RequestHead
from overlay.wire.networks import NetworkLists

__all__ = ["Asker", "Gate", "Reply"]


class Gate:
    """`terms` may be set anew at any time."""

    def __init__(self, terms: Terms = NO_TERMS, name: str = "x0", path: str = "/", desk: Desk | None = None) -> None:
        """`name`: the exposure's id; `path`: below which it is."""
        self._name = name
        self._path = path
        self._desk = desk
        self._set(terms)

    @property
    def terms(self) -> Terms:
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        """As `check_terms` has let them through."""
        if terms != self._terms:  # a renewal: who has shown a password need not do so again
            self._set(terms)

    def _set(self, terms: Terms) -> None:
        self._terms = terms
        self._networks = NetworkLists(terms.access.allow, terms.access.deny)
        self._credentials: Credentials | None = None
        if terms.access.is_secret:
            self._desk = self._desk or Desk()
            self._credentials = Credentials(terms.access, self._name, self._path, self._desk)

    def admits(self, host: str) -> bool:
        """Whether anybody from this address may come at all."""
        return self._networks.empty or self._networks.admits(host)

    async def admit(self, request: RequestHead, asker: Asker) -> RequestHead | Reply:
        """→ the request as the target may have it, or what it is answered instead."""
        if not self.admits(asker.source):
            return Reply(403, "source_refused")
        if self._credentials is not None:
            return await self._credentials.admit(request, asker, anyio.current_time())
        return request
