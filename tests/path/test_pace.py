"""How often paths are asked: often where few peers talk, and together no more than so often where many do."""

import pytest

from overlay.path import timing
from overlay.path.pace import Pace


def asked(pace: Pace, paths: int, start: float, seconds: float) -> int:
    """Pings of so many paths that are all in use meanwhile."""
    due = [start + number * 0.0001 for number in range(paths)]
    count = 0
    for step in range(int(seconds * 100)):
        now = start + step / 100
        for number, when in enumerate(due):
            if now >= when:
                pace.pinged(now)
                due[number] = now + pace.interval
                count += 1
    return count


@pytest.mark.parametrize("paths", [1, 2, 90])
def test_few_are_asked_four_times_a_second(paths: int) -> None:
    pace = Pace()
    asked(pace, paths, 0.0, 5.0)
    assert pace.interval == pytest.approx(timing.LIVENESS, rel=0.1)


@pytest.mark.parametrize("paths", [300, 1000])
def test_many_are_asked_together_no_more_often_than_so(paths: int) -> None:
    pace = Pace()
    asked(pace, paths, 0.0, 10.0)
    count = asked(pace, paths, 10.0, 20.0) - paths  # all at once at its start
    assert count / 20.0 == pytest.approx(timing.LIVENESS_RATE, rel=0.25)


def test_no_path_is_asked_more_rarely_than_an_idle_one() -> None:
    pace = Pace()
    asked(pace, 3000, 0.0, 10.0)
    assert pace.interval == timing.HEARTBEAT


def test_when_the_crowd_is_silent_the_others_are_asked_often_again() -> None:
    pace = Pace()
    asked(pace, 1000, 0.0, 10.0)
    assert pace.interval > 2.0
    asked(pace, 2, 10.0, 10.0)
    assert pace.interval == pytest.approx(timing.LIVENESS, rel=0.1)
