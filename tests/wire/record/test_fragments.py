from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.record.fragments import (
    DATAGRAM_SIZE,
    FRAGMENT_HEADER,
    FRAGMENT_HEADER_SIZE,
    INNER_MTU,
    TAG_SIZE,
    runs,
)
from overlay.wire.record.frames import FRAME_HEADER_SIZE

RELAY_HEADER_SIZE = 16


def fragment(receiver: int, size: int = 100, kind: int = 5) -> bytes:
    return FRAGMENT_HEADER.pack(kind, 0, 1, 0, receiver, 9).ljust(size, b"\xaa")


def test_a_full_packet_in_a_record_of_its_own_fits_one_datagram() -> None:
    overhead = FRAME_HEADER_SIZE + TAG_SIZE + FRAGMENT_HEADER_SIZE + RELAY_HEADER_SIZE
    assert INNER_MTU + overhead <= DATAGRAM_SIZE


def test_a_batch_for_one_receiver_is_one_run() -> None:
    batch = memoryview(fragment(7) * 3 + fragment(7, 60))
    assert list(runs(batch, 100)) == [(0, 360, 5, 7)]
    assert list(runs(batch[:100], 100)) == [(0, 100, 5, 7)]
    assert list(runs(batch[:100], 0)) == [(0, 100, 5, 7)]


def test_a_batch_is_cut_where_the_receiver_changes() -> None:
    batch = memoryview(fragment(7) * 2 + fragment(8) * 2)
    assert list(runs(batch, 100)) == [(0, 200, 5, 7), (200, 400, 5, 8)]


def test_another_message_at_the_end_is_a_run_of_its_own() -> None:
    batch = memoryview(fragment(7) * 2 + b"\x01" + bytes(80))
    assert list(runs(batch, 100)) == [(0, 200, 5, 7), (200, 281, 1, -1)]


def test_another_message_in_the_middle_is_a_run_of_its_own() -> None:
    batch = memoryview(fragment(7) + fragment(7, kind=7) + fragment(7))
    assert [run[2:] for run in runs(batch, 100)] == [(5, 7), (7, -1), (5, 7)]


def test_transport_data_has_a_receiver_too() -> None:
    batch = memoryview(fragment(7, kind=4) * 2)
    assert list(runs(batch, 100)) == [(0, 200, 4, 7)]


def test_the_relay_header_is_skipped() -> None:
    datagram = b"\x06" + bytes(15) + fragment(7)
    assert list(runs(memoryview(datagram * 2), 116, 16)) == [(0, 232, 5, 7)]


def test_short_datagrams_have_no_receiver() -> None:
    assert list(runs(memoryview(b""), 0)) == [(0, 0, -1, -1)]
    assert list(runs(memoryview(fragment(7)[:15]), 15)) == [(0, 15, 5, -1)]
    assert list(runs(memoryview(fragment(7)), 100, 100)) == [(0, 100, -1, -1)]
    assert list(runs(memoryview(fragment(7) + b"\x05"), 100)) == [(0, 100, 5, 7), (100, 101, 5, -1)]


@given(st.binary(max_size=500), st.integers(0, 120), st.sampled_from([0, 16]))
def test_any_bytes_are_cut_without_loss(batch: bytes, segment: int, offset: int) -> None:
    found = list(runs(memoryview(batch), segment, offset))
    assert found[0][0] == 0
    assert found[-1][1] == len(batch)
    for before, after in zip(found, found[1:], strict=False):
        assert before[1] == after[0]
        assert after[0] % segment == 0
