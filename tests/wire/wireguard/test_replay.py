from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.wireguard.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW
from overlay.wire.wireguard.replay import ReplayWindow


class SetModel:
    """What the window must do, said with a set of everything ever seen."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.newest = 0

    def accept(self, counter: int) -> bool:
        if counter >= REJECT_AFTER_MESSAGES or self.newest - counter > REPLAY_WINDOW or counter in self.seen:
            return False
        self.seen.add(counter)
        self.newest = max(self.newest, counter)
        return True


near = st.integers(0, 3 * REPLAY_WINDOW)
edges = st.sampled_from(
    [edge + delta for edge in (0, 64, 8128, 8192, 16256, 16320, 2**32, 2**60) for delta in (-64, -1, 0, 1, 63, 64)]
).filter(lambda counter: counter >= 0)
anywhere = st.integers(0, 2**64 - 1)


@given(st.lists(near | edges | anywhere, max_size=60))
def test_it_judges_like_a_set(counters: list[int]) -> None:
    window, model = ReplayWindow(), SetModel()
    for counter in counters:
        expected = model.accept(counter)
        assert window.check(counter) == expected
        assert window.accept(counter) == expected
        assert not window.check(counter)


@given(st.integers(0, 2**60), st.lists(st.integers(-2 * REPLAY_WINDOW, 2 * REPLAY_WINDOW), max_size=100))
def test_it_judges_like_a_set_around_a_moving_middle(start: int, steps: list[int]) -> None:
    window, model = ReplayWindow(), SetModel()
    for step in [0, *steps]:
        counter = max(0, max(start, model.newest) + step)
        assert window.accept(counter) == model.accept(counter)


@given(st.lists(st.tuples(near | edges | anywhere, st.integers(0, 200)), max_size=30))
def test_many_at_once_are_judged_like_one_by_one(spans: list[tuple[int, int]]) -> None:
    window, one_by_one = ReplayWindow(), ReplayWindow()
    for first, count in spans:
        new = window.all_new(first, count)
        assert new == (first > one_by_one._newest and first + count <= REJECT_AFTER_MESSAGES)
        if new:
            window.accept_all(first, count)
            assert all(one_by_one.accept(counter) for counter in range(first, first + count))
        else:
            assert window.accept(first) == one_by_one.accept(first)
        assert window._newest == one_by_one._newest
        for counter in (first - 1, first, first + count - 1, first + count):
            assert window.check(max(0, counter)) == one_by_one.check(max(0, counter))


def test_a_row_longer_than_the_window() -> None:
    window = ReplayWindow()
    window.accept_all(1, 3 * REPLAY_WINDOW)
    assert not any(window.check(counter) for counter in range(3 * REPLAY_WINDOW + 1))
    assert window.check(3 * REPLAY_WINDOW + 1)


@given(st.permutations(range(200)))
def test_within_the_window_any_order_is_accepted_once(order: list[int]) -> None:
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in order)
    assert not any(window.accept(counter) for counter in order)


def test_the_window_is_8128_wide() -> None:
    for newest in (REPLAY_WINDOW, REPLAY_WINDOW + 1, REPLAY_WINDOW + 63, 10_000_000):
        window = ReplayWindow()
        assert window.accept(newest)
        assert window.accept(newest - REPLAY_WINDOW)
        assert not window.accept(newest - REPLAY_WINDOW - 1)


def test_a_jump_over_the_whole_ring_forgets_what_is_behind_and_nothing_more() -> None:
    window = ReplayWindow()
    for counter in range(0, 20_000, 7):
        assert window.accept(counter)
    assert window.accept(1_000_000)
    assert all(window.accept(counter) for counter in range(1_000_000 - REPLAY_WINDOW, 1_000_000))


def test_the_limit_of_counters() -> None:
    assert REJECT_AFTER_MESSAGES == 2**64 - 2**13 - 1
    window = ReplayWindow()
    assert not window.check(REJECT_AFTER_MESSAGES)
    assert not window.accept(REJECT_AFTER_MESSAGES)
    assert window.accept(0)  # the refusal changed nothing
    assert window.accept(REJECT_AFTER_MESSAGES - 1)
    assert not window.accept(2**64 - 1)


def test_check_changes_nothing() -> None:
    window = ReplayWindow()
    assert window.check(100_000)
    assert window.accept(5)
