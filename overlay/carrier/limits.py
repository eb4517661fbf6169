"""What a peer of the control channel may cost us before and after we know it, and who is let in at all.

A *stranger* is a connection whose node the server has not yet welcomed: anybody can complete a Noise handshake with a
fresh key, so the handshake alone earns no trust. Nothing here does I/O; time is an argument.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    handshake: float = 5.0  # accept → key proven: five round trips of a bad mobile link
    admission: float = 20.0  # accept → Welcome: the registry's answer, on a busy disk too
    strangers: int = 256  # at once; with what the kernel buffers for each, below 40 MiB
    strangers_per_address: int = 16  # at once, per IPv4 address or IPv6 /64: an office behind one NAT comes in turns
    silent: int = 1024  # at once, who have not yet shown what they want: users of what is exposed are among them
    silent_per_address: int = 256
    handshakes_per_second: float = 500.0  # in all: four X25519 and a task each, about half a core
    handshakes_per_address: float = 20.0  # per second and address
    first_message: int = 64 * KIB  # largest message of a stranger
    outbox: int = 16 * MIB  # waiting for a peer that does not read: four of the largest messages
    write: float = 10.0  # for the kernel to take the next 64 KiB
    silence: float = 45.0  # nothing heard: three heartbeats


DEFAULT_LIMITS: Final = Limits()
BURST: Final = 2.0  # s worth of handshakes that may come at once
_ADDRESSES_KEPT: Final = 4096  # in the rate table; the longest unseen goes first


@lru_cache(4096)
def network_of(host: str) -> str:
    """Whom to count together: an IPv4 address, or the /64 that a single IPv6 host can pick its addresses from."""
    address = ip_address(host)
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else host


class Visit:
    """A stranger inside. `leave` when the connection is closed, or its node is welcome; twice does no harm."""

    def __init__(self, room: "Room", network: str) -> None:
        self._room: Room | None = room
        self._network = network

    def leave(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.forget(self._network)


class Room:
    """So many at once, in all and from one network."""

    def __init__(self, most: int, most_per_network: int) -> None:
        self._most = most
        self._most_per_network = most_per_network
        self._inside: Counter[str] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        return self._total

    def full_for(self, network: str) -> str:
        """Why nobody from this network may enter: "address" or "all"; "": one may."""
        if self._inside[network] >= self._most_per_network:
            return "address"
        return "all" if self._total >= self._most else ""

    def enter(self, network: str) -> Visit:
        self._inside[network] += 1
        self._total += 1
        return Visit(self, network)

    def forget(self, network: str) -> None:
        """Called by `Visit.leave` alone."""
        self._total -= 1
        self._inside[network] -= 1
        if not self._inside[network]:
            del self._inside[network]


class Door:
    """Counts the strangers and the rate at which they come. All memory is bounded by `Limits` and `_ADDRESSES_KEPT`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._silent = Room(limits.silent, limits.silent_per_address)
        self._strangers = Room(limits.strangers, limits.strangers_per_address)
        # Generic cell rate algorithm: the time at which each bucket would be full again.
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._full_at_all = 0.0
        self._expected: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, until when
        self._called = Room(limits.silent, limits.silent)

    @property
    def strangers(self) -> int:
        return self._strangers.total

    def knock(self, host: str) -> Visit | str:
        """A connection from `host` has come that has shown nothing yet. A visit, or why it is not heard."""
        network = network_of(host)
        full = self._silent.full_for(network)
        if full:
            return "too_many_silent_from_address" if full == "address" else "too_many_silent"
        return self._silent.enter(network)

    def expect(self, host: str, count: int, until: float) -> None:
        """A node at `host` has been asked to connect so many times: the limits on strangers are not for these."""
        network = network_of(host)
        known, _ = self._expected.pop(network, (0, 0.0))
        self._expected[network] = (min(known + count, self._limits.silent), until)
        if len(self._expected) > _ADDRESSES_KEPT:
            self._expected.popitem(last=False)

    def _is_expected(self, network: str, now: float) -> bool:
        count, until = self._expected.get(network, (0, 0.0))
        if now > until or not count or self._called.full_for(network):
            return False
        self._expected[network] = (count - 1, until)
        return True

    def follow(self, host: str) -> Visit | str:
        """One more stream of a connection from `host` that is a node's; it counts as one that was expected."""
        network = network_of(host)
        if self._called.full_for(network):
            return "too_many_silent"
        if network in self._expected:
            count, until = self._expected[network]
            self._expected[network] = (max(0, count - 1), until)
        return self._called.enter(network)

    def enter(self, host: str, now: float) -> Visit | str:
        """A connection from `host` wants to prove that it is a node's. A visit: it is in; else why it is not."""
        network = network_of(host)
        if self._is_expected(network, now):
            return self._called.enter(network)
        limits = self._limits
        full_at = max(self._full_at.get(network, now), now)
        full_at_all = max(self._full_at_all, now)
        full = self._strangers.full_for(network)
        if full:
            return "too_many_from_address" if full == "address" else "too_many_strangers"
        if full_at - now > BURST:
            return "handshake_rate_of_address"
        if full_at_all - now > BURST:
            return "handshake_rate"
        self._full_at[network] = full_at + 1 / limits.handshakes_per_address
        self._full_at.move_to_end(network)
        if len(self._full_at) > _ADDRESSES_KEPT:
            self._full_at.popitem(last=False)
        self._full_at_all = full_at_all + 1 / limits.handshakes_per_second
        return self._strangers.enter(network)
