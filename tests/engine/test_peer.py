"""What a peer remembers of its path, in virtual time."""

import os

import pytest

from overlay.engine.api import PeerConfig
from overlay.engine.peer import HANDSHAKE_REPEATS, KEY_PATIENCE, PATH_PATIENCE, Peer
from overlay.engine.staging import MAX_IN_DOUBT
from overlay.path.pmtu import BASE_PLPMTU, LADDER, MIN_PLPMTU
from overlay.path.selector import Selector
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.fragments import DATAGRAM_SIZE
from overlay.wire.wireguard.device import Device

ONE: Endpoint = ("192.0.2.1", 1000)
TWO: Endpoint = ("192.0.2.2", 1000)
SIX: Endpoint = ("2001:db8::1", 1000)


def make(*, stock: bool = False) -> Peer:
    device = Device(os.urandom(32), random_bytes=os.urandom, tai64n=lambda: bytes(12), jitter=lambda: 0.0)
    key = os.urandom(32)
    selector = None if stock else Selector(relay=False, random_bytes=os.urandom)
    config = PeerConfig(number=2, public_key=key, allowed=())
    return Peer(config, device.add_peer(key, now=0.0), selector, 0.0, os.urandom)


def answer(peer: Peer, size: int, now: float) -> None:
    """Let the path take `size` bytes and no more, at once."""
    assert peer.mtu is not None
    while probes := peer.mtu.probes_to_send():
        for asked, txid in probes:
            if asked <= size:
                assert peer.mtu.pong_received(txid, now)
    peer.follow_mtu()


def send(peer: Peer, now: float) -> None:
    assert peer.mtu is not None
    peer.tx_bytes += 1000
    peer.mtu.data_sent(peer.tx_bytes, now)


def test_a_size_that_our_kernel_refuses_is_followed_by_smaller_ones() -> None:
    peer = make()
    assert not peer.shrink(0.0)  # nowhere yet: there is nothing to shrink
    assert peer.set_route(ONE, b"", 0.0)
    assert not peer.set_route(ONE, b"", 0.0)
    sizes = [peer.datagram_size]
    while peer.shrink(1.0):
        sizes.append(peer.datagram_size)
    assert sizes == [DATAGRAM_SIZE, BASE_PLPMTU, MIN_PLPMTU]


def test_what_was_sent_in_doubt_is_kept_until_there_is_none_and_bounded() -> None:
    peer = make()
    assert peer.doubt(False) == peer.doubt(True) == []
    kept = peer.in_doubt
    assert kept is not None
    for number in range(100):
        kept.add(bytearray([number]) * 1000, 1.0)
    assert peer.doubt(True) == [] and peer.in_doubt is kept
    frames = peer.doubt(False)
    assert [frame[0] for frame in frames] == list(range(100 - MAX_IN_DOUBT // 1000, 100))
    assert peer.doubt(False) == []


def test_the_same_narrow_place_takes_less_by_ipv6() -> None:
    """Its header is 20 bytes longer; and 1232 pass wherever IPv6 does."""
    for takes, begins in ((1352, 1332), (1252, 1232), (1240, 1232), (700, 548)):
        peer = make()
        peer.set_route(ONE, b"", 0.0)
        send(peer, 0.0)
        answer(peer, takes, 0.0)
        before = peer.datagram_size
        peer.set_route(SIX, b"", 1.0)
        assert peer.datagram_size == min(before, begins)
        peer.set_route(TWO, b"", 2.0)
        assert peer.datagram_size == min(before, begins), "what is known of the last way holds for IPv4 as well"


def test_what_a_path_takes_is_remembered_for_that_path() -> None:
    peer = make()
    peer.set_route(ONE, b"", 0.0)
    send(peer, 0.0)
    answer(peer, 1300, 0.0)
    first = peer.datagram_size
    assert first == 1252
    peer.set_route(TWO, b"", 0.0)
    assert peer.datagram_size == first, "a new path begins with no more than the last one took"
    send(peer, 1.0)
    answer(peer, 8000, 1.0)
    second = peer.datagram_size
    assert second > DATAGRAM_SIZE
    peer.set_route(ONE, bytes(16), 0.0)
    assert peer.datagram_size == DATAGRAM_SIZE, "relayed, it is another path, and nothing is known of it"
    peer.set_route(ONE, b"", 0.0)
    assert peer.datagram_size == first
    peer.set_route(TWO, b"", 0.0)
    assert peer.datagram_size == second
    peer.forget_sizes()
    assert peer.datagram_size == DATAGRAM_SIZE
    peer.set_route(ONE, b"", 0.0)
    assert peer.datagram_size == DATAGRAM_SIZE


def test_only_the_path_in_use_is_probed() -> None:
    peer = make()
    peer.set_route(ONE, b"", 0.0)
    before = peer.mtu
    assert before is not None
    send(peer, 0.0)
    assert [size for size, _ in before.probes_to_send()] == list(LADDER)
    peer.set_route(TWO, b"", 0.0)
    assert before.asleep
    assert peer.mtu is not None and peer.mtu.asleep, "not before there is data"
    peer.set_route(None, b"", 0.0)
    assert peer.path_snapshot() is None
    assert not peer.shrink(1.0)


def test_an_answer_that_comes_after_the_path_changed_counts_for_the_path_that_was_asked() -> None:
    peer = make()
    peer.set_route(ONE, b"", 0.0)
    send(peer, 0.0)
    assert peer.mtu is not None
    (size, txid), *_ = peer.mtu.probes_to_send()
    peer.set_route(TWO, b"", 0.0)
    assert peer.probe_answered(txid, 0.1)
    assert not peer.probe_answered(txid, 0.1)
    assert peer.datagram_size == DATAGRAM_SIZE
    peer.set_route(ONE, b"", 0.0)
    assert peer.datagram_size == size


def test_what_is_remembered_is_bounded() -> None:
    peer = make()
    for index in range(100):
        peer.set_route(("192.0.2.1", index + 1), b"", 0.0)
        peer.shrink(0.0)
    assert len(peer._mtus) <= 16
    assert peer.mtu in peer._mtus.values()


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
    assert peer.mtu is None, "it answers no probe"
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
