"""Links between peers: a way to each other like others, used by its rank, left when it is dead, and of no use to who is
not the peer."""

import os
import socket
from collections.abc import Iterator

import pytest

from overlay.engine import api
from overlay.engine.link import DATAGRAM_SIZE, IDLE, LOOK, PROOF, link_endpoint
from overlay.engine.loop import clock
from overlay.wire.disco import DiscoKey, Ping
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import pack_header
from overlay.wire.stream.codec import Plain
from overlay.wire.stream.framing import frames
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.engine.rig import PATIENCE, Machine, acquaint
from tests.engine.test_linked_engines import passes
from tests.engine.test_links import Handed, Relay, tcp_pair

THERE: Endpoint = ("203.0.113.7", 40000)
LINK = 1 << 20


def connect(one: Machine, other: Machine, number: int = LINK) -> None:
    """A connection between two peers, as if it had been punched."""
    ours, theirs = tcp_pair()
    for machine, peer, end in ((one, other, ours), (other, one, theirs)):
        link = api.AddLink(number, Handed(end, Plain()), None, "tcp", peer=peer.number, shown=THERE)
        machine.engine.post(link)


def goes_by(node: Machine, kind: str | None) -> api.PathSnapshot | None:
    """Wait until the path to some peer is of this kind."""
    while True:
        event = node.wait_for(api.PathChanged)
        assert isinstance(event, api.PathChanged)
        if (event.path.kind if event.path else None) == kind:
            return event.path


@pytest.fixture
def relay() -> Iterator[Machine]:
    with Machine(1, relay_clients=True) as made:
        yield made


def test_a_link_alone_carries_a_session() -> None:
    with Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        connect(one, other)
        for node in (one, other):
            path = goes_by(node, "tcp")
            assert path is not None and (path.endpoint, path.mtu) == (THERE, DATAGRAM_SIZE)
        for _ in range(5):
            passes(one, other)
            passes(other, one)
        for node in (one, other):
            assert not node.snapshot().drops


def test_from_relay_to_link_and_back_with_one_session(relay: Machine) -> None:
    with Machine(2) as one, Machine(3) as other:
        for node in (one, other):
            node.set_relay(relay)
        acquaint(one, other, direct=False)
        passes(one, other)
        passes(other, one)
        connect(one, other)
        goes_by(one, "tcp")
        goes_by(other, "tcp")
        while not one.events.empty():
            one.events.get()
        passes(one, other)
        passes(other, one)
        other.engine.post(api.RemoveLink(LINK))
        lost = one.wait_for(api.LinkLost)
        assert isinstance(lost, api.LinkLost) and lost.number == LINK
        passes(one, other)
        passes(other, one)
        path = one.snapshot().peers[0].path
        assert path is not None and path.kind == "relay"
        connect(one, other, LINK + 1)
        goes_by(one, "tcp")
        assert not any(isinstance(event, api.HandshakeCompleted) for event in list(one.events.queue))


def test_udp_comes_before_a_link() -> None:
    with Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        connect(one, other)
        goes_by(one, "tcp")
        acquaint(one, other)
        passes(one, other)
        path = goes_by(one, "udp")
        assert path is not None and path.endpoint == other.endpoint
        passes(one, other)


def test_a_peer_that_is_removed_or_is_another_loses_its_link() -> None:
    with Machine(2) as one, Machine(3) as other, Machine(3) as successor:
        acquaint(one, other, direct=False)
        connect(one, other)
        goes_by(one, "tcp")
        one.engine.post(api.SetPeer(successor.config(endpoints=())))
        lost = one.wait_for(api.LinkLost)
        assert isinstance(lost, api.LinkLost) and lost.reason == "link_peer_removed"
        other.wait_for(api.LinkLost)


def test_a_link_to_nobody_is_closed() -> None:
    with Machine(2) as one:
        ours, theirs = tcp_pair()
        one.engine.post(api.AddLink(LINK, Handed(ours, Plain()), None, "tcp", peer=9, shown=THERE))
        one.wait_for(api.LinkLost)
        theirs.settimeout(PATIENCE)
        assert theirs.recv(1) == b""
        theirs.close()


# one engine, turned by hand, and what is said on its link -------------------------------------------------------------


class Near(Relay):
    """An engine with two peers, 5 and 6; the link's other end, to peer 5, is in our hands."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = {number: clamp(os.urandom(32)) for number in (5, 6)}
        for number, key in self.keys.items():
            self.do(api.SetPeer(api.PeerConfig(number, public_key(key), ())))
        ours, self.far = tcp_pair()
        self.far.setblocking(False)
        self.do(api.AddLink(LINK, Handed(ours, Plain()), None, "tcp", peer=5, shown=THERE))
        self.link = self.sockets.links[link_endpoint(LINK)]
        self.selector = self.loop._peers.by_number[5].selector
        assert self.selector is not None

    def say(self, datagram: bytes) -> None:
        self.far.sendall(b"".join(frames(datagram, 0)))
        self.loop.turn(PATIENCE)

    def ping(self, number: int) -> bytes:
        key = DiscoKey(self.keys[number], public_key(self.private_key))
        return key.seal(Ping(os.urandom(12)), number, os.urandom(24))

    def turn_at(self, now: float) -> None:
        self.loop._links.timeout(self.link, now)
        self.loop.turn(0.0)


@pytest.fixture
def near() -> Iterator[Near]:
    made = Near()
    yield made
    made.far.close()
    made.close()


def test_what_a_stranger_says_is_counted(near: Near) -> None:
    near.say(near.ping(6))
    near.say(pack_header(5, 1) + bytes(40))
    near.say(b"\x09" * 40)
    near.say(b"\x05" + bytes(40))
    near.say(b"\x01" + bytes(147))
    near.say(near.ping(5)[:-1] + b"\x00")
    assert near.drops["link_stranger"] == 1
    assert near.drops["link_bad_type"] == 2
    assert near.drops["unknown_index"] == 1
    assert near.drops["internal_error"] == 0
    assert near.selector is not None and not near.selector.proven(near.link.endpoint)
    near.say(near.ping(5))
    assert not near.link.lost


def test_who_breaks_the_framing_is_cut_off(near: Near) -> None:
    near.far.sendall(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
    near.loop.turn(PATIENCE)
    assert [event.reason for event in near.lost()] == ["frame_too_long"]
    assert near.selector is not None and not near.selector.has_link(near.link.endpoint)


def test_a_link_without_proof_is_given_up(near: Near) -> None:
    near.turn_at(clock() + PROOF)
    assert [event.reason for event in near.lost()] == ["link_unproven"]


def test_a_link_without_use_is_given_up(near: Near) -> None:
    assert near.selector is not None
    near.selector.data_received(near.link.endpoint, clock())
    near.turn_at(clock() + PROOF)
    assert not near.lost()
    later = clock() + max(IDLE, LOOK) + PROOF
    near.link._heard = later  # its empty frames come
    near.turn_at(later)
    assert [event.reason for event in near.lost()] == ["link_idle"]


def test_a_slow_link_holds_little(near: Near) -> None:
    """What a peer does not read waits, grows old and is dropped; nobody else waits for it."""
    outbox = near.loop._outbox
    run = os.urandom(64_000)
    for _ in range(2000):
        outbox.send((run,), DATAGRAM_SIZE, near.link.endpoint)
    queue = outbox._queues[near.link]
    assert queue.size <= 512 << 10 and not outbox.blocked


def test_a_pair_of_another_kind_is_a_link_too() -> None:
    with Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        ours, theirs = socket.socketpair()
        one.engine.post(api.AddLink(LINK, Handed(ours, Plain()), None, "tcp", peer=3, shown=THERE))
        other.engine.post(api.AddLink(LINK, Handed(theirs, Plain()), None, "tcp", peer=2, shown=THERE))
        goes_by(one, "tcp")
        passes(one, other)
