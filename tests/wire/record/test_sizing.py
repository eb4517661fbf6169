"""The sizer by numbers: the best size, and how it is approached."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.record.frames import MAX_RECORD
from overlay.wire.record.reports import LossReport
from overlay.wire.record.sizing import LOSS_WEIGHT, RECORD_COST, SETTLING, SLACK, RecordSizer, best_size

PAYLOAD = 1428


class Receiver:
    """Totals as a `LossMeter` would report them."""

    def __init__(self, sizer: RecordSizer) -> None:
        self.sizer = sizer
        self.now = 100.0
        self.epoch = 1
        self.datagrams = self.records = self.broken = self.gaps = 0
        self.report()

    def report(self) -> LossReport:
        report = LossReport(
            self.epoch,
            self.datagrams & 0xFFFFFFFF,
            self.records & 0xFFFFFFFF,
            self.broken & 0xFFFFFFFF,
            self.gaps & 0xFFFFFFFF,
        )
        self.sizer.report_received(report, self.now)
        return report

    def take(
        self, datagrams: int, *, per_record: float = 0.0, broken: int = 0, gaps: int = 0, after: float = 0.1
    ) -> LossReport:
        """One more report: records of `per_record` datagrams, of the present size if 0."""
        self.now += after
        self.datagrams += datagrams
        self.records += max(0, int(datagrams / (per_record or self.sizer.fragments)) - broken)
        self.broken += broken
        self.gaps += gaps
        return self.report()


@pytest.mark.parametrize(
    ("loss", "size"), [(0.0, inf), (1e-4, 51), (3e-4, 24), (1e-3, 11), (3e-3, 5), (1e-2, 2), (2e-2, 1), (0.5, 1)]
)
def test_the_best_size(loss: float, size: float) -> None:
    best = best_size(loss, PAYLOAD)
    assert best == size if size == inf else int(best) == size


@given(st.floats(1e-6, 0.02), st.integers(500, 9000))
def test_it_costs_no_more_than_the_slack_above_the_least(loss: float, payload: int) -> None:
    def waste(size: float) -> float:
        return LOSS_WEIGHT * loss * size + RECORD_COST / (payload * size)

    best = best_size(loss, payload)
    least = min(waste(size) for size in range(1, 2000))
    assert best == 1.0 or waste(best) <= least + SLACK + 1e-9


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_more_loss_never_makes_larger_records(one: float, other: float) -> None:
    assert (best_size(one, PAYLOAD) <= best_size(other, PAYLOAD)) == (one >= other) or (
        best_size(one, PAYLOAD) == best_size(other, PAYLOAD)
    )


def test_a_new_path_takes_whole_superpackets() -> None:
    sizer = RecordSizer(PAYLOAD)
    assert sizer.whole
    assert sizer.fragments == 46
    assert sizer.room == MAX_RECORD
    assert sizer.event_rate == 0.0


def test_the_first_report_says_where_to_count_from() -> None:
    sizer = RecordSizer(PAYLOAD)
    sizer.report_received(LossReport(1, 1000, 1000, 900, 900), 0.0)
    assert sizer.whole
    sizer.report_received(LossReport(2, 1000, 1000, 900, 900), 1.0)
    assert sizer.whole


def test_one_lost_record_halves_the_size_at_the_most_and_many_bring_it_down_at_once() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(200, broken=1)
    assert sizer.fragments == 23
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=8)
    assert sizer.fragments == 3
    assert sizer.room == 3 * PAYLOAD - 16


def test_one_lost_record_among_very_many_says_nothing() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    for _ in range(10):
        receiver.take(9000)
    receiver.take(9000, broken=1)
    assert sizer.whole


def test_growth_doubles_the_size_in_a_second_at_the_most_whatever_the_evidence() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=100)
    assert sizer.fragments == 1
    sizes = []
    for _ in range(7):
        receiver.take(1_000_000, after=1.0)
        sizes.append(sizer.fragments)
    assert sizes == [2, 4, 8, 16, 32, 46, 46]
    assert sizer.whole
    assert sizer.room == MAX_RECORD


def test_growth_that_is_punished_is_tried_again_more_slowly_and_forgiven_in_time() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=100)
    pauses = []
    for _ in range(6):
        began = receiver.now
        while sizer.fragments < 4:
            receiver.take(1_000_000, after=1.0)
        pauses.append(receiver.now - began)
        for _ in range(4):
            receiver.take(1000, broken=100)
    assert pauses == sorted(pauses)
    assert pauses[0] == 2.0
    assert 20.0 < pauses[-1] <= 32.0
    for _ in range(600):
        receiver.take(100, broken=50, after=1.0)
    for _ in range(6):
        receiver.take(1_000_000, after=1.0)
    assert sizer.whole


def test_a_pause_is_no_evidence() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=100)
    receiver.take(1_000_000, after=3600.0)
    assert sizer.fragments <= 4


def test_growth_needs_datagrams_not_only_time() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=100)
    for _ in range(60):
        receiver.take(40, after=1.0)
    assert sizer.fragments <= 4


def test_a_size_near_the_best_stays() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    for _ in range(50):
        receiver.take(9000, per_record=10, broken=9)
    settled = sizer.fragments
    assert settled in (11, 12, 13)
    for broken in [7, 11, 8, 12, 6, 9, 10, 8] * 4:
        receiver.take(9000, per_record=10, broken=broken)
        assert sizer.fragments == settled


def test_gaps_between_single_datagrams_are_loss() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(2000, per_record=1, gaps=100)
    assert sizer.fragments == 1
    assert sizer.event_rate == pytest.approx(0.05)


def test_whole_records_lost_in_full_buffers_are_nothing_that_a_smaller_size_would_mend() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    for _ in range(100):
        receiver.take(9200, per_record=46, gaps=2)  # one of a hundred
        assert sizer.whole


def test_a_broken_record_is_a_gap_too_and_counts_once() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    for _ in range(20):
        receiver.take(1000, per_record=2, broken=10, gaps=10)
    assert sizer.event_rate == pytest.approx(0.01)


def test_old_repeated_and_reordered_reports_change_nothing() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    first = receiver.take(1000, broken=1)
    second = receiver.take(1000, broken=1)
    size, rate = sizer.fragments, sizer.event_rate
    for report in (first, second, first):
        sizer.report_received(report, receiver.now + 1.0)
    assert (sizer.fragments, sizer.event_rate) == (size, rate)


def test_a_lost_report_is_made_good_by_the_next() -> None:
    lost, whole = RecordSizer(PAYLOAD), RecordSizer(PAYLOAD)
    for sizer in (lost, whole):
        sizer.report_received(LossReport(1, 0, 0, 0, 0), 0.0)
    whole.report_received(LossReport(1, 5000, 500, 5, 5), 0.1)
    for sizer in (lost, whole):
        sizer.report_received(LossReport(1, 10_000, 1000, 10, 10), 0.2)
    assert lost.fragments == pytest.approx(whole.fragments, abs=2)


def test_totals_go_round() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.epoch = 2
    receiver.datagrams = receiver.records = receiver.broken = 0xFFFFFFF0
    receiver.report()
    receiver.take(1000, broken=20)
    assert sizer.event_rate == pytest.approx(0.02)


def test_another_path_starts_anew_and_what_is_still_told_of_the_old_one_is_ignored() -> None:
    sizer = RecordSizer(PAYLOAD)
    receiver = Receiver(sizer)
    receiver.take(1000, broken=100)
    sizer.path_changed(1412, receiver.now)
    assert sizer.whole
    assert sizer.event_rate == 0.0
    receiver.take(1000, broken=100, after=SETTLING / 2)
    assert sizer.whole
    receiver.take(1000, broken=100, after=SETTLING)
    assert sizer.fragments == 1
    assert sizer.room == 1412 - 16


def test_smaller_datagrams_on_the_same_path_keep_what_was_learnt() -> None:
    sizer = RecordSizer(PAYLOAD)
    sizer.payload_changed(532)
    assert sizer.whole
    assert sizer.fragments == 124
    receiver = Receiver(sizer)
    receiver.take(10_000, broken=100)
    size = sizer.fragments
    assert size < 10
    sizer.payload_changed(PAYLOAD)
    assert sizer.fragments == size
    assert sizer.room == size * PAYLOAD - 16
    sizer.payload_changed(PAYLOAD)
    assert sizer.fragments == size
