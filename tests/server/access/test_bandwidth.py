"""So many bytes per second: in virtual time where it is numbers, and between real sockets where it is waiting."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.server.access.bandwidth import BURST, Bandwidth, Pace


@given(
    st.lists(st.tuples(st.integers(1, 65536), st.floats(0.0, 0.05)), min_size=1, max_size=200), st.integers(8000, 10**8)
)
def test_who_waits_as_told_is_never_faster(pieces: list[tuple[int, float]], rate: int) -> None:
    bandwidth = Bandwidth(rate)
    now, sent = 0.0, 0
    for size, pause in pieces:
        now += bandwidth.wait(now)
        sent += size
        bandwidth.passed(size, now)
        assert sent <= rate * (now + BURST) + size + 1  # the last piece may begin when there is anything left
        now += pause


@given(st.integers(1, 5), st.integers(8000, 10**8))
def test_who_always_has_something_gets_all_of_it(users: int, rate: int) -> None:
    bandwidth = Bandwidth(rate)
    now, sent, piece = 0.0, 0, rate // 20
    while now < 20.0:
        for _ in range(users):
            bandwidth.passed(piece, now)
            sent += piece
        now += bandwidth.wait(now)
    assert sent == pytest.approx(rate * 20, rel=0.05)


def test_the_tighter_of_two_counts() -> None:
    async def main() -> None:
        wide, tight = Bandwidth(1e9), Bandwidth(1e6)
        pace = Pace((wide, tight))
        assert pace.piece == 50_000 and Pace((wide,)).piece == 65536 and Pace((Bandwidth(8000),)).piece == 2048
        taken = sum(pace.take(1000) for _ in range(1000))
        assert 100 <= taken <= 150  # 0.1 s of the tight one, and what these calls took
        assert wide.wait(anyio.current_time()) == 0.0

    anyio.run(main)
