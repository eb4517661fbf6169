"""Which carrier, and when: the race to the server, the search for a better way, and what worked on which network.

No sockets and no clock here: `now` is an argument, in seconds of any monotonic clock, `wall` in Unix time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from overlay.carrier.carriers import CARRIERS, CarrierName
from overlay.wire.control.address import ServerAddress
from overlay.wire.endpoint import Endpoint

HEAD_START: Final = 0.25
"""s before the next attempt begins as well (RFC 8305 §8)."""
MAX_ENDPOINTS: Final = 16
"""Endpoints in all, however many a name resolves to."""
MAX_ATTEMPTS: Final = 40
"""Connections begun in one race: what ten seconds of head starts hold."""

FIRST_PAUSE: Final = 5.0
"""s from a connection to the first look for a better one: the start of a node is busy enough."""
UDP_PAUSE: Final = 20.0
"""s between looks for udp at the most: one small datagram each. With its jitter and its timeout, a network that lets
UDP through again is noticed within 30 s."""
STREAM_PAUSE: Final = 600.0
"""s between looks for another carrier at the most: each is a connection with all its handshakes for the server, and
firewalls seldom change their minds about TCP."""
LINK_PAUSE: Final = 1.0
"""s after the machine's links changed: DHCP and router advertisements come in bursts."""
JITTER: Final = 0.2
"""Part of a pause by which it is drawn longer or shorter, so that nodes that began together do not stay so."""
SETTLED: Final = 60.0
"""s that a carrier must have lasted to count as good. Lost before that, the others come first, and it is looked for at
once: a cut or a server that started anew may be over. Lost so twice in a row, it is looked for as seldom as a stream: a
network that lets through handshakes and then no data must not throw a node to and fro."""

MEMORY_LIFE: Final = 7 * 24 * 3600.0
"""s that a network's carrier is remembered: longer than a weekend."""
MEMORY_SIZE: Final = 64
"""Networks remembered; the longest unused goes first."""


def parse_carriers(text: str) -> tuple[CarrierName, ...]:
    """`auto`, one carrier, or several in order, with commas. Raises `ValueError` with a sentence for a person."""
    found: list[CarrierName] = []
    for word in text.lower().replace(" ", "").split(","):
        if word == "auto":
            found.extend(CARRIERS)
        elif word in CARRIERS:
            found.append(next(name for name in CARRIERS if name == word))
        else:
            raise ValueError(f"'{word[:40]}' is not a carrier; there are auto, {', '.join(CARRIERS)}")
    return tuple(dict.fromkeys(found))


# the race ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection that may be tried."""

    carrier: CarrierName
    endpoint: Endpoint
    address: ServerAddress  # as it was written: for SNI, the Host header, the path


class Race:
    """Attempts in order of hope, each with a head start before the next; one that fails lets the next begin at once.

    Addresses may be added while it runs: a name that is slow to be found holds up no numeric address. The order is
    diagonal: the first carrier's second address and the second carrier's first come before what is second in both, so
    that neither a dead address nor a blocked carrier costs more than a head start.
    """

    def __init__(self, carriers: Sequence[CarrierName], favourite: "Favourite | None" = None) -> None:
        """`favourite`: what worked last on this network begins."""
        self._carriers = tuple(carriers)
        self._favourite = favourite
        self._waiting: list[tuple[tuple[bool, int, int], Attempt]] = []
        self._known: set[tuple[CarrierName, Endpoint, str]] = set()
        self._endpoints: set[Endpoint] = set()
        self._running: set[Attempt] = set()
        self._begun = 0
        self._next_start = 0.0

    def add(
        self, address: ServerAddress, rank: int, endpoints: Iterable[Endpoint], *, without: Sequence[CarrierName] = ()
    ) -> None:
        """An address, `rank` in the invite's order, and what it stands for, best first; not for carriers `without`."""
        for index, endpoint in enumerate(endpoints):
            if endpoint not in self._endpoints and len(self._endpoints) >= MAX_ENDPOINTS:
                continue
            self._endpoints.add(endpoint)
            for order, carrier in enumerate(self._carriers):
                key = (carrier, endpoint, address.path if carrier in ("ws", "wss") else "")
                if address.carrier not in (None, carrier) or key in self._known or carrier in without:
                    continue
                self._known.add(key)
                favoured = self._favourite is not None and self._favourite.fits(carrier, address)
                hope = (not favoured, order + rank + index, order)
                self._waiting.append((hope, Attempt(carrier, endpoint, address)))
        self._waiting.sort(key=lambda each: each[0])

    def due(self, now: float) -> list[Attempt]:
        """Those to begin now."""
        found = []
        while self._waiting and self._begun < MAX_ATTEMPTS and (now >= self._next_start or not self._running):
            _, attempt = self._waiting.pop(0)
            self._running.add(attempt)
            self._begun += 1
            self._next_start = now + HEAD_START
            found.append(attempt)
        return found

    def failed(self, attempt: Attempt, now: float) -> None:
        """It has not worked; whoever is next need not wait any longer."""
        self._running.discard(attempt)
        self._next_start = min(self._next_start, now)

    def abandon(self, endpoint: Endpoint) -> None:
        """Begin no other carrier there: what answered is too busy, and would be so for each of them."""
        self._waiting = [each for each in self._waiting if each[1].endpoint != endpoint]

    def next_timeout(self) -> float | None:
        """When `due` has something, if nothing fails before."""
        return self._next_start if self._waiting and self._begun < MAX_ATTEMPTS else None

    @property
    def over(self) -> bool:
        """Nothing runs, and nothing of what was added is left to begin."""
        return not self._running and (not self._waiting or self._begun >= MAX_ATTEMPTS)

    @property
    def running(self) -> frozenset[Attempt]:
        return frozenset(self._running)


# a better one --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Look:
    at: float
    pause: float
    longest: float


class BetterSearch:
    """When to look for which carrier that is wished for more than the one in use. One for a node's whole life."""

    def __init__(self, carriers: Sequence[CarrierName], uniform: Callable[[float, float], float]) -> None:
        """`uniform(low, high)` draws a number."""
        self._carriers = tuple(carriers)
        self._uniform = uniform
        self._looks: dict[CarrierName, _Look] = {}
        self._unsteady: dict[CarrierName, int] = {}  # worked, and then did not last, so many times in a row
        self._used: CarrierName | None = None
        self._since = 0.0

    def steady_first(self) -> tuple[CarrierName, ...]:
        """All, in the order for the next race: those that worked and then did not last come last."""
        return tuple(sorted(self._carriers, key=lambda carrier: carrier in self._unsteady))

    def is_unsteady(self, carrier: CarrierName) -> bool:
        """It worked, and was lost soon."""
        return carrier in self._unsteady

    def connected(self, carrier: CarrierName, now: float) -> None:
        """This one is in use from now on."""
        better = self._carriers[: self._carriers.index(carrier)] if carrier in self._carriers else ()
        self._looks = {
            each: self._looks.get(each) or self._new_look(each, now, FIRST_PAUSE) for each in better
        }  # those that are looked for already keep their pauses
        self._used, self._since = carrier, now

    def lost(self, now: float) -> None:
        """The connection is gone, by itself."""
        if self._used is not None:
            if now - self._since >= SETTLED:
                self._unsteady.pop(self._used, None)
            else:
                self._unsteady[self._used] = self._unsteady.get(self._used, 0) + 1
        self._used = None
        self._looks = {}

    def link_changed(self, now: float) -> None:
        """The machine is perhaps in another network: all that is known is void."""
        self._unsteady.clear()
        self._looks = {each: self._new_look(each, now, FIRST_PAUSE) for each in self._looks}
        for look in self._looks.values():
            look.at = now + LINK_PAUSE

    def due(self, now: float) -> tuple[CarrierName, ...]:
        """Those to look for now; the next look is a longer pause on."""
        found = tuple(each for each in self._carriers if each in self._looks and now >= self._looks[each].at)
        for each in found:
            look = self._looks[each]
            look.pause = min(2 * look.pause, look.longest)
            look.at = now + self._jittered(look.pause)
        return found

    def next_timeout(self) -> float | None:
        return min((look.at for look in self._looks.values()), default=None)

    def _new_look(self, carrier: CarrierName, now: float, pause: float) -> _Look:
        if self._unsteady.get(carrier, 0) > 1:
            return _Look(now + self._jittered(SETTLED), SETTLED, STREAM_PAUSE)
        return _Look(now + self._jittered(pause), pause, UDP_PAUSE if carrier == "udp" else STREAM_PAUSE)

    def _jittered(self, pause: float) -> float:
        return pause * self._uniform(1 - JITTER, 1 + JITTER)


# what worked ---------------------------------------------------------------------------------------------------------


class Favourite(msgspec.Struct, frozen=True, kw_only=True):
    """What worked last on one network."""

    network: str  # its default gateway and our address there
    carrier: CarrierName
    address: str  # of the server, as `ServerAddress` writes it
    wall: float  # when, Unix time, s

    def fits(self, carrier: CarrierName, address: ServerAddress) -> bool:
        return carrier == self.carrier and str(address) == self.address


class Favourites(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of them, newest last. Bounded by `MEMORY_SIZE`."""

    networks: tuple[Favourite, ...] = ()

    def of(self, network: str, carriers: Sequence[CarrierName], wall: float) -> Favourite | None:
        """What worked last there, unless that is too long ago, or is not allowed any more."""
        for favourite in self.networks:
            if favourite.network == network and favourite.carrier in carriers:
                # A clock that was set back must not make it last for ever.
                return favourite if abs(wall - favourite.wall) < MEMORY_LIFE else None
        return None

    def remember(self, favourite: Favourite) -> "Favourites":
        others = [each for each in self.networks if each.network != favourite.network]
        fresh = [each for each in others if abs(favourite.wall - each.wall) < MEMORY_LIFE]
        return Favourites(networks=(*fresh[-(MEMORY_SIZE - 1) :], favourite))
