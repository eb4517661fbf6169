"""Certificates of the names that are exposed: from the authority, if there is one, else signed by themselves.

Nobody waits for an authority: until it has given a certificate the name has a self-signed one. Ordered is only for
names that a node holds a lease of and that lead here, one after another, so many in an hour; what fails waits ever
longer. All have the server's key.
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from overlay.certificates.certificate import Certificate, Contexts, self_signed
from overlay.certificates.pace import Pace
from overlay.daemon.state import StateDir

if TYPE_CHECKING:
    from overlay.certificates.acme import ChallengeKind, Orders
    from overlay.certificates.acme_renewal import AcmeRenewal

MOST_AN_HOUR: Final = 40  # orders; Let's Encrypt takes 300 in three hours
MOST_WARNINGS: Final = 3  # of names, in the server's status
_CONTEXTS_KEPT: Final = 256  # names
_HOUR: Final = 3600.0  # s

LeadsHere = Callable[[str], Awaitable[bool]]
"""Whether a name of the public DNS leads to this server."""


async def anything_leads_here(_host: str) -> bool:
    return True


class HostCertificates:
    """For the event loop's thread."""

    def __init__(
        self,
        state: StateDir,
        key: ec.EllipticCurvePrivateKey,
        *,
        wall: Callable[[], float],
        uniform: Callable[[float, float], float],
        pace: Pace,
        leads_here: LeadsHere = anything_leads_here,
        orders: "Orders | None" = None,
        kinds: "list[ChallengeKind] | None" = None,
        kept_as: str = "tls-acme",
    ) -> None:
        """`orders`: at the authority; None: there is none. `kinds`: as in `AcmeRenewal`. `kept_as`: how the names of
        the certificates' files begin."""
        self._kept_as = kept_as
        self._state = state
        self._key = key
        self._wall = wall
        self._uniform = uniform
        self._pace = pace
        self._leads_here = leads_here
        self._orders = orders
        self._kinds = kinds
        self._renewals: dict[str, AcmeRenewal] = {}
        self._contexts: OrderedDict[str, Contexts] = OrderedDict()
        self._ordered: deque[float] = deque()  # when, in the last hour

    def contexts(self, host: str) -> Contexts:
        """For users of this name, which is exposed."""
        certified = self._certified(host)
        found = self._contexts.pop(host, None)
        if found is None or not self._serves(found.certificate, certified):
            found = Contexts(certified or self_signed(self._key, [host], self._wall()))
        self._contexts[host] = found
        if len(self._contexts) > _CONTEXTS_KEPT:
            self._contexts.popitem(last=False)
        return found

    def awaits(self, host: str) -> bool:
        """Whether an authority has not been asked yet."""
        return self._orders is not None and host not in self._renewals and not host.startswith("*.")

    @property
    def warnings(self) -> tuple[str, ...]:
        found = [renewal.warning for renewal in self._renewals.values() if renewal.warning]
        more = len(found) - MOST_WARNINGS
        return (*found[:MOST_WARNINGS], *((f"So it is with {more} more exposed names.",) if more > 0 else ()))

    def warning_of(self, host: str) -> str:
        renewal = self._renewals.get(host)
        return renewal.warning if renewal is not None else ""

    def status(self, hosts: Iterable[str]) -> dict[str, str]:
        """Name → "acme" or "self-signed"."""
        return {host: "acme" if self._certified(host) is not None else "self-signed" for host in hosts}

    def try_at_once(self) -> None:
        """Forget that there were failures."""
        for renewal in self._renewals.values():
            renewal.try_at_once()

    async def renew_if_due(self, hosts: Sequence[str]) -> bool:
        """Order for one of these names, which are all that are exposed, if it is time to. → whether there may be more
        to do at once"""
        for host in self._renewals.keys() - set(hosts):
            # Its file stays: whoever exposes the name again soon does not use up the authority's patience.
            del self._renewals[host]
            self._contexts.pop(host, None)
        if self._orders is None:
            return False
        for host in hosts:
            if host.startswith("*."):
                continue  # neither challenge proves such a name (RFC 8737 §3)
            renewal = self._renewals.get(host)
            if renewal is None:
                renewal = self._renewals[host] = self._renewal(host, self._orders)
            if renewal.is_due() and self._may_order():
                if await self._leads_here(host):
                    self._ordered.append(anyio.current_time())
                    await renewal.renew_if_due()
                else:
                    sentence = f"The public DNS does not lead {host} to this server: no certificate is asked for."
                    renewal.put_off(sentence, refused=False)
                return True
        return False

    def _renewal(self, host: str, orders: "Orders") -> "AcmeRenewal":
        from overlay.certificates.acme_renewal import AcmeRenewal  # loaded, where there are orders

        return AcmeRenewal(
            self._state,
            self._key,
            [host],
            orders,
            wall=self._wall,
            uniform=self._uniform,
            pace=self._pace,
            kept_as=f"{self._kept_as}-{host}.pem",
            kinds=self._kinds,
        )

    def _certified(self, host: str) -> Certificate | None:
        renewal = self._renewals.get(host)
        found = renewal.certificate if renewal is not None else None
        return found if found is not None and found.good_at(self._wall()) else None

    def _serves(self, shown: Certificate, certified: Certificate | None) -> bool:
        if certified is not None:
            return shown is certified
        return shown.begins <= self._wall() < shown.renew_at

    def _may_order(self) -> bool:
        now = anyio.current_time()
        while self._ordered and self._ordered[0] < now - _HOUR:
            self._ordered.popleft()
        return len(self._ordered) < MOST_AN_HOUR
