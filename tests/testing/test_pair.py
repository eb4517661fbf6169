import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.testing import Pair
from overlay.wire.wireguard.constants import REKEY_AFTER_TIME


def ip_packet(number: int, size: int = 100) -> bytes:
    """An IPv4 packet of `size` bytes that carries its number."""
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 253, 0, b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02")
    return (header + number.to_bytes(4, "big")).ljust(size, b"\xaa")


def test_packets_wait_for_the_handshake_and_arrive_whole_both_ways() -> None:
    pair = Pair(preshared_key=b"\x07" * 32)
    packets = [ip_packet(number, 24 + number * 50) for number in range(25)]
    for packet in packets:
        pair.a.send(packet)
    pair.clock.advance(1.0)
    assert pair.b.received == packets
    pair.b.send(packets[0])
    pair.clock.advance(1.0)
    assert pair.a.received == packets[:1]
    assert pair.a.handshakes() == pair.b.handshakes() == 1
    assert not pair.a.drops
    assert not pair.b.drops


def test_an_hour_of_traffic_rekeys_and_loses_nothing() -> None:
    pair = Pair()
    sent = 3600
    for number in range(sent):
        pair.a.send(ip_packet(number))
        pair.clock.advance(1.0)
    assert pair.b.received == [ip_packet(number) for number in range(sent)]
    assert pair.a.handshakes() >= sent / REKEY_AFTER_TIME - 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16), st.floats(0.0, 0.3), st.floats(0.0, 0.1))
def test_over_a_bad_link_packets_are_lost_but_never_doubled_or_changed(seed: int, loss: float, latency: float) -> None:
    pair = Pair(seed=seed, loss=loss, latency=latency, duplicate=0.2, reorder=0.2, jitter=0.01)
    sent = [ip_packet(number) for number in range(300)]
    for packet in sent:
        pair.a.send(packet)
        pair.clock.advance(0.1)
    pair.clock.advance(5.0)
    assert len(set(pair.b.received)) == len(pair.b.received)
    assert set(pair.b.received) <= set(sent)
    assert set(pair.b.drops) <= {"replay", "unknown_index", "replayed_initiation", "initiation_flood"}


def test_a_cut_link_gives_up_and_a_mended_one_comes_back() -> None:
    pair = Pair()
    pair.a_to_b.cut()
    pair.a.send(ip_packet(1))
    pair.clock.advance(200.0)
    assert pair.a.drops["staged"] == 1
    pair.a_to_b.mend()
    pair.a.send(ip_packet(2))
    pair.clock.advance(10.0)
    assert pair.b.received == [ip_packet(2)]


def test_a_persistent_keepalive_needs_no_traffic() -> None:
    pair = Pair(persistent_keepalive=25.0)
    pair.clock.advance(100.0)
    assert pair.a.handshakes() >= 1
    assert pair.b.received == []


def test_under_load_the_cookie_comes_first() -> None:
    pair = Pair()
    pair.b.under_load = True
    pair.a.send(ip_packet(1))
    pair.clock.advance(20.0)
    assert pair.b.drops["under_load"] == 1
    assert pair.b.received == [ip_packet(1)]


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[float]:
        pair = Pair(seed=5, loss=0.2, jitter=0.01)
        for number in range(50):
            pair.a.send(ip_packet(number))
            pair.clock.advance(0.3)
        return [when for when, _ in pair.a.history + pair.b.history]

    assert run() == run()
