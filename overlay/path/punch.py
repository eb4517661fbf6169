"""Knocking where a NAT gives each destination a port of its own choice: whose part is which, and whom to ask when.
Sans-I/O; knows no socket, key or message.

Where both NATs map alike for all (RFC 4787: endpoint-independent), the endpoints that the nodes tell each other are
right, and asking them at once is all it takes. Where one side's NAT does not (it is hard), the other cannot know which
port to let in. If the other's NAT lets in any port of an address it has sent to, that is no matter. If it does not,
this is left: the hard side sends from many sockets, so that its NAT opens many ports to the other; the other asks ports
at random until it meets one of them (the birthday paradox). Two hard sides meet only by prediction.

    asked ports   chance to meet one of 256 among 64,512
    174           50 %
    1024          98.4 %
    2048          99.97 %
"""

from collections.abc import Callable
from typing import Final, Literal

from overlay.path.budget import Budget
from overlay.path.nat import NatBehaviour
from overlay.wire.endpoint import Endpoint

Part = Literal["many-sockets", "many-ports"]

SOCKETS: Final = 256
"""Sockets of the hard side, and so mappings that its NAT has to keep: home routers keep thousands."""

RATE: Final = 60.0
BURST: Final = 8.0
"""Probes per second, and at once, of one attempt: what a node's budget leaves when others ask a little, too."""

LEFT: Final = 12.0
"""Probes that an attempt leaves the node at any time: pings to endpoints that peers named come before guesses."""

DELAY: Final = 1.5
"""s after a call until an attempt begins: by then what needs no luck has worked."""

GIVE_UP: Final = 20.0
"""s of an attempt: some 1,200 ports asked."""

PAUSES: Final = (30.0, 60.0, 120.0, 300.0, 900.0)
"""s from the end of the 1st, 2nd, … attempt with a peer that came to nothing until the next: it looks like a port scan,
and a NAT that gave no way once will hardly give one later."""

PREDICTED: Final = 6
"""Ports that are offered where a NAT's next ones are known: our own probes use up some, other programs others."""

_LOWEST_PORT: Final = 1024
_PORTS: Final = 2**16 - _LOWEST_PORT


def is_hard(nat: NatBehaviour) -> bool:
    """Does it give each destination another mapping?"""
    return nat.mapping in ("address-dependent", "address-and-port-dependent") and nat.translated is not False


def is_easy(nat: NatBehaviour) -> bool:
    """Is what one outsider sees of it what all see?"""
    return nat.translated is False or nat.mapping == "endpoint-independent"


def part(own: NatBehaviour, peer: NatBehaviour) -> Part | None:
    """Which part this side has, if it takes many probes; the peer, asked the same, comes to the other."""
    if is_hard(own) and is_easy(peer) and _minds_the_port(peer):
        return "many-sockets"
    if is_easy(own) and is_hard(peer) and _minds_the_port(own):
        return "many-ports"
    return None


def _minds_the_port(nat: NatBehaviour) -> bool:
    """Does it keep out other ports of an address that was sent to? Not known: it may, and asking the simple way was
    tried before."""
    return nat.filtering not in ("endpoint-independent", "address-dependent")


def counts(nat: NatBehaviour) -> bool:
    """Does it give one destination after the other the next port?"""
    return is_hard(nat) and bool(nat.port_delta)


def predicted(nat: NatBehaviour, newest: Endpoint) -> list[Endpoint]:
    """The endpoints that the NAT will give to our next destinations, where it counts regularly. `newest`: the mapping
    that it made last."""
    if nat.port_delta is None or not counts(nat):
        return []
    host, port = newest
    ports = (port + step * nat.port_delta for step in range(1, PREDICTED + 1))
    return [(host, each) for each in ports if _LOWEST_PORT <= each < 2**16]


class Attempt:
    """One attempt to meet a peer, on one side. Times in s, monotonic; `random_bytes(n)` gives n unguessable bytes."""

    def __init__(
        self, part: Part, target: Endpoint, start: float, random_bytes: Callable[[int], bytes], node_budget: Budget
    ) -> None:
        """`target`: where the peer was seen. `node_budget`: of all probes of this node."""
        self.part = part
        self.target = target
        self.asked: dict[Endpoint, float] = {}
        """When each endpoint was asked, the last time."""
        self.sockets = 0
        """Opened so far, for the part "many-sockets"."""
        self._budget = Budget(RATE, BURST)
        self._node_budget = node_budget
        self._start = start
        self._end = start + GIVE_UP
        # A walk through all ports without repetition: a step that has no divisor in common with their number.
        self._at = int.from_bytes(random_bytes(4)) % _PORTS
        self._step = _coprime(int.from_bytes(random_bytes(4)))

    def is_over(self, now: float) -> bool:
        return now >= self._end

    def probes(self, now: float) -> list[Endpoint]:
        """Whom to ask now; for the part "many-sockets" each from a new socket."""
        found: list[Endpoint] = []
        while self._start <= now < self._end and self._has_more() and self._budget.available_at(now) <= now:
            if self._room_at(now) > now:
                break  # others ask; our turn comes
            self._budget.take(now)
            self._node_budget.take(now)
            found.append(self._next(now))
        return found

    def next_timeout(self, now: float) -> float:
        """When to ask for probes again, or that it is over."""
        if now < self._start:
            return self._start
        if not self._has_more():
            return self._end
        return min(self._end, max(self._budget.available_at(now, BURST / 2), self._room_at(now)))

    def _room_at(self, now: float) -> float:
        """When the node's budget has a probe for us beside those that are left to others."""
        return self._node_budget.available_at(now, 1.0 + LEFT)

    def _has_more(self) -> bool:
        return self.part == "many-ports" or self.sockets < SOCKETS

    def _next(self, now: float) -> Endpoint:
        if self.part == "many-sockets":
            self.sockets += 1
            endpoint = self.target
        else:
            self._at = (self._at + self._step) % _PORTS
            endpoint = (self.target[0], _LOWEST_PORT + self._at)
        self.asked[endpoint] = now
        return endpoint


def _coprime(seed: int) -> int:
    """A step near `seed` that visits all ports: 64,512 is 2¹⁰ · 3² · 7."""
    step = seed % _PORTS
    while step % 2 == 0 or step % 3 == 0 or step % 7 == 0:
        step += 1
    return step
