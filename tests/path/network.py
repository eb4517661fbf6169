"""Two selectors over a simulated network: real disco datagrams, virtual time, links that can be made as bad as one
likes."""

from collections import Counter
from random import Random

from overlay.errors import RemoteProtocolError
from overlay.path.selector import Selector
from overlay.path.types import Path, PathChanged, WantTcp
from overlay.testing import Link, VirtualClock
from overlay.wire.disco import DISCO_TYPE, DiscoKey, Ping, Pong, sender
from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard.primitives import public_key

A_LAN: Endpoint = ("10.0.0.1", 41641)
B_LAN: Endpoint = ("10.0.0.2", 41641)
A_UDP: Endpoint = ("192.0.2.1", 41641)
B_UDP: Endpoint = ("192.0.2.2", 41641)

_PRIVATE = (bytes(31) + b"\x40", bytes(30) + b"\x01\x40")
_KEYS = (DiscoKey(_PRIVATE[0], public_key(_PRIVATE[1])), DiscoKey(_PRIVATE[1], public_key(_PRIVATE[0])))


class Side:
    """One node: its selector, what it sent and what reached it."""

    def __init__(self, network: "Network", number: int, *, relay: bool) -> None:
        self.number = number
        self.random = Random(number)
        self.selector = Selector(relay=relay, random_bytes=self.random.randbytes)
        self.key = _KEYS[number - 1]
        self.network = network
        self.sent = 0  # data
        self.pings: list[tuple[float, Endpoint]] = []
        self.received: list[tuple[float, Endpoint | None]] = []  # data: when, from where
        self.calls: list[float] = []
        self.wants_tcp: list[float] = []
        self.history: list[PathChanged] = []
        self.drops: Counter[str] = Counter()

    @property
    def now(self) -> float:
        return self.network.clock.now

    @property
    def path(self) -> Path | None:
        return self.selector.path

    def send_data(self) -> None:
        path = self.selector.path
        self.sent += 1
        if path is not None:
            self.network.carry(self.number, path.endpoint, b"data")
        self.selector.data_sent(self.now)
        self.drain()

    def receive(self, datagram: bytes, source: Endpoint | None) -> None:
        now = self.now
        if datagram[0] != DISCO_TYPE:
            self.received.append((now, source))
            self.selector.data_received(source, now)
        elif source is not None:
            try:
                if sender(datagram) == self.number:
                    raise RemoteProtocolError("reflected")
                message = self.key.open(datagram)
            except RemoteProtocolError as error:
                self.drops[error.reason] += 1
                return
            if isinstance(message, Ping):
                self.seal(Pong(message.txid, source), source)
                self.selector.ping_received(source, now)
            elif isinstance(message, Pong) and not self.selector.pong_received(
                source, message.txid, message.observed, now
            ):
                self.drops["unasked_pong"] += 1
        self.drain()

    def seal(self, message: Ping | Pong, destination: Endpoint) -> None:
        self.network.carry(self.number, destination, self.key.seal(message, self.number, self.random.randbytes(24)))

    def drain(self) -> None:
        for endpoint, txid in self.selector.pings_to_send():
            self.pings.append((self.now, endpoint))
            self.seal(Ping(txid), endpoint)
        if self.selector.call_due():
            self.calls.append(self.now)
        for event in self.selector.events():
            if isinstance(event, WantTcp):
                self.wants_tcp.append(event.at)
                continue
            assert event.path == self.selector.path
            self.history.append(event)

    def pings_between(self, start: float, end: float) -> int:
        return sum(start <= when < end for when, _ in self.pings)


class Network:
    """`a` and `b`, a relay between them, and the direct ways given as `(endpoint of a, endpoint of b)`."""

    def __init__(self, *ways: tuple[Endpoint, Endpoint], relay: bool = True, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.a = Side(self, 1, relay=relay)
        self.b = Side(self, 2, relay=relay)
        self.ways = ways
        self.links: dict[tuple[int, Endpoint | None], Link] = {}
        """(sending side, destination; None: the relay) → link"""
        self.nowhere = 0
        for at_a, at_b in ways:
            self._add(1, at_a, at_b, seed)
            self._add(2, at_b, at_a, seed)
        self._add(1, None, None, seed)
        self._add(2, None, None, seed)
        for link in (self.links[1, None], self.links[2, None]):
            link.latency = 0.025
        for side in (self.a, self.b):
            self.clock.watch(side.selector, side.drain)

    def _add(self, number: int, source: Endpoint | None, destination: Endpoint | None, seed: int) -> None:
        other = self.b if number == 1 else self.a
        self.links[number, destination] = Link(
            self.clock, lambda data: other.receive(data, source), seed=100 * seed + len(self.links)
        )

    def carry(self, number: int, destination: Endpoint | None, datagram: bytes) -> None:
        link = self.links.get((number, destination))
        if link is None:
            self.nowhere += 1  # an address where nobody is
        else:
            link.send(datagram)

    def direct(self) -> list[Link]:
        return [link for (_, destination), link in self.links.items() if destination is not None]

    def introduce(self) -> None:
        """Give both sides the other's candidates, as the network map would."""
        at_a = [way[0] for way in self.ways]
        at_b = [way[1] for way in self.ways]
        self.a.selector.set_candidates(at_b, [B_LAN] if B_LAN in at_b else [], self.clock.now)
        self.b.selector.set_candidates(at_a, [A_LAN] if A_LAN in at_a else [], self.clock.now)
        self.a.drain()
        self.b.drain()

    def talk(self, seconds: float, *, every: float = 0.020, a: bool = True, b: bool = True) -> None:
        """Data both ways (or one) for so long."""
        start = self.clock.now
        step = 0
        while step * every < seconds:
            if a:
                self.a.send_data()
            if b:
                self.b.send_data()
            step += 1
            self.clock.advance(start + step * every - self.clock.now)

    def talk_until(self, kind: str | None, within: float, *, a: bool = True, b: bool = True) -> float:
        """Data till side a (and b, if it talks) use a path of this kind; returns how long that took in s."""
        start = self.clock.now
        sides = [side for side, talks in ((self.a, a), (self.b, b)) if talks]
        while any((side.path.kind if side.path else None) != kind for side in sides):
            assert self.clock.now - start <= within, f"still on {[side.path for side in sides]}"
            self.talk(0.010, every=0.010, a=a, b=b)
        return self.clock.now - start
