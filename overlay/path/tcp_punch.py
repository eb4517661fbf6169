"""One attempt to open a TCP connection to a peer from both sides at once (RFC 5128 §3.4): whom to connect to, and when.
Sans-I/O; knows no socket, key or message.

Both nodes have a local port each, from which they connect to the other's endpoints and on which they listen. They begin
together, on the server's cue: who was called begins half a round trip after it has answered, who called when the answer
is there. A NAT that has seen the first packet of its own side lets in the other's: the two then open simultaneously
(RFC 9293 §3.5), or one side's listener takes the other's connection. A NAT that refuses what comes too early, rather
than dropping it, spoils a try (RFC 5382 REQ-4); the next begins on both sides at the same moment again.

More than one connection may come about. The node with the lower number takes the first on which the other has proven
itself, and says so on it; both close the others.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from overlay.path.budget import Budget
from overlay.path.nat import NatBehaviour
from overlay.path.offers import is_usable
from overlay.path.punch import is_hard
from overlay.path.strangers import Strangers
from overlay.path.types import Origin
from overlay.wire.endpoint import Endpoint

TRIES: Final = (0.0, 0.2, 0.6, 1.2, 2.0, 3.0)
"""s from the agreed moment at which both sides connect wherever no connection is under way. The kernel itself repeats
what is lost after 1 s."""

GIVE_UP: Final = 4.0
"""s of an attempt: a connection that came about with the last try has a second to prove itself. The next attempt comes
with growing pauses (`timing.CUE_PAUSES`)."""

MAX_TARGETS: Final = 12
"""Endpoints of a peer that are tried: it has one or two that work, and those of a machine's many interfaces."""

LOWEST_PORT: Final = 1024
"""Ports below belong to services, and no node connects from one: nobody can have us knock there."""

RATE: Final = 10.0
BURST: Final = 60.0
"""Connections begun per second, and at once, with all peers together."""

CUE_RATE: Final = 0.2
CUE_BURST: Final = 3.0
"""Attempts per second, and at once, that a peer can have us begin by its cues: an honest one has one in six seconds."""

MAX_ATTEMPTS: Final = 16
"""At the same time, with all peers together: each has a port, and some sockets."""

_ORDER: Final[dict[Origin, int]] = {"interface": 0, "manual": 1, "mapped": 1, "observed": 2, "predicted": 3}


def is_worth(own: NatBehaviour, peer: NatBehaviour) -> bool:
    """Two NATs that both give each destination another port, and no regular one, never meet."""
    return not (is_hard(own) and not own.port_delta and is_hard(peer) and not peer.port_delta)


def decides(own: int, peer: int) -> bool:
    """Is it node `own` that chooses among connections, and whose call counts if both called?"""
    return own < peer


def targets(
    offers: Iterable[tuple[Endpoint, Origin]], own: Iterable[Endpoint], ranges: Sequence[IPv4Network | IPv6Network]
) -> tuple[Endpoint, ...]:
    """Which of a peer's offers to connect to, nearest first. `own`: our endpoints, `ranges`: the overlay's."""
    ours = set(own)
    listed: dict[Endpoint, int] = {}
    for endpoint, origin in offers:
        if endpoint[1] >= LOWEST_PORT and endpoint not in ours and is_usable(endpoint, ranges):
            listed.setdefault(endpoint, _ORDER.get(origin, len(_ORDER)))
    return tuple(sorted(listed, key=lambda endpoint: listed[endpoint])[:MAX_TARGETS])


class Limits:
    """What a node's attempts have in common: how often it connects, and to whom that never answered."""

    __slots__ = ("budget", "strangers")

    def __init__(self) -> None:
        self.budget = Budget(RATE, BURST)
        self.strangers = Strangers()

    def take(self, endpoint: Endpoint, now: float) -> bool:
        """May this endpoint be connected to now? If so, it counts as done."""
        if self.strangers.next_ping(endpoint, now) > now or not self.budget.take(now):
            return False
        self.strangers.pinged(endpoint, now)
        return True


class TcpAttempt:
    """Times in s, monotonic."""

    __slots__ = ("_busy", "_end", "_instants", "_limits", "_next", "_targets", "connects")

    def __init__(self, targets: Sequence[Endpoint], start: float, limits: Limits) -> None:
        """`start`: the moment agreed on with the peer."""
        self.connects = 0
        """Connections begun so far."""
        self._targets = tuple(targets)
        self._instants = tuple(start + pause for pause in TRIES)
        self._end = start + GIVE_UP
        self._next = 0
        self._busy: set[Endpoint] = set()
        self._limits = limits

    def is_over(self, now: float) -> bool:
        return now >= self._end

    def due(self, now: float) -> list[Endpoint]:
        """Whom to connect to now. Each is busy until `failed`."""
        if now >= self._end or self._next >= len(self._instants) or now < self._instants[self._next]:
            return []
        while self._next < len(self._instants) and self._instants[self._next] <= now:
            self._next += 1  # late: one try for those that were missed
        found = [each for each in self._targets if each not in self._busy and self._limits.take(each, now)]
        self._busy.update(found)
        self.connects += len(found)
        return found

    def failed(self, endpoint: Endpoint) -> None:
        """The connection was refused, or was no use: it is tried again with the next try."""
        self._busy.discard(endpoint)

    def next_timeout(self) -> float:
        """When to ask `due`, or whether it is over."""
        return self._instants[self._next] if self._next < len(self._instants) else self._end


class Turns:
    """With one peer: one attempt at a time, and no more of them than it may have us begin."""

    __slots__ = ("_cues", "running")

    def __init__(self) -> None:
        self.running = False
        self._cues = Budget(CUE_RATE, CUE_BURST)

    def cued(self, now: float) -> bool:
        """The peer asks for an attempt: is there to be one?"""
        return not self.running and self._cues.take(now)
