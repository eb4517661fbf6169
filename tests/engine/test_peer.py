"""What a peer remembers of its path, in virtual time."""

import os

import pytest

from overlay.engine.api import PeerConfig
from overlay.engine.peer import DATAGRAM_SIZES, HANDSHAKE_REPEATS, KEY_PATIENCE, PATH_PATIENCE, SIZE_LIFE, Peer
from overlay.path.selector import Selector
from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard.device import Device

ONE: Endpoint = ("192.0.2.1", 1000)
TWO: Endpoint = ("192.0.2.2", 1000)


def make(*, stock: bool = False) -> Peer:
    device = Device(os.urandom(32), random_bytes=os.urandom, tai64n=lambda: bytes(12), jitter=lambda: 0.0)
    key = os.urandom(32)
    selector = None if stock else Selector(relay=False, random_bytes=os.urandom)
    return Peer(PeerConfig(number=2, public_key=key, allowed=()), device.add_peer(key, now=0.0), selector, 0.0)


def test_a_size_that_a_path_refused_is_remembered_for_that_path() -> None:
    peer = make()
    assert not peer.shrink(0.0) or peer.address is not None  # nowhere yet: nothing to remember
    assert peer.set_route(ONE, b"", 0.0)
    assert not peer.set_route(ONE, b"", 0.0)
    sizes = [peer.datagram_size]
    while peer.shrink(1.0):
        sizes.append(peer.datagram_size)
    assert tuple(sizes) == DATAGRAM_SIZES
    assert peer.set_route(TWO, b"", 2.0)
    assert peer.datagram_size == DATAGRAM_SIZES[0]
    peer.set_route(ONE, b"", 3.0)
    assert peer.datagram_size == DATAGRAM_SIZES[-1]
    peer.set_route(ONE, b"", 1.0 + SIZE_LIFE)
    assert peer.datagram_size == DATAGRAM_SIZES[0]


def test_what_is_remembered_is_bounded_and_forgotten_when_the_link_changes() -> None:
    peer = make()
    for index in range(100):
        peer.set_route(("192.0.2.1", index + 1), b"", 0.0)
        peer.shrink(0.0)
    assert len(peer._sizes) <= 16
    peer.forget_sizes()
    assert peer.datagram_size == DATAGRAM_SIZES[0]


def test_an_initiation_to_our_own_node_is_repeated_twice_and_no_more() -> None:
    peer = make()
    peer.handshake_sent(b"initiation", 10.0)
    sent: list[float] = []
    for tick in range(60):
        now = 10.0 + tick * 0.1
        if peer.repeat_due(now):
            sent.append(now)
    assert sent == pytest.approx([10.0 + HANDSHAKE_REPEATS[0], 10.0 + sum(HANDSHAKE_REPEATS)], abs=0.11)
    assert peer.handshake == b"initiation"  # still wanted when the path changes
    peer.handshake_over()
    assert peer.handshake is None


def test_an_answered_initiation_is_not_repeated_nor_one_to_a_stock_peer() -> None:
    answered, stock = make(), make(stock=True)
    for peer in (answered, stock):
        peer.handshake_sent(b"initiation", 0.0)
    answered.handshake_over()
    assert not answered.repeat_due(60.0)
    assert not stock.repeat_due(60.0)


def test_the_path_of_a_stock_peer_is_where_it_is() -> None:
    peer = make(stock=True)
    assert peer.path_snapshot() is None
    peer.set_route(ONE, b"", 0.0)
    snapshot = peer.path_snapshot()
    assert snapshot is not None
    assert (snapshot.kind, snapshot.endpoint, snapshot.mtu) == ("udp", ONE, 1444)


def test_how_long_packets_wait_depends_on_what_they_wait_for() -> None:
    peer = make()
    assert peer.gives_up_at() is None
    peer.staging.add(bytearray(b"first"), 10.0)
    peer.staging.add(bytearray(b"second"), 12.0)
    assert peer.gives_up_at() == 10.0 + PATH_PATIENCE
    deadline = peer.next_timeout()
    assert deadline is not None
    assert deadline <= 10.0 + PATH_PATIENCE
    peer.set_route(ONE, b"", 12.5)
    assert peer.gives_up_at() == 12.5 + KEY_PATIENCE
    peer.set_route(ONE, b"", 20.0)  # the same way: no other chance
    assert peer.gives_up_at() == 12.5 + KEY_PATIENCE
    peer.set_route(None, b"", 21.0)
    assert peer.gives_up_at() == 21.0 + PATH_PATIENCE
    peer.staging.take()
    assert peer.gives_up_at() is None
