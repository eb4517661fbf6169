"""The search for a path's datagram size, in virtual time over a simulated path."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.path.budget import Budget
from overlay.path.pmtu import (
    BASE_PLPMTU,
    CONFIRMATION_DATAGRAMS,
    ERROR_PAUSE,
    GRANULARITY,
    LADDER,
    MAX_PLPMTU,
    MAX_PROBES,
    MIN_PLPMTU,
    PMTU_RAISE_TIMER,
    PROBE_BURST,
    PROBE_RATE,
    QUIET,
    STEPS,
    PathMtu,
    State,
)
from overlay.testing import Link, VirtualClock

INITIAL = 1444
NARROW = 548


class PathUnderTest:
    """A sender of data, a path of so many bytes, and a peer at its end that answers pings.

    `interface`: what the sender's own kernel takes. `mtu`: what the path takes: more is lost without a word.
    """

    def __init__(
        self, mtu: int, *, interface: int = 65_507, latency: float = 0.010, loss: float = 0.0, seed: int = 0
    ) -> None:
        self.clock = VirtualClock()
        random = Random(seed)
        self.machine = PathMtu(INITIAL, Budget(PROBE_RATE, PROBE_BURST), random.randbytes)
        self.interface = interface
        self.total = 0
        self.sent: list[tuple[float, int]] = []  # probes
        self.sizes: list[tuple[float, int]] = [(self.clock.now, INITIAL)]  # what data had, from when
        self.way = Link(self.clock, self._ping_arrives, latency=latency, loss=loss, mtu=mtu, seed=seed + 1)
        self.back = Link(self.clock, self._pong_arrives, latency=latency, loss=loss, seed=seed + 2)
        self.clock.watch(self, self.drain)

    def next_timeout(self) -> float | None:
        return None if self.machine.asleep else self.machine.timeout

    def handle_timeout(self, now: float) -> None:
        self.machine.handle_timeout(self.total, now)

    def _ping_arrives(self, datagram: bytes) -> None:
        self.back.send(datagram[:12])

    def _pong_arrives(self, txid: bytes) -> None:
        self.machine.pong_received(txid, self.clock.now)
        self.drain()

    def drain(self) -> None:
        while probes := self.machine.probes_to_send():
            for size, txid in probes:
                if size > self.interface:
                    self.machine.refused(size, self.clock.now)
                else:
                    self.sent.append((self.clock.now, size))
                    self.way.send(txid.ljust(size, b"\0"))
        if self.machine.size != self.sizes[-1][1]:
            self.sizes.append((self.clock.now, self.machine.size))

    def send(self, size: int = 100_000) -> None:
        """Data goes out, as the engine reports it."""
        self.total += size
        if self.machine.size > self.interface:
            self.machine.refused(self.machine.size, self.clock.now)
        if self.machine.asleep:
            self.machine.data_sent(self.total, self.clock.now)
        self.drain()

    def talk(self, seconds: float, *, every: float = 0.1, size: int = 100_000) -> None:
        for _ in range(round(seconds / every)):
            self.send(size)
            self.clock.advance(every)

    def talk_until(self, done: Callable[[], bool], within: float) -> float:
        """Data until `done()`; returns how long that took, s."""
        start = self.clock.now
        while not done():
            assert self.clock.now - start < within, (self.machine.state, self.machine.size)
            self.talk(0.01, every=0.01, size=10_000)
        return self.clock.now - start

    def narrow(self, mtu: int) -> None:
        self.way.mtu = mtu


def complete(path: PathUnderTest, within: float = 60.0) -> float:
    return path.talk_until(lambda: path.machine.state is State.COMPLETE, within)


@pytest.mark.parametrize("step", STEPS)
def test_a_usual_size_is_found_exactly(step: int) -> None:
    path = PathUnderTest(step)
    complete(path)
    # Above it, the next step or the last gap of the search is all that was tried in vain.
    assert path.machine.size == step


@given(st.integers(MIN_PLPMTU, 1472))
def test_any_other_size_is_found_closely(mtu: int) -> None:
    path = PathUnderTest(mtu)
    complete(path)
    assert mtu - GRANULARITY < path.machine.size <= mtu


@given(st.integers(1473, MAX_PLPMTU + 1000))
def test_among_jumbo_frames_the_usual_sizes_are_found(mtu: int) -> None:
    path = PathUnderTest(mtu)
    complete(path)
    assert path.machine.size == max(step for step in STEPS if step <= mtu)


@given(st.integers(MIN_PLPMTU, 2000))
def test_our_own_interface_answers_at_once_and_costs_no_time(mtu: int) -> None:
    path = PathUnderTest(65_507, interface=mtu)
    assert complete(path) < 1.0
    assert path.machine.size <= mtu
    assert path.machine.size > mtu - GRANULARITY or mtu > 1472
    assert all(size <= mtu for _, size in path.sent)


@pytest.mark.parametrize(("mtu", "size"), [(1472, 1452), (1300, BASE_PLPMTU), (NARROW, NARROW)])
def test_one_round_trip_after_the_first_data_the_size_passes(mtu: int, size: int) -> None:
    """Whether larger ones pass or are lost in silence: nothing waits for a timer."""
    path = PathUnderTest(mtu, latency=0.040)
    path.send(1000)
    assert [probe for _, probe in path.sent] == list(LADDER)
    path.clock.advance(0.081)
    assert path.machine.size == size
    assert path.machine.state is State.SEARCH


@pytest.mark.parametrize(("before", "after"), [(1472, 1252), (1472, 600), (8972, 1400), (1472, NARROW)])
def test_a_black_hole_is_left_within_two_seconds_of_traffic(before: int, after: int) -> None:
    path = PathUnderTest(before)
    complete(path)
    assert path.machine.size == before
    path.narrow(after)
    assert path.talk_until(lambda: path.machine.size <= after, 3.0) < 2.0
    complete(path)
    assert after - GRANULARITY < path.machine.size <= after


def test_a_black_hole_is_found_though_little_gets_out() -> None:
    """TCP that has lost all it sent repeats a segment now and then."""
    path = PathUnderTest(1472)
    complete(path)
    path.clock.advance(60.0)
    path.narrow(1300)
    path.send(30_000)
    path.clock.advance(1.0)
    assert BASE_PLPMTU <= path.machine.size <= 1300


def test_a_path_that_grows_is_used_after_the_raise_timer() -> None:
    path = PathUnderTest(1252)
    complete(path)
    path.narrow(1472)
    path.talk(PMTU_RAISE_TIMER / 2, every=1.0)
    assert path.machine.size == 1252
    path.talk(PMTU_RAISE_TIMER / 2 + 5, every=1.0)
    assert path.machine.size == 1472


def test_after_a_long_silence_nothing_is_taken_for_known() -> None:
    path = PathUnderTest(1472)
    complete(path)
    path.clock.advance(2 * PMTU_RAISE_TIMER)
    path.narrow(1300)
    path.send()
    assert path.machine.state is State.BASE
    assert path.machine.size == INITIAL
    path.clock.advance(0.021)
    assert path.machine.size == BASE_PLPMTU


def test_no_data_no_probes_and_no_timer() -> None:
    path = PathUnderTest(1300)
    path.clock.advance(3600.0)
    assert path.sent == []
    path.send(100)
    path.clock.advance(QUIET + 1.0)
    count = len(path.sent)
    assert path.machine.asleep
    assert path.next_timeout() is None
    path.clock.advance(3600.0)
    assert len(path.sent) == count


def test_small_talk_is_not_probed_for() -> None:
    """A packet of 100 bytes a second for ten minutes: the path's size is found once, then hardly asked for."""
    path = PathUnderTest(1472)
    path.talk(20.0, every=1.0, size=100)
    path.sent.clear()
    path.talk(570.0, every=1.0, size=100)
    assert sum(size for _, size in path.sent) <= 57_000 / 3
    path = PathUnderTest(1472)
    complete(path)
    path.sent.clear()
    path.talk(600.0, every=30.0, size=100)
    assert len(path.sent) <= 1


def test_probes_of_a_busy_path_are_a_small_share_of_its_traffic() -> None:
    path = PathUnderTest(1472)
    complete(path)
    path.sent.clear()
    before = path.total
    path.talk(30.0, every=0.02, size=2_000)
    assert sum(size for _, size in path.sent) <= (path.total - before) / CONFIRMATION_DATAGRAMS
    path.sent.clear()
    path.talk(30.0, size=10_000_000)
    assert len(path.sent) <= 31


def test_what_comes_and_goes_is_probed_at_a_bounded_rate() -> None:
    """A new path to the same peer ten times a second."""
    budget, random = Budget(PROBE_RATE, PROBE_BURST), Random(0)
    asked = 0
    for turn in range(600):
        path = PathMtu(INITIAL, budget, random.randbytes)
        path.data_sent(1000, turn * 0.1)
        asked += len(path.probes_to_send())
    assert asked <= len(LADDER) * (60.0 * PROBE_RATE + PROBE_BURST + 1)


def test_nothing_is_answered_and_then_something_is() -> None:
    path = PathUnderTest(1472)
    path.way.cut()
    path.talk(10.0)
    assert path.machine.state is State.ERROR
    assert path.machine.size == MIN_PLPMTU
    assert [size for _, size in path.sizes] == [INITIAL, BASE_PLPMTU, MIN_PLPMTU]
    asked = len(path.sent)
    path.talk(20.0)
    assert len(path.sent) - asked <= 33, "it asks on, now and then"
    path.way.mend()
    assert path.talk_until(lambda: path.machine.size == 1472, 3.0) < ERROR_PAUSE + 0.2


def test_a_short_outage_does_not_change_what_is_known() -> None:
    path = PathUnderTest(1472)
    complete(path)
    path.way.cut()
    path.talk(1.5)
    path.way.mend()
    path.talk(3.0)
    assert path.machine.size == 1472
    assert len(path.sizes) <= 5


@pytest.mark.parametrize("seed", range(20))
def test_random_loss_is_not_taken_for_a_size(seed: int) -> None:
    path = PathUnderTest(1472, loss=0.02, seed=seed)
    path.talk(120.0)
    spent = [then - since for (since, size), (then, _) in zip(path.sizes, path.sizes[1:], strict=False) if size < 1400]
    assert path.machine.size >= 1452
    assert sum(spent) < 5.0


@given(st.integers(MIN_PLPMTU, MAX_PLPMTU), st.floats(0.0, 0.3), st.integers(0, 1000))
def test_what_data_is_given_has_passed_or_is_the_least(mtu: int, loss: float, seed: int) -> None:
    """After the first answer, data never has a size that the path has not just taken."""
    path = PathUnderTest(mtu, loss=loss, seed=seed)
    path.talk(30.0)
    for _, size in path.sizes:
        assert size <= mtu or size in (INITIAL, BASE_PLPMTU)
    answered = next((when for when, size in path.sizes if size <= mtu), None)
    if answered is not None:
        assert all(size <= mtu for when, size in path.sizes if when > answered)


def test_an_interface_that_becomes_narrow_is_noticed_with_the_next_data() -> None:
    path = PathUnderTest(1472, interface=1472)
    complete(path)
    path.interface = 1252
    path.send()
    assert path.machine.size == BASE_PLPMTU
    complete(path)
    assert path.machine.size == 1252
    path.interface = 400  # less than anything that we try
    path.send()
    assert path.machine.size == MIN_PLPMTU
    path.talk(60.0)
    assert path.machine.size == MIN_PLPMTU


def test_a_pong_to_no_probe_changes_nothing() -> None:
    path = PathUnderTest(1472)
    complete(path)
    before = (path.machine.size, path.machine.state)
    assert not path.machine.pong_received(bytes(12), path.clock.now)
    assert (path.machine.size, path.machine.state) == before


def test_an_answer_counts_once_and_not_for_ever() -> None:
    machine = PathMtu(INITIAL, Budget(PROBE_RATE, PROBE_BURST), Random(0).randbytes)
    machine.data_sent(1, 0.0)
    (largest, txid), *_ = machine.probes_to_send()
    assert machine.pong_received(txid, 0.1)
    assert machine.size == largest
    assert not machine.pong_received(txid, 0.1)
    (_, late), *_ = machine.probes_to_send()
    assert not machine.pong_received(late, 60.0)
    assert machine.size == largest


def test_a_size_fails_after_so_many_probes_and_no_fewer() -> None:
    path = PathUnderTest(1452)
    complete(path)
    tried = [size for _, size in path.sent if size == 1464]
    assert len(tried) == MAX_PROBES
    assert path.machine.size == 1452


def test_a_slow_path_is_given_time() -> None:
    path = PathUnderTest(1472, latency=0.9)
    path.talk(60.0)
    assert path.machine.size == 1472
    assert all(size in (INITIAL, BASE_PLPMTU) or size >= 1452 for _, size in path.sizes)


@given(st.lists(st.tuples(st.sampled_from(("data", "pong", "refused", "rest", "late")), st.integers(0, 9000))))
def test_whatever_is_reported_in_whatever_order(calls: list[tuple[str, int]]) -> None:
    """The size stays within its bounds, a sleeper has no timer, and time always moves on."""
    machine = PathMtu(INITIAL, Budget(PROBE_RATE, PROBE_BURST), Random(0).randbytes)
    now, total = 100.0, 0
    asked: list[tuple[int, bytes]] = []
    for call, number in calls:
        now += number / 10_000
        if call == "data":
            total += 1 + number * 100
            machine.data_sent(total, now)
        elif call == "pong" and asked:
            machine.pong_received(asked.pop(number % len(asked))[1], now)
        elif call == "refused":
            machine.refused(number, now)
        elif call == "rest":
            machine.rest(total)
        elif not machine.asleep:
            now = max(now, machine.timeout)
            machine.handle_timeout(total, now)
            assert machine.asleep or machine.timeout > now
        asked += machine.probes_to_send()
        assert not machine.waiting
        assert MIN_PLPMTU <= machine.size <= MAX_PLPMTU
        assert machine.asleep == (machine.timeout == float("inf"))
