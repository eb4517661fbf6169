"""A tap is bounded and exact: whatever is put and taken, all that was seen is taken, waiting or counted as dropped."""

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.engine.tap import InnerPacket, OuterRun, Tap
from overlay.wire.packet.virtio import NO_OFFLOAD

ENDPOINT = ("192.0.2.1", 443)


def test_what_is_put_is_taken_in_order() -> None:
    tap = Tap(lambda: None, outer=True)
    tap.put_inner(memoryview(NO_OFFLOAD + b"one"), True)
    tap.put_outer([b"a", memoryview(b"bc"), b"d"], 3, 443, ENDPOINT, False)
    tap.put_inner(NO_OFFLOAD + b"three", False)
    first, second, third = tap.take(1 << 20)
    assert isinstance(first, InnerPacket) and (first.data, first.size, first.outbound) == (NO_OFFLOAD + b"one", 3, True)
    assert isinstance(second, OuterRun) and (second.data, second.segment) == (b"abcd", 3)
    assert (second.endpoint, second.outbound) == (ENDPOINT, False)
    assert isinstance(third, InnerPacket) and first.time <= second.time <= third.time
    assert tap.take(1 << 20) == []
    assert tap.counts == (2, 0, 2, 0), "a run counts its datagrams"


def test_a_packet_is_cut_to_the_snap_length_and_keeps_its_size() -> None:
    tap = Tap(lambda: None, snaplen=4)
    tap.put_inner(NO_OFFLOAD + b"0123456789", True)
    (packet,) = tap.take(1)
    assert isinstance(packet, InnerPacket) and (packet.data, packet.size) == (NO_OFFLOAD + b"0123", 10)


def test_the_consumer_is_told_once_until_it_looks() -> None:
    told: list[None] = []
    tap = Tap(lambda: told.append(None))
    for _ in range(5):
        tap.put_inner(NO_OFFLOAD + b"x", True)
    assert len(told) == 1
    tap.take(1)  # leaves four: the consumer knows that it did not take all
    tap.put_inner(NO_OFFLOAD + b"x", True)
    assert len(told) == 2


def test_a_datagram_alone_and_an_empty_one_count_one() -> None:
    tap = Tap(lambda: None, outer=True)
    tap.put_outer([b"abc"], 0, 443, ENDPOINT, True)
    tap.put_outer([b""], 0, 443, ENDPOINT, True)
    assert [item.segment for item in tap.take(9) if isinstance(item, OuterRun)] == [3, 1]
    assert tap.counts.outer_seen == 2


puts = st.tuples(st.just("put"), st.integers(0, 120), st.booleans())
takes = st.tuples(st.just("take"), st.integers(1, 300), st.booleans())


@settings(deadline=None)
@given(st.lists(st.one_of(puts, takes), max_size=80), st.integers(1, 8), st.integers(20, 400))
def test_never_more_than_its_bounds(steps: list[tuple[str, int, bool]], max_packets: int, max_bytes: int) -> None:
    tap = Tap(lambda: None, outer=True, snaplen=100, max_packets=max_packets, max_bytes=max_bytes)
    waiting: list[bytes] = []
    taken = {InnerPacket: 0, OuterRun: 0}
    for kind, size, inner in steps:
        before = tap.counts
        if kind == "take":
            items = tap.take(size)
            assert [item.data for item in items] == waiting[: len(items)]
            assert sum(len(item.data) for item in items[:-1]) < size
            assert items or not waiting
            del waiting[: len(items)]
            for item in items:
                taken[type(item)] += 1
            continue
        data = bytes([len(waiting)]) * size
        if inner:
            tap.put_inner(NO_OFFLOAD + data, True)
            kept, dropped = NO_OFFLOAD + data[:100], tap.counts.inner_dropped > before.inner_dropped
        else:
            tap.put_outer([data], 0, 443, ENDPOINT, True)
            kept, dropped = data, tap.counts.outer_dropped > before.outer_dropped
        full = len(waiting) == max_packets or sum(map(len, waiting)) + len(kept) > max_bytes
        assert dropped == full, "what finds no room is dropped, and nothing else"
        if not dropped:
            waiting.append(kept)
        assert len(waiting) <= max_packets and sum(map(len, waiting)) <= max_bytes
    for item in tap.take(1 << 20):
        taken[type(item)] += 1
    counts = tap.counts
    assert counts.inner_seen == taken[InnerPacket] + counts.inner_dropped
    assert counts.outer_seen == taken[OuterRun] + counts.outer_dropped
