"""This node's way to its home relay: which endpoint answers, whether it still does, and how we look from there.

A state machine over disco pings; knows no socket and no key. All endpoints are asked at once, the first that answers is
used. From then on a ping each 25 s keeps the NAT's mapping and the relay's binding of us; when traffic to the relay
brings nothing back for half a second, it is asked at once, and when it does not answer, all of its endpoints are.

Links (`engine/link.py`) are endpoints that come and go, and second to UDP: while one is in use, UDP is asked every few
seconds, and taken again when it has answered a few times in a row. A link that is not in use is not asked: to the relay
a ping there says that we mean to use it.
"""

from collections.abc import Callable
from typing import Final

from overlay.engine.link import is_link
from overlay.wire.disco import TXID_SIZE
from overlay.wire.endpoint import Endpoint

KEEPALIVE: Final = 25.0
"""s between pings while it answers: real NATs forget a UDP mapping after 30 s."""

PAUSES: Final = (0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 5.0)
"""s after the 1st, 2nd, … unanswered ping until the next. A server that restarts is found again within a second, one
that is away for long costs a ping each 5 s."""

LOST_AFTER: Final = 4
"""Unanswered pings in a row, over 1.75 s and more, after which the relay counts as gone."""

LINK_INTERVAL: Final = 5.0
"""s between pings while a link is in use, to it and to UDP: a way that was closed is often open again after the next
change of network, and a stream that died shows it in no other way."""

UDP_ANSWERS: Final = 3
"""Answers in a row after which UDP is taken again, once it had failed: a network that lets through every other datagram
is no way for traffic."""

SUSPECT_AFTER: Final = 3
"""Pings in a row, over 0.75 s, the first two of them unanswered, after which another way should be looked for."""

SILENCE: Final = 0.5
"""s that traffic through the relay may go without anything coming back before it is asked. TCP tries again 0.2, 0.6,
1.4 and 3.0 s after a cut (RFC 6298 §5, with Linux's least timeout): another way is to be there for the third try."""

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
        self.links: list[Endpoint] = []
        """Those that lead to it, the newest last."""
        self._dead_links: list[Endpoint] = []
        self._udp_failed = False  # since then it has to prove itself
        self._answers: dict[Endpoint, int] = {}  # of each UDP endpoint, in a row
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

    @property
    def suspect(self) -> bool:
        """It does not answer."""
        return self._unanswered >= SUSPECT_AFTER

    def add_link(self, endpoint: Endpoint, now: float) -> None:
        """One more way to the relay. It is asked at once if there is no other, or that one does not answer."""
        self.links.append(endpoint)
        if self.active is None or self._unanswered > 1:
            self._ask(endpoint, now)

    def remove_link(self, endpoint: Endpoint, now: float) -> None:
        """It is gone."""
        if endpoint in self.links:
            self.links.remove(endpoint)
        if self.active == endpoint:
            self.active = self.rtt = None
            self.ask(now)

    def dead_links(self) -> list[Endpoint]:
        """Drains: links that were in use and do not answer any more."""
        found, self._dead_links = self._dead_links, []
        return found

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
        link = is_link(source)
        if link and source not in self.links:
            return True
        if not link:
            self._answers[source] = self._answers.get(source, 0) + 1
        if self._takes(source):
            self._udp_failed = link and (self._udp_failed or self._unanswered > 1)
            self.active = source
            self.rtt = None
        if source == self.active:
            if not link:
                self.observed = observed
            self.rtt = sample if self.rtt is None else self.rtt + (sample - self.rtt) / 8  # RFC 6298 §2, alpha
            self._unanswered = 0
            self._silent_since = None
            self._next_ping = now + (LINK_INTERVAL if link else KEEPALIVE)
        return True

    def _takes(self, source: Endpoint) -> bool:
        """Is what answered just now to be used instead of what is?"""
        active = self.active
        if active is None:
            return True
        if source == active:
            return False
        if self._unanswered > 1:
            return True
        if is_link(active) and not is_link(source):
            return not self._udp_failed or self._answers[source] >= UDP_ANSWERS
        return self._unanswered > 0 and is_link(source) == is_link(active)

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`. Early calls are harmless."""
        if self._silent_since is not None and now >= self._silent_since + SILENCE and not self._unanswered:
            self._silent_since = None
            self.ask(now)
        if now < self._next_ping:
            return
        if self._unanswered >= LOST_AFTER and self.active is not None:
            if is_link(self.active):
                self._dead_links.append(self.active)
                self.links.remove(self.active)
            self.active = self.rtt = None
        asked, waiting = self._to_ask(), {endpoint for endpoint, _ in self._outstanding.values()}
        for endpoint in asked:
            if endpoint in waiting:
                self._answers.pop(endpoint, None)  # it owes us one
            self._ask(endpoint, now)
        for txid in [txid for txid, (_, sent) in self._outstanding.items() if now - sent >= PING_LIFE]:
            del self._outstanding[txid]
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

    def _to_ask(self) -> tuple[Endpoint, ...]:
        """UDP, all of it unless one is known to work; the link in use, or the newest if no other way works."""
        active = self.active
        if active is None or self._unanswered >= 2:
            return (*self.endpoints, *self.links[-1:])
        if is_link(active):
            return (active, *self.endpoints)
        return (active,)

    def _ask(self, endpoint: Endpoint, now: float) -> None:
        txid = self._random_bytes(TXID_SIZE)
        self._outstanding[txid] = (endpoint, now)
        self._pings.append((endpoint, txid))
        while len(self._outstanding) > _MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
