from hypothesis import given
from hypothesis import strategies as st

from overlay.engine.staging import MAX_BYTES, MAX_PACKETS, Staging


def test_frames_come_out_in_order_and_once() -> None:
    staging = Staging()
    assert staging.add(bytearray(b"one"), 1.0) == 0
    assert staging.add(bytearray(b"two"), 2.0) == 0
    assert len(staging) == 2
    assert staging.since == 1.0
    assert staging.take() == [b"one", b"two"]
    assert staging.take() == []
    assert staging.since is None


def test_the_oldest_goes_when_there_are_too_many() -> None:
    staging = Staging()
    dropped = sum(staging.add(bytearray([index]), 0.0) for index in range(MAX_PACKETS + 3))
    assert dropped == 3
    assert staging.take()[0] == b"\x03"


@given(st.lists(st.integers(1, 300_000), max_size=40))
def test_neither_bound_is_ever_passed(sizes: list[int]) -> None:
    staging = Staging()
    dropped = sum(staging.add(bytearray(size), 0.0) for size in sizes)
    kept = staging.take()
    assert len(kept) <= MAX_PACKETS
    assert sum(map(len, kept)) <= MAX_BYTES
    assert [len(frame) for frame in kept] == sizes[dropped:]
