"""Two nodes behind simulated NATs, with a server that relays: real selectors, attempts and disco datagrams in virtual
time. What the engine does with sockets and queues is done here with numbers."""

from collections.abc import Iterator
from random import Random
from typing import Any

from overlay.path import punch, timing
from overlay.path.budget import Budget
from overlay.path.nat import NatBehaviour
from overlay.path.selector import Selector
from overlay.path.types import PathChanged, WantTcp
from overlay.testing import Internet, Link, Nat, VirtualClock
from overlay.wire.disco import CallMe, DiscoKey, Message, Offer, Ping, Pong, sender
from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard.primitives import public_key

SERVER: Endpoint = ("198.51.100.1", 443)
PORT = 4000  # of the engine's own socket
HEADERS = 28  # bytes
RELAY_HEADER = 16  # bytes, of a type 6
KEEPALIVE = 20.0  # s: what keeps the mapping towards the server

_PRIVATE = (bytes(31) + b"\x40", bytes(30) + b"\x01\x40")
_KEYS = (DiscoKey(_PRIVATE[0], public_key(_PRIVATE[1])), DiscoKey(_PRIVATE[1], public_key(_PRIVATE[0])))


def behaviour(nat: Nat | None) -> NatBehaviour:
    """What the node has found out of its NAT; None: it has a public address."""
    if nat is None:
        return NatBehaviour(translated=False, mapping="endpoint-independent", filtering="endpoint-independent")
    # A counting NAT that keeps ports where it can is only found to count when the port is taken.
    delta = nat.port_delta if nat.mapping != "endpoint-independent" and not nat.port_preserved else None
    return NatBehaviour(translated=True, mapping=nat.mapping, filtering=nat.filtering, port_delta=delta)


class Side:
    """One node, at `address` of `home`, which is its NAT or the internet itself."""

    def __init__(self, network: "NatNetwork", number: int, home: Internet, address: str) -> None:
        self.network = network
        self.number = number
        self.home = home
        self.address = address
        self.random = Random(number * 1000 + network.seed)
        self.node_budget = Budget(timing.NODE_RATE, timing.NODE_BURST)
        self.selector = Selector(relay=True, random_bytes=self.random.randbytes, node_budget=self.node_budget)
        self.key = _KEYS[number - 1]
        self.nat = behaviour(home if isinstance(home, Nat) else None)
        self.observed: Endpoint | None = None
        self.peer_nat: NatBehaviour | None = None
        self.peer_offers: tuple[Offer, ...] = ()
        self.attempt: punch.Attempt | None = None
        self.attempt_txid = b""
        self.attempt_after = 0.0
        self.bound: dict[Endpoint, int] = {}  # endpoint → the port of ours that it is reached from
        self.half_rtt = 0.0
        self.asked: dict[bytes, float] = {}
        self.probes: list[tuple[float, Endpoint]] = []
        self.wants_tcp: list[float] = []
        self.received: list[tuple[float, bool]] = []  # data: when, and whether directly
        self.peer_bytes = 0  # sent to the other node, directly or by the relay, with IP and UDP headers
        home.attach(address, self.receive)

    @property
    def now(self) -> float:
        return self.network.clock.now

    @property
    def kind(self) -> str:
        return self.selector.path.kind if self.selector.path is not None else "none"

    # --- what the program around would do -----------------------------------------------------------------------------

    def keep_alive(self) -> None:
        """The relay's ping: it keeps the mapping, and tells where we are seen."""
        self.send(SERVER, b"observe me")

    def observed_as(self, endpoint: Endpoint) -> None:
        if endpoint != self.observed:
            self.observed = endpoint
            self.selector.call_anew(self.now)
            self.drain()

    def send_data(self) -> None:
        self.selector.data_sent(self.now)
        self.drain()
        path = self.selector.path
        if path is not None and path.endpoint is not None:
            self.send(path.endpoint, b"data")
        else:
            self.network.relay(self, b"data")

    def send(self, destination: Endpoint, datagram: bytes) -> None:
        if destination != SERVER:
            self.peer_bytes += len(datagram) + HEADERS
        self.home.send((self.address, self.bound.get(destination, PORT)), destination, datagram)

    def receive(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        if destination[1] != PORT and self.bound.get(source) != destination[1]:
            if self.attempt is None or source != self.attempt.target or source in self.bound:
                return
            self.bound[source] = destination[1]
        if datagram == b"data":
            self.received.append((self.now, True))
            self.selector.data_received(source, self.now)
        else:
            self._disco(self.key.open(datagram), source)
        self.drain()

    def receive_relayed(self, datagram: bytes) -> None:
        if datagram == b"data":
            self.received.append((self.now, False))
            self.selector.data_received(None, self.now)
        else:
            assert sender(datagram) != self.number
            message = self.key.open(datagram)
            assert isinstance(message, CallMe)
            self._called(message)
        self.drain()

    def drain(self) -> None:
        for endpoint, txid in self.selector.pings_to_send():
            self.probes.append((self.now, endpoint))
            self.send(endpoint, self.seal(Ping(txid)))
        if self.selector.call_due():
            call = self._call(self.random.randbytes(8), answer=False)
            self.asked[call.id] = self.now
            self.network.relay(self, self.seal(call))
        for event in self.selector.events():
            if isinstance(event, WantTcp):
                self.wants_tcp.append(event.at)
            else:
                assert isinstance(event, PathChanged)

    # --- the timers of an attempt (`VirtualClock.watch`) --------------------------------------------------------------

    def next_timeout(self) -> float | None:
        return None if self.attempt is None else self.attempt.next_timeout(self.now)

    def handle_timeout(self, now: float) -> None:
        attempt = self.attempt
        if attempt is None:
            return
        if self.kind in ("udp", "lan") or attempt.is_over(now):
            self.attempt = None
            self.attempt_after = now + punch.PAUSES[0]
            return
        opened = attempt.sockets
        for number, endpoint in enumerate(attempt.probes(now), 1):
            self.probes.append((now, endpoint))
            port = PORT + opened + number if attempt.part == "many-sockets" else PORT
            self.home.send((self.address, port), endpoint, self.seal(Ping(self.attempt_txid)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def seal(self, message: Message) -> bytes:
        return self.key.seal(message, self.number, self.random.randbytes(24))

    def _disco(self, message: Message, source: Endpoint) -> None:
        if isinstance(message, Ping):
            self.send(source, self.seal(Pong(message.txid, source)))
            self.selector.ping_received(source, self.now)
        elif isinstance(message, Pong):
            attempt = self.attempt
            if attempt is not None and message.txid == self.attempt_txid and source in attempt.asked:
                self.selector.punched(source, attempt.asked[source], self.now)
            else:
                self.selector.pong_received(source, message.txid, message.observed, self.now)

    def _call(self, id: bytes, *, answer: bool) -> CallMe:
        offers = [Offer((self.address, PORT), "interface")]
        if self.observed is not None:
            offers.append(Offer(self.observed, "observed"))
            offers += [Offer(each, "predicted") for each in punch.predicted(self.nat, self.observed)]
        return CallMe(id, answer, "udp", self.half_rtt, self.nat.pack(), tuple(offers))

    def _called(self, call: CallMe) -> None:
        now, start = self.now, self.now
        if call.answer:
            sent = self.asked.pop(call.id, None)
            if sent is None:
                return
            self.half_rtt = (now - sent) / 2
        else:
            self.network.relay(self, self.seal(self._call(call.id, answer=True)))
            start += call.half_rtt
        self.peer_nat, self.peer_offers = NatBehaviour.unpack(call.nat), call.offers
        self.selector.called(((offer.endpoint, offer.origin) for offer in call.offers), start, now)
        self.network.clock.at(now + punch.DELAY, self._consider)

    def _consider(self) -> None:
        side = punch.part(self.nat, self.peer_nat) if self.peer_nat is not None else None
        target = next((offer.endpoint for offer in self.peer_offers if offer.origin == "observed"), None)
        direct = self.kind in ("udp", "lan")
        if side is None or target is None or self.attempt is not None or direct or self.now < self.attempt_after:
            return
        self.attempt = punch.Attempt(side, target, self.now, self.random.randbytes, self.node_budget)
        self.attempt_txid = self.random.randbytes(12)


class NatNetwork:
    """`a` and `b`, each behind the NAT that the settings say (None: a public address of its own)."""

    def __init__(
        self,
        a: dict[str, Any] | None,
        b: dict[str, Any] | None,
        *,
        seed: int = 0,
        latency: float = 0.020,
        loss: float = 0.0,
    ) -> None:
        self.seed = seed
        self.clock = VirtualClock()
        self.internet = Internet(self.clock, seed=seed, latency=latency, loss=loss)
        self.internet.attach(SERVER[0], self._at_server)
        homes = [self._home(settings, number) for number, settings in ((1, a), (2, b))]
        self.a = Side(self, 1, *homes[0])
        self.b = Side(self, 2, *homes[1])
        self._relays = {
            side.number: Link(
                self.clock, other.receive_relayed, seed=seed + 10 * side.number, latency=2 * latency, loss=loss
            )
            for side, other in ((self.a, self.b), (self.b, self.a))
        }
        for side in (self.a, self.b):
            self.clock.watch(side.selector, side.drain)
            self.clock.watch(side, side.drain)
            self._keep_alive(side)
        self.clock.advance(4 * latency + 0.01)
        while self.a.observed is None or self.b.observed is None:  # the first keepalives may be lost
            self.a.keep_alive()
            self.b.keep_alive()
            self.clock.advance(0.5)

    def _home(self, settings: dict[str, Any] | None, number: int) -> tuple[Internet, str]:
        if settings is None:
            return self.internet, f"203.0.113.{number}"
        return Nat(self.internet, f"203.0.113.{number}", seed=self.seed + number, **settings), f"192.168.{number}.10"

    def _at_server(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        side = self.a if source[0].endswith(".1") else self.b
        side.observed_as(source)

    def _keep_alive(self, side: Side) -> None:
        side.keep_alive()
        self.clock.at(self.clock.now + KEEPALIVE, lambda: self._keep_alive(side))

    def relay(self, side: Side, datagram: bytes) -> None:
        side.peer_bytes += len(datagram) + RELAY_HEADER + HEADERS
        self._relays[side.number].send(datagram)

    def talk(self, seconds: float, every: float = 0.05) -> Iterator[float]:
        """Data both ways; yields the time that has passed, after each packet."""
        start = self.clock.now
        while self.clock.now - start < seconds:
            self.a.send_data()
            self.b.send_data()
            self.clock.advance(every)
            yield self.clock.now - start

    def direct_after(self, within: float) -> float | None:
        """Seconds of data until both sides have a direct path; None: not within so many."""
        for passed in self.talk(within):
            if self.a.kind in ("udp", "lan") and self.b.kind in ("udp", "lan"):
                return passed
        return None

    def most_probes_per_second(self, side: Side) -> int:
        times = [when for when, _ in side.probes]
        return max((sum(start <= when < start + 1.0 for when in times) for start in times), default=0)
