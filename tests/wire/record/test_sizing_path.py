"""Sizer, cutter, writer, reader and meter together over bad paths, in virtual time."""

import pytest

from tests.wire.record.lossy_path import LossyPath, Totals

WIREGUARD_PAYLOAD = 1420 - 52
WIREGUARD_WIRE = 1420 + 32 + 42
"""Bytes per datagram of a stock WireGuard tunnel with its usual MTU, counted as `lossy_path` counts ours."""


def goodput(totals: Totals) -> float:
    return totals.delivered / totals.wire


def wireguard(loss: float) -> float:
    return (1 - loss) * WIREGUARD_PAYLOAD / WIREGUARD_WIRE


def test_a_clean_path_carries_whole_superpackets_and_is_reported_once_a_second() -> None:
    path = LossyPath()
    totals = path.flow(4.0)
    assert path.sizer.whole
    assert path.least(0.0) == 46
    assert goodput(totals) > 0.95
    assert 3 <= len(path.reports) <= 4
    path.clock.advance(60.0)
    assert len(path.reports) <= 5


@pytest.mark.parametrize(
    ("loss", "least", "most"), [(0.001, 8, 17), (0.003, 4, 9), (0.01, 2, 4), (0.05, 1, 1)], ids=str
)
def test_random_loss_settles_where_goodput_is_best(loss: float, least: int, most: int) -> None:
    path = LossyPath(loss=loss, seed=11)
    path.flow(2.0)
    before = path.clock.now
    totals = path.flow(4.0)
    sizes = [size for when, size in path.sizes if when >= before]
    assert least <= min(sizes)
    assert max(sizes) <= most
    if loss <= 0.01:
        assert goodput(totals) >= wireguard(loss)


def test_whole_superpackets_would_be_far_behind_at_one_percent() -> None:
    path = LossyPath(loss=0.01)
    path.back.cut()  # no report comes
    assert goodput(path.flow(1.0)) < 0.75 * wireguard(0.01)


def test_loss_that_begins_is_felt_within_half_a_second() -> None:
    path = LossyPath()
    path.flow(3.0)
    path.forth.loss = 0.01
    before = path.clock.now
    path.flow(1.0)
    assert path.least(0.0) <= 5
    assert min(when for when, size in path.sizes if size <= 12) - before < 0.5


def test_after_loss_that_stops_the_size_grows_slowly_and_up_to_whole_superpackets() -> None:
    path = LossyPath(loss=0.02, seed=3)
    path.flow(2.0)
    assert path.sizer.fragments <= 2
    path.forth.loss = path.back.loss = 0.0
    stopped = path.clock.now
    path.flow(3.0)
    assert 2 < path.sizer.fragments <= 16
    sizes = [size for when, size in path.sizes if when >= stopped + 1.5]
    assert sizes == sorted(sizes)
    path.flow(20.0)
    assert path.sizer.whole


def test_bursts_of_loss_cost_no_more_than_what_they_take() -> None:
    path = LossyPath(seed=5)
    delivered = wire = 0
    for _ in range(6):
        path.forth.loss = 0.0
        calm = path.flow(0.98)
        path.forth.loss = 0.5
        burst = path.flow(0.02)
        delivered += calm.delivered + burst.delivered
        wire += calm.wire + burst.wire
    lost = path.forth.fates["lost"] / path.forth.fates["sent"]
    assert 0.005 < lost < 0.02
    assert goodput(Totals(delivered, wire)) >= wireguard(lost)


@pytest.mark.parametrize(("jitter", "reorder", "reorder_by"), [(0.004, 0.0, 0.0), (0.02, 0.0, 0.0), (0.0, 0.02, 0.03)])
def test_reordering_and_duplicates_are_no_loss(jitter: float, reorder: float, reorder_by: float) -> None:
    path = LossyPath(jitter=jitter)
    path.forth.reorder, path.forth.reorder_by, path.forth.duplicate = reorder, reorder_by, 0.01
    path.flow(3.0)
    assert path.sizer.whole
    assert path.reports
    for _, report in path.reports:
        assert report.broken == report.gaps == 0


def test_reordered_single_datagrams_are_no_loss() -> None:
    path = LossyPath(loss=0.1)
    path.flow(0.5)
    assert path.sizer.fragments == 1
    path.back.cut()  # so that it stays
    path.forth.loss = 0.0
    path.forth.jitter = 0.02
    path.flow(0.6)  # what was lost before is told
    told = path.reports[-1][1].gaps
    path.flow(2.0)
    assert path.reports[-1][1].gaps == told


def test_what_reassembly_cannot_put_in_order_is_loss_and_its_size_is_tried_ever_more_rarely() -> None:
    # A tick's datagrams leave at one instant, and jitter shuffles them: small records, 16 and more at once.
    path = LossyPath(loss=0.1, seed=2)
    path.flow(0.5)
    path.forth.loss = path.back.loss = 0.0
    path.forth.jitter = 0.02
    path.flow(20.0)
    before = path.reports[-1][1].broken
    totals = path.flow(10.0)
    assert path.reports[-1][1].broken - before < 0.05 * totals.wire / 3000  # of the records
    assert goodput(totals) > 0.85


def test_lost_reports_only_delay() -> None:
    path = LossyPath(loss=0.01, seed=9)
    path.back.loss = 0.7
    path.flow(4.0)
    assert path.sizer.fragments in (2, 3, 4)
