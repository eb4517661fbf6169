"""One exposure's gate: its terms, made ready to be asked for each user, at whatever door one comes.

Ports and the web's doors ask the same gate. Terms that are replaced hold for who comes from then on.
"""

from dataclasses import dataclass

from overlay.wire.control.terms import NO_TERMS, Terms
from overlay.wire.ingress.http1 import RequestHead
from overlay.wire.networks import NetworkLists


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sends a request: from where, and whether nobody could read along."""

    source: str  # address
    secure: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a request is answered that is not let in. `reason` names the drop counter."""

    status: int
    reason: str
    fields: tuple[str, ...] = ()  # of the answer


class Gate:
    """`terms` may be set anew at any time."""

    def __init__(self, terms: Terms = NO_TERMS) -> None:
        self.terms = terms

    @property
    def terms(self) -> Terms:
        return self._terms

    @terms.setter
    def terms(self, terms: Terms) -> None:
        """As `check_terms` has let them through."""
        self._terms = terms
        self._networks = NetworkLists(terms.access.allow, terms.access.deny)

    def admits(self, host: str) -> bool:
        """Whether anybody from this address may come at all."""
        return self._networks.empty or self._networks.admits(host)

    async def admit(self, request: RequestHead, asker: Asker) -> RequestHead | Refusal:
        """→ the request as the target may have it, or why it is not let in."""
        if not self.admits(asker.source):
            return Refusal(403, "source_refused")
        return request
