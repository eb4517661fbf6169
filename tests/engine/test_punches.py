"""Attempts over real sockets: the hard side's many, the one that is met, and what becomes of the others."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from overlay.engine import api
from overlay.engine.calls import Calls
from overlay.engine.drops import PUNCH_STRANGER, Drops
from overlay.engine.exchange import DiscoExchange
from overlay.engine.features import Features
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.punches import KEPT_UNUSED, Punches
from overlay.engine.routes import Routes
from overlay.engine.udp import open_udp
from overlay.path import punch
from overlay.path.nat import Dependence, NatBehaviour
from overlay.path.types import Path
from overlay.wire.disco import DiscoKey, Offer, Ping, Pong
from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.engine.rig import Machine

PORT: Dependence = "address-and-port-dependent"
EASY = NatBehaviour(translated=True, mapping="endpoint-independent", filtering=PORT)
HARD = NatBehaviour(translated=True, mapping=PORT, filtering=PORT)
T = 100.0


class Ends:
    """Our engine's parts, and peer 3, which is a socket of the test's."""

    def __init__(self, own: NatBehaviour, theirs: NatBehaviour) -> None:
        self.drops = Drops()
        private_key = clamp(os.urandom(32))
        device = Device(private_key, random_bytes=os.urandom, tai64n=lambda: bytes(12), jitter=lambda: 0.0)
        self.peers = Peers(device, self.drops, os.urandom, lambda: 1380)
        machine = Machine(3)
        self.peer: Peer = self.peers.set(machine.config(endpoints=()), T)
        self.sockets = open_udp(0, Features())
        self.outbox = Outbox(self.sockets, self.drops)
        self.disco = DiscoExchange(
            private_key, 2, self.peers, self.outbox, Routes(None), self.drops, os.urandom, lambda event: None
        )
        calls: Calls = self.disco.calls
        self.epoll = select.epoll()
        self.punches = Punches(
            self.peers,
            calls,
            self.outbox,
            self.drops,
            os.urandom,
            self.epoll,
            self.disco.sealed_ping,
            self.disco.is_from,
            self.disco.receive,
        )
        self.disco.probe_answered = self.punches.pong_received
        self.theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.theirs.bind(("127.0.0.1", 0))
        self.theirs.settimeout(10)
        self.target: Endpoint = self.theirs.getsockname()
        self.key = DiscoKey(machine.private_key, public_key(private_key))
        calls.set_reach(api.SetReach(own), T)
        known = calls._of(self.peer)  # as if it had called: its endpoint is a loopback address, which no call may bring
        known.nat, known.offers = theirs, (Offer(self.target, "observed"),)
        self.punches.called(self.peer, T)

    def asked(self, count: int) -> list[tuple[bytes, Endpoint]]:
        """Pings that came to the peer: id, and where from."""
        found = []
        for _ in range(count):
            datagram, source = self.theirs.recvfrom(2048)
            message = self.key.open(datagram)
            assert isinstance(message, Ping)
            found.append((message.txid, source))
        return found

    def say(self, message: Ping | Pong, to: Endpoint) -> None:
        self.theirs.sendto(self.key.seal(message, 3, os.urandom(24)), ("127.0.0.1", to[1]))

    def take_in(self, now: float) -> None:
        ((descriptor, _),) = self.epoll.poll(10)
        self.punches.ready(descriptor, now)

    def close(self) -> None:
        self.punches.close()
        self.epoll.close()
        self.sockets.close()
        self.theirs.close()


@pytest.fixture
def hard() -> Iterator[Ends]:
    ends = Ends(HARD, EASY)
    yield ends
    ends.close()


def test_the_socket_that_is_answered_stays_and_all_others_go(hard: Ends) -> None:
    begin = T + punch.DELAY
    hard.punches.handle_timeout(T + 0.1)
    assert not hard.punches.by_fd, "what needs no luck comes first"
    passed: list[tuple[int, Endpoint, bool]] = []
    hard.punches.on_passed = lambda datagram, *rest: passed.append(rest)
    hard.punches.handle_timeout(begin)
    asked = hard.asked(int(punch.BURST))
    assert passed == [(source[1], hard.target, True) for _, source in asked], "whoever captures sees it"
    assert len({source for _, source in asked}) == len(asked) == len(hard.punches.by_fd)
    txid, source = asked[3]
    hard.say(Pong(txid, ("203.0.113.9", 5)), source)
    hard.take_in(begin + 0.02)
    assert passed[-1] == (source[1], hard.target, False)
    met = hard.sockets.special[hard.target]
    assert met.port == source[1]
    assert hard.peer.selector is not None
    assert hard.peer.selector.path == Path("udp", hard.target)
    hard.peer.address = hard.target  # as the engine makes it at the end of its turn
    hard.punches.handle_timeout(begin + 0.1)
    assert not hard.punches.by_fd and list(hard.punches.kept_by_fd) == [met.fileno()]
    hard.disco.ping(3, hard.target, bytes(12))
    assert hard.asked(1) == [(bytes(12), source)], "and it is the way to that endpoint now"
    hard.punches.handle_timeout(begin + 7 + KEPT_UNUSED)
    assert not hard.sockets.special and not hard.punches.kept_by_fd, "nobody was there for a minute"


def test_a_ping_that_comes_in_is_answered_by_the_socket_that_it_came_to(hard: Ends) -> None:
    begin = T + punch.DELAY
    hard.punches.handle_timeout(begin)
    _, source = hard.asked(int(punch.BURST))[5]
    hard.say(Ping(b"x" * 12), source)
    hard.take_in(begin + 0.02)
    datagram, answerer = hard.theirs.recvfrom(2048)
    assert answerer == source and hard.key.open(datagram) == Pong(b"x" * 12, hard.target)


def test_what_others_send_to_these_sockets_is_counted_and_changes_nothing(hard: Ends) -> None:
    hard.punches.handle_timeout(T + punch.DELAY)
    _, source = hard.asked(int(punch.BURST))[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"\x07" * 100, ("127.0.0.1", source[1]))
        hard.take_in(T + 2)
    assert hard.drops.counts[PUNCH_STRANGER] == 1 and not hard.sockets.special


def test_who_forges_the_peers_endpoint_does_not_have_it_bound(hard: Ends) -> None:
    hard.punches.handle_timeout(T + punch.DELAY)
    _, source = hard.asked(int(punch.BURST))[0]
    for forged in (b"\x07" * 100, hard.key.seal(Ping(b"x" * 12), 4, os.urandom(24))):
        hard.theirs.sendto(forged, ("127.0.0.1", source[1]))
        hard.take_in(T + 2)
    assert not hard.sockets.special and not hard.punches.kept_by_fd
    hard.say(Ping(b"x" * 12), source)
    hard.take_in(T + 2)
    assert list(hard.sockets.special) == [hard.target]


def test_an_attempt_in_vain_leaves_nothing_open_and_waits_before_the_next(hard: Ends) -> None:
    begin = T + punch.DELAY
    hard.punches.handle_timeout(begin)
    hard.asked(int(punch.BURST))
    hard.punches.handle_timeout(begin + punch.GIVE_UP)
    assert not hard.punches.by_fd
    for seconds, expected in ((1.0, 0), (punch.PAUSES[0] + 0.1, int(punch.BURST))):
        now = begin + punch.GIVE_UP + seconds
        hard.punches.called(hard.peer, now)
        hard.punches.handle_timeout(now + punch.DELAY)
        assert len(hard.punches.by_fd) == expected


def test_the_easy_side_asks_from_its_own_port() -> None:
    ends = Ends(EASY, HARD)
    try:
        ends.punches.handle_timeout(T + punch.DELAY)
        assert not ends.punches.by_fd
        attempt = ends.punches._attempt
        assert attempt is not None and len(attempt.asked) == int(punch.BURST)
        assert all(endpoint[0] == "127.0.0.1" for endpoint in attempt.asked)
    finally:
        ends.close()
