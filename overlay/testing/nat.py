"""NATs of every behaviour in virtual time, and the networks that they stand between.

    internet = Internet(clock, latency=0.020)
    home = Nat(internet, "203.0.113.7", mapping="address-and-port-dependent")
    home.attach("192.168.1.10", receive)          # behind it; receive(datagram, source, destination)
    home.send(("192.168.1.10", 4000), ("198.51.100.1", 443), b"…")

A `Nat` is a machine of the network outside and a network itself, so that NATs stand behind NATs. What a network does to
a datagram on the way (latency, loss, …) are the settings of `overlay.testing.link.Link`.
"""

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from random import Random
from typing import Final, Unpack

from overlay.path.nat import Dependence
from overlay.testing.clock import VirtualClock
from overlay.testing.link import Link
from overlay.testing.pair import LinkSettings
from overlay.wire.endpoint import Endpoint

Receive = Callable[[bytes, Endpoint, Endpoint], None]
"""A datagram, where it came from, and to which of one's endpoints."""

_ENVELOPE: Final = 36  # bytes: two endpoints of 18
_LOWEST_PORT: Final = 1024
_PORTS: Final = 2**16 - _LOWEST_PORT


def _pack(endpoint: Endpoint) -> bytes:
    return ip_address(endpoint[0]).packed.ljust(16, b"\0") + endpoint[1].to_bytes(2, "big")


class Internet:
    """A network of machines by address. All that it carries has the same fate; the same seed, the same run."""

    def __init__(self, clock: VirtualClock, *, seed: int = 0, **link: Unpack[LinkSettings]) -> None:
        self.clock = clock
        self.drops: Counter[str] = Counter()
        """By reason: no_machine, and what a NAT adds."""
        settings: LinkSettings = {**link, "mtu": link.get("mtu", 65_507) + _ENVELOPE}
        self.link = Link(clock, self._deliver, seed=seed, **settings)
        self._machines: dict[str, Receive] = {}
        self._endpoints: dict[bytes, Endpoint] = {}

    def attach(self, address: str, receive: Receive) -> None:
        """A machine at `address`, instead of the one that was there."""
        self._machines[address] = receive

    def detach(self, address: str) -> None:
        del self._machines[address]

    def send(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        """From a machine on this network to wherever `destination` is."""
        envelope = b""
        for endpoint in (source, destination):
            packed = _pack(endpoint)
            self._endpoints[packed] = endpoint
            envelope += packed
        self.link.send(envelope + datagram)

    def _deliver(self, carried: bytes) -> None:
        source, destination = self._endpoints[carried[:18]], self._endpoints[carried[18:_ENVELOPE]]
        receive = self._machines.get(destination[0])
        if receive is not None:
            receive(carried[_ENVELOPE:], source, destination)
        else:
            self._no_machine(carried[_ENVELOPE:], source, destination)

    def _no_machine(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        self.drops["no_machine"] += 1


class _Mapping:
    """One outside port. `remotes`, `hosts`: endpoints and addresses outside that were sent to, and when last."""

    __slots__ = ("hosts", "inside", "key", "port", "remotes", "used")

    def __init__(self, key: tuple[Endpoint, str, int], inside: Endpoint, port: int, now: float) -> None:
        self.key = key
        self.inside = inside
        self.port = port
        self.used = now
        self.remotes: dict[Endpoint, float] = {}
        self.hosts: dict[str, float] = {}


class Nat(Internet):
    """A NAT at `address` of the network `outside`. Its inside has no loss and 1 ms of latency unless told otherwise."""

    def __init__(
        self,
        outside: Internet,
        address: str,
        *,
        mapping: Dependence = "endpoint-independent",
        filtering: Dependence = "address-and-port-dependent",
        hairpinning: bool = False,
        port_preserved: bool = True,
        port_delta: int | None = None,
        lifetime: float = 30.0,
        inbound_refresh: bool = False,
        seed: int = 0,
        **link: Unpack[LinkSettings],
    ) -> None:
        """`port_preserved`: the inside port is taken where it is free. Otherwise, and where it is not, the next port is
        the last one and `port_delta`; None: any. `lifetime` in s after the last datagram out, or also in with
        `inbound_refresh` (RFC 4787 REQ-6)."""
        super().__init__(outside.clock, seed=seed, **({"latency": 0.001} | link))
        self.address = address
        self.mapping = mapping
        self.filtering = filtering
        self.hairpinning = hairpinning
        self.port_preserved = port_preserved
        self.port_delta = port_delta
        self.lifetime = lifetime
        self.inbound_refresh = inbound_refresh
        self.open = True
        """False: it drops all UDP."""
        self._outside = outside
        self._random = Random(seed)
        self._by_key: dict[tuple[Endpoint, str, int], _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}
        self._last_port = 0
        self.reboot()
        outside.attach(address, self._from_outside)

    @property
    def mappings(self) -> int:
        """How many there are, those included that are about to be forgotten."""
        return sum(1 for each in self._by_port.values() if self._lives(each))

    def reboot(self) -> None:
        """All is forgotten, and ports begin elsewhere."""
        self._by_key.clear()
        self._by_port.clear()
        self._last_port = self._random.randrange(_LOWEST_PORT, 2**16)

    def move(self, address: str) -> None:
        """The provider gives it another address."""
        self._outside.detach(self.address)
        self.address = address
        self._outside.attach(address, self._from_outside)
        self.reboot()

    # inside → outside

    def _no_machine(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        """What is for nobody inside goes out."""
        if not self.open:
            self.drops["closed"] += 1
            return
        if destination[0] == self.address and not self.hairpinning:
            self.drops["no_hairpinning"] += 1
            return
        outer = (self.address, self._map(source, destination).port)
        if destination[0] == self.address:
            self._from_outside(datagram, outer, destination)  # RFC 4787 REQ-9: with the outside source endpoint
        else:
            self._outside.send(outer, destination, datagram)

    def _map(self, inside: Endpoint, remote: Endpoint) -> _Mapping:
        match self.mapping:
            case "endpoint-independent":
                key = (inside, "", 0)
            case "address-dependent":
                key = (inside, remote[0], 0)
            case _:
                key = (inside, *remote)
        now = self.clock.now
        mapping = self._by_key.get(key)
        if mapping is None or not self._lives(mapping):
            if mapping is not None:
                self._forget(mapping)
            port = self._free_port(inside[1])
            mapping = self._by_key[key] = self._by_port[port] = _Mapping(key, inside, port, now)
        mapping.used = mapping.remotes[remote] = mapping.hosts[remote[0]] = now
        return mapping

    def _free_port(self, wished: int) -> int:
        if self.port_preserved and self._is_free(wished):
            return wished
        for _ in range(_PORTS):
            if self.port_delta is None:
                port = self._random.randrange(_LOWEST_PORT, 2**16)
            else:
                port = (self._last_port - _LOWEST_PORT + self.port_delta) % _PORTS + _LOWEST_PORT
                self._last_port = port
            if self._is_free(port):
                return port
        raise AssertionError("no port is free")

    def _is_free(self, port: int) -> bool:
        mapping = self._by_port.get(port)
        if mapping is None:
            return True
        if self._lives(mapping):
            return False
        self._forget(mapping)
        return True

    def _forget(self, mapping: _Mapping) -> None:
        self._by_key.pop(mapping.key, None)
        self._by_port.pop(mapping.port, None)

    def _lives(self, mapping: _Mapping) -> bool:
        return self.clock.now < mapping.used + self.lifetime

    # outside → inside

    def _from_outside(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        mapping = self._by_port.get(destination[1])
        if not self.open:
            self.drops["closed"] += 1
        elif mapping is None or not self._lives(mapping):
            self.drops["no_mapping"] += 1
        elif not self._lets_in(mapping, source):
            self.drops["filtered"] += 1
        else:
            if self.inbound_refresh:
                mapping.used = self.clock.now
            self.send(source, mapping.inside, datagram)

    def _lets_in(self, mapping: _Mapping, source: Endpoint) -> bool:
        match self.filtering:
            case "endpoint-independent":
                return True
            case "address-dependent":
                sent = mapping.hosts.get(source[0])
            case _:
                sent = mapping.remotes.get(source)
        return sent is not None and self.clock.now < sent + self.lifetime
