"""This node's way to its home relay: which endpoint answers, whether it still does, and how we look from there.

A state machine over disco pings; knows no socket and no key. All endpoints are asked at once, the first that answers is
used. From then on a ping each 25 s keeps the NAT's mapping and the relay's binding of us; when traffic to the relay
brings nothing back for a second, it is asked at once, and when it does not answer, all of its endpoints are.
"""

from collections.abc import Callable
from typing import Final

from overlay.wire.disco import TXID_SIZE
from overlay.wire.endpoint import Endpoint

KEEPALIVE: Final = 25.0
"""s between pings while it answers: real NATs forget a UDP mapping after 30 s."""

PAUSES: Final = (0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 5.0)
"""s after the 1st, 2nd, … unanswered ping until the next. A server that restarts is found again within a second, one
that is away for long costs a ping each 5 s."""

LOST_AFTER: Final = 4
"""Unanswered pings in a row, over 1.75 s and more, after which the relay counts as gone."""

SILENCE: Final = 1.0
"""s that traffic through the relay may go without anything coming back before it is asked."""

PING_LIFE: Final = 5.0
"""s in which an answer counts."""

_MAX_OUTSTANDING: Final = 64


class HomeRelay:
    """Times in s. After each call drain `pings_to_send`, and look at `active` and `observed`."""

    def __init__(self, endpoints: tuple[Endpoint, ...], random_bytes: Callable[[int], bytes], now: float) -> None:
        self.active: Endpoint | None = None
        """The endpoint that answers; None: none does."""
        self.observed: Endpoint | None = None
        """Our own endpoint as the relay last saw it."""
        self.rtt: float | None = None
        """Smoothed; None while there is no active endpoint."""
        self.armed: float | None = None  # for `Timers`
        self.endpoints = endpoints
        self._random_bytes = random_bytes
        self._outstanding: dict[bytes, tuple[Endpoint, float]] = {}  # txid → (to, sent), oldest first
        self._pings: list[tuple[Endpoint, bytes]] = []
        self._unanswered = 0  # rounds of pings in a row
        self._next_ping = now
        self._silent_since: float | None = None

    def sent(self, now: float) -> None:
        """Traffic of a session went through the relay."""
        if self._silent_since is None:
            self._silent_since = now

    def heard(self) -> None:
        """Something came through the relay."""
        self._silent_since = None

    def ask(self, now: float) -> None:
        """Our addresses changed, or the relay started anew: let it know at once where we are, and find out whether it
        is still reached."""
        self._unanswered = 0
        self._next_ping = now

    def pong(self, source: Endpoint, txid: bytes, observed: Endpoint, now: float) -> bool:
        """An authentic pong of the relay. False, and nothing changed, if no ping of ours asked for it."""
        asked = self._outstanding.pop(txid, None)
        if asked is None or now - asked[1] > PING_LIFE or source != asked[0]:
            return False
        sample = now - asked[1]
        if self.active is None or (self._unanswered and source != self.active):
            self.active = source
            self.rtt = None
        if source == self.active:
            self.observed = observed
            self.rtt = sample if self.rtt is None else self.rtt + (sample - self.rtt) / 8  # RFC 6298 §2, alpha
            self._unanswered = 0
            self._silent_since = None
            self._next_ping = now + KEEPALIVE
        return True

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`. Early calls are harmless."""
        if self._silent_since is not None and now >= self._silent_since + SILENCE and not self._unanswered:
            self._silent_since = None
            self.ask(now)
        if now < self._next_ping:
            return
        if self._unanswered >= LOST_AFTER:
            self.active = self.rtt = None
        alone = self.active is not None and self._unanswered < 2
        for endpoint in [self.active] if alone and self.active is not None else self.endpoints:
            txid = self._random_bytes(TXID_SIZE)
            self._outstanding[txid] = (endpoint, now)
            self._pings.append((endpoint, txid))
        while len(self._outstanding) > _MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        self._next_ping = now + PAUSES[min(self._unanswered, len(PAUSES) - 1)]
        self._unanswered += 1

    def next_timeout(self) -> float:
        if self._silent_since is None or self._unanswered:
            return self._next_ping
        return min(self._next_ping, self._silent_since + SILENCE)

    def pings_to_send(self) -> list[tuple[Endpoint, bytes]]:
        """Drains: endpoints to ping, each with its transaction id."""
        pings, self._pings = self._pings, []
        return pings
