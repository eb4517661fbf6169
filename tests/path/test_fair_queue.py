"""Deficit round robin in virtual time: shares, order, bounds, rates."""

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.path.budget import Budget
from overlay.path.fair_queue import ITEM_OVERHEAD, FairQueue

QUANTUM = 1000
PLENTY = 1 << 40

Item = tuple[int, int]  # flow, serial number


def queue(flow_limit: int = PLENTY, total_limit: int = PLENTY) -> FairQueue[Item]:
    return FairQueue(QUANTUM, flow_limit, total_limit)


def drain(waiting: FairQueue[Item], now: float = 0.0) -> list[Item]:
    found = []
    while (item := waiting.head(now)) is not None:
        assert waiting.head(now) is item, "asking again gives the same"
        waiting.pop(now)
        found.append(item)
    return found


sizes = st.integers(1, QUANTUM)


def test_who_sends_much_waits_behind_itself() -> None:
    waiting = queue()
    for serial in range(100):
        waiting.push(1, (1, serial), QUANTUM, 0.0)
    waiting.push(2, (2, 0), 10, 0.0)
    assert (2, 0) in drain(waiting)[:2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), sizes), max_size=200))
def test_all_comes_out_and_each_flow_in_order(pushed: list[tuple[int, int]]) -> None:
    waiting = queue()
    for serial, (key, size) in enumerate(pushed):
        waiting.push(key, (key, serial), size, 0.0)
    found = drain(waiting)
    assert len(found) == len(pushed) and waiting.held == 0 and len(waiting) == 0
    for key in range(1, 6):
        serials = [serial for flow, serial in found if flow == key]
        assert serials == sorted(serials) and key not in waiting


@settings(deadline=None)
@given(st.lists(st.lists(sizes, min_size=40, max_size=40), min_size=2, max_size=6), st.integers(1, 60))
def test_flows_that_always_have_something_waiting_get_the_same(flows: list[list[int]], served: int) -> None:
    """At any moment, whatever the sizes: within two turns of each other (Shreedhar and Varghese 1995, theorem 2)."""
    waiting = queue()
    for key, items in enumerate(flows):
        for serial, size in enumerate(items):
            waiting.push(key, (key, serial), size, 0.0)
    sent = [0] * len(flows)
    for _ in range(served):
        head = waiting.head(0.0)
        assert head is not None
        key, serial = head
        waiting.pop(0.0)
        sent[key] += flows[key][serial]
        if key not in waiting:
            return
        assert max(sent) - min(sent) <= 2 * QUANTUM + QUANTUM


@settings(deadline=None)
@given(st.integers(1, 8), sizes, st.integers(0, 30))
def test_a_newcomer_waits_one_round(busy: int, size: int, before: int) -> None:
    waiting = queue()
    for key in range(busy):
        for serial in range(50):
            waiting.push(key, (key, serial), size, 0.0)
    for _ in range(before % (50 * busy)):
        waiting.head(0.0)
        waiting.pop(0.0)
    waiting.push(99, (99, 0), 1, 0.0)
    ahead = 0
    while (head := waiting.head(0.0)) != (99, 0):
        assert head is not None
        waiting.pop(0.0)
        ahead += size
    assert ahead <= busy * 2 * QUANTUM


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), sizes, st.booleans()), max_size=300))
def test_bounds_hold_whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    waiting = queue(flow_limit=5000, total_limit=12_000)
    held: dict[int, list[int]] = {}
    for serial, (key, size, leaves) in enumerate(steps):
        mine = held.setdefault(key, [])
        if waiting.room(key, size):
            waiting.push(key, (key, serial), size, 0.0)
            mine.append(size + ITEM_OVERHEAD)
        if leaves and (head := waiting.head(0.0)) is not None:
            waiting.pop(0.0)
            held[head[0]].pop(0)
        assert waiting.held == sum(map(sum, held.values())) <= 12_000
        assert all(sum(each) <= 5000 for each in held.values())
        assert len(waiting) == len([each for each in held.values() if each])


@settings(deadline=None)
@given(st.integers(1, 50))
def test_flows_that_want_all_leave_room_for_the_next(greedy: int) -> None:
    total = 200 * (100 + ITEM_OVERHEAD)
    waiting = queue(total_limit=total)
    pushed = True
    while pushed:
        pushed = False
        for key in range(greedy):
            if waiting.room(key, 100):
                waiting.push(key, (key, 0), 100, 0.0)
                pushed = True
    assert waiting.room(99, 100)
    assert waiting.held >= total * greedy / (greedy + 1) - greedy * (100 + ITEM_OVERHEAD)


def test_a_limit_of_its_own() -> None:
    waiting = queue()
    assert waiting.room(1, 100, 100 + ITEM_OVERHEAD) and not waiting.room(1, 101, 100 + ITEM_OVERHEAD)


def test_what_was_not_sent_costs_no_turn_and_no_tokens() -> None:
    waiting, budget = queue(), Budget(1.0, QUANTUM)
    for serial in range(2):
        waiting.push(1, (1, serial), QUANTUM, 0.0, budget)
    assert waiting.head(0.0) == (1, 0)
    waiting.pop(0.0, sent=False)
    assert waiting.head(0.0) == (1, 1)
    waiting.pop(0.0)
    assert budget.available_at(0.0, 1.0) > 0.0


def test_a_flow_that_is_removed_is_gone_and_the_others_go_on() -> None:
    waiting, budget = queue(), Budget(1.0, QUANTUM)
    assert budget.take(0.0, QUANTUM)
    waiting.push(1, (1, 0), 10, 0.0, budget)
    waiting.push(2, (2, 0), 10, 0.0)
    waiting.push(3, (3, 0), 10, 0.0)
    waiting.push(3, (3, 1), 10, 0.0)
    assert waiting.head(0.0) == (2, 0)  # the first has no tokens
    assert waiting.next_timeout() is not None
    assert waiting.remove(3) == [(3, 0), (3, 1)]
    assert waiting.remove(1) == [(1, 0)] and waiting.next_timeout() is None
    assert waiting.remove(9) == []
    assert drain(waiting) == [(2, 0)] and waiting.held == 0


# --- rates ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(sizes, st.floats(0.0, 2.0)), min_size=1, max_size=80),
    st.floats(100.0, 1e6),
    st.floats(0.0, 1e6),
)
def test_a_rate_holds_in_every_interval_and_is_used(
    arrivals: list[tuple[int, float]], rate: float, start: float
) -> None:
    """Sent at the promised times: never more than burst + rate × time in any interval, nor later than needed."""
    waiting, budget = queue(), Budget(rate, QUANTUM)
    now, sent = start, [(start, 0)]

    def send_all() -> None:
        while (head := waiting.head(now)) is not None:
            waiting.pop(now)
            sent.append((now, head[1]))

    for size, pause in arrivals:
        waiting.push(1, (1, size), size, now, budget)
        send_all()
        until = now + pause
        while (timeout := waiting.next_timeout()) is not None and timeout <= until:
            assert timeout > now
            now = timeout
            send_all()
            assert sent[-1][0] == now, "the promise is kept"
        now = max(now, until)
        send_all()
    while (timeout := waiting.next_timeout()) is not None:
        now = timeout
        send_all()
    assert sum(size for _, size in sent) == sum(size for size, _ in arrivals)
    slack = 1e-6 * max(1.0, start) * rate  # what floats of that size can tell apart
    for first in range(len(sent)):
        total = 0
        for when, size in sent[first:]:
            total += size
            assert total <= QUANTUM + rate * (when - sent[first][0]) + slack


def test_a_flow_that_waits_for_tokens_takes_nobodys_turn() -> None:
    waiting, slow = queue(), Budget(100.0, QUANTUM)
    for serial in range(20):
        waiting.push(1, (1, serial), 500, 0.0, slow)
        waiting.push(2, (2, serial), 500, 0.0)
    found = drain(waiting)
    assert [flow for flow, _ in found].count(1) == 2  # its burst
    assert [flow for flow, _ in found].count(2) == 20
    assert not waiting.ready and 1 in waiting
    timeout = waiting.next_timeout()
    assert timeout is not None and 5.0 < timeout < 5.01
    assert drain(waiting, timeout) == [(1, 2)]


def test_a_flow_that_has_tokens_again_goes_behind_those_that_wait() -> None:
    waiting, slow = queue(), Budget(100.0, QUANTUM)
    assert slow.take(0.0, QUANTUM)
    waiting.push(1, (1, 0), 500, 0.0, slow)
    assert waiting.head(0.0) is None
    waiting.push(2, (2, 0), 500, 0.0)
    assert waiting.ready
    assert drain(waiting, 6.0) == [(2, 0), (1, 0)]
