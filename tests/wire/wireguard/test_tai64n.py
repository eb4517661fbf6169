import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError
from overlay.wire.wireguard import tai64n
from overlay.wire.wireguard.tai64n import Timestamper

SECOND = 1_000_000_000
times = st.integers(0, 2**62 * SECOND - 1)


def test_the_epoch() -> None:
    assert tai64n.encode(0).hex() == "400000000000000a" + "00000000"


def test_the_low_24_bits_of_the_nanoseconds_are_cleared() -> None:
    assert tai64n.encode(1_700_000_000 * SECOND + 999_999_999).hex() == "400000006553f10a" + "3b000000"


@given(times, times)
def test_bytes_compare_as_times_do(one: int, other: int) -> None:
    assert (tai64n.encode(one) < tai64n.encode(other)) == (tai64n.whiten(one) < tai64n.whiten(other))


@given(times)
def test_every_timestamp_is_after_none_at_all(time: int) -> None:
    assert len(tai64n.encode(time)) == tai64n.SIZE
    assert tai64n.encode(time) > tai64n.ZERO


@pytest.mark.parametrize("time", [-1, 2**62 * SECOND, 2**200])
def test_what_is_no_time_is_refused(time: int) -> None:
    with pytest.raises(LocalProtocolError):
        tai64n.encode(time)
    with pytest.raises(LocalProtocolError):
        Timestamper(lambda: 0, floor=time)


@given(st.lists(st.integers(-(10**18), 4 * 10**18), min_size=2, max_size=50), st.integers(0, 3 * 10**18))
def test_timestamps_grow_however_the_clock_jumps(clock: list[int], floor: int) -> None:
    readings = iter(clock)
    stamper = Timestamper(lambda: next(readings), floor)
    stamps = [stamper() for _ in clock]
    assert stamps[0] > tai64n.encode(floor)
    assert all(earlier < later for earlier, later in zip(stamps, stamps[1:], strict=False))


def test_a_standing_clock_moves_by_one_grain_across_the_second() -> None:
    stamper = Timestamper(lambda: 5 * SECOND)
    stamps = [stamper() for _ in range(61)]
    assert stamps[0] == tai64n.encode(5 * SECOND)
    assert stamps[59] == tai64n.encode(5 * SECOND + 59 * 2**24)
    assert stamps[60] == tai64n.encode(6 * SECOND)


def test_highest_is_the_floor_of_the_next_run() -> None:
    first = Timestamper(lambda: 7 * SECOND)
    assert first.highest == 0
    last = first()
    second = Timestamper(lambda: 3 * SECOND, floor=first.highest)
    assert second() > last


def test_a_clock_that_goes_right_is_followed() -> None:
    readings = iter([SECOND, 100 * SECOND, 2 * SECOND, 200 * SECOND])
    stamper = Timestamper(lambda: next(readings))
    assert [stamper() for _ in range(4)][3] == tai64n.encode(200 * SECOND)
