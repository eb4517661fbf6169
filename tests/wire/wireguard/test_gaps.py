from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.wireguard.constants import REPLAY_WINDOW
from overlay.wire.wireguard.gaps import GapWindow


def test_nothing_is_unseen_where_everything_came() -> None:
    window = GapWindow()
    for counter in range(300):
        assert window.accept(counter)
    assert window.newest == 299
    assert window.unseen(0, 300) == 0
    assert window.unseen(5, 5) == window.unseen(6, 5) == 0


def test_what_is_missing_is_told_and_taken_back_when_it_comes_late() -> None:
    window = GapWindow()
    for counter in (0, 1, 4, 200):
        window.accept(counter)
    assert window.unseen(0, 5) == 0b01100
    assert window.unseen(63, 130) == (1 << 67) - 1
    window.accept(3)
    assert window.unseen(0, 5) == 0b00100


def test_a_window_far_from_zero_knows_its_last_counters_only() -> None:
    window = GapWindow()
    window.accept(1_000_000)
    assert window.oldest == 1_000_000 - REPLAY_WINDOW
    assert window.unseen(window.oldest, 1_000_000).bit_count() == REPLAY_WINDOW


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=60))
def test_it_agrees_with_a_set(counters: list[int]) -> None:
    window = GapWindow()
    seen = {counter for counter in counters if window.accept(counter)}
    missing = window.unseen(window.oldest, window.newest + 1)
    for position in range(window.newest + 1 - window.oldest):
        assert bool(missing >> position & 1) == (window.oldest + position not in seen)
