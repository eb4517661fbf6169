"""Loss reports on the wire, and the meter that makes them, in virtual time."""

from dataclasses import dataclass

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.record.frames import FRAME_HEADER_SIZE, frames
from overlay.wire.record.reports import (
    INTERVAL,
    JUDGE_BACKLOG,
    MIN_DATAGRAMS,
    MIN_INTERVAL,
    REORDERING,
    LossMeter,
    LossReport,
    is_report,
    parse_report,
)
from overlay.wire.wireguard.gaps import GapWindow

REPORT = LossReport(epoch=0x01020304, datagrams=5, records=6, broken=7, gaps=0xFFFFFFFF)


@dataclass
class Reader:
    """The totals of a `RecordReader`."""

    completed: int = 0
    lost: int = 0


class Receiver:
    """One key pair and the peer's meter; `take` is what a batch does."""

    def __init__(self) -> None:
        self.meter = LossMeter()
        self.reader = Reader()
        self.window = GapWindow()
        self.meter.add(9, self.reader, self.window)

    def take(self, counters: range | list[int], now: float, *, datagrams: int | None = None, broken: int = 0) -> None:
        for counter in counters:
            assert self.window.accept(counter)
        self.reader.completed += len(counters)
        self.reader.lost += broken
        self.meter.observe(9, len(counters) if datagrams is None else datagrams, now)


def test_a_report_goes_round() -> None:
    plain = REPORT.encode()
    assert len(plain) == FRAME_HEADER_SIZE + 24
    assert is_report(plain)
    assert parse_report(memoryview(plain)) == REPORT


def test_it_is_a_frame_and_no_ip_packet() -> None:
    plain = memoryview(bytearray(REPORT.encode()))
    assert frames(plain) == [(0, len(plain))]
    with pytest.raises(RemoteProtocolError) as caught:
        virtio.validate(plain[4:14], plain[14:])
    assert caught.value.reason == "bad_ip_version"


def test_the_layout() -> None:
    plain = LossReport(1, 2, 3, 4, 5).encode()
    assert plain.hex() == "1800000000ff0000000000000000" + "01000000" + "0100000002000000030000000400000005000000"


def test_later_versions_may_say_more() -> None:
    plain = bytearray(REPORT.encode() + b"more")
    plain[0] += 4
    assert parse_report(plain) == REPORT
    plain[14] = 2
    assert is_report(plain)
    assert parse_report(plain) is None


@pytest.mark.parametrize("plain", [b"", b"\0" * 5, b"\0" * 14, REPORT.encode()[:4] + b"\0" + b"\1" + bytes(40)])
def test_packets_are_no_reports(plain: bytes) -> None:
    assert not is_report(plain)


@pytest.mark.parametrize(
    "plain",
    [
        REPORT.encode()[:13],
        REPORT.encode()[:14],
        REPORT.encode()[:-1],
        REPORT.encode() + REPORT.encode(),
        b"\x17" + REPORT.encode()[1:-1],
        bytes(5) + b"\xff" + bytes(8),
    ],
)
def test_refused(plain: bytes) -> None:
    assert is_report(plain)
    with pytest.raises(RemoteProtocolError) as caught:
        parse_report(plain)
    assert caught.value.reason == "bad_report"


def test_an_idle_pair_is_silent() -> None:
    receiver = Receiver()
    for second in range(600):
        receiver.take([2 * second, 2 * second + 1], float(second))
        assert receiver.meter.next_timeout() is None


def test_a_clean_flow_is_reported_once_a_second_and_not_after_its_end() -> None:
    receiver = Receiver()
    reports = []
    now, counter = 0.0, 0
    while now < 10.0:
        if now < 5.0:
            receiver.take(range(counter, counter + 2), now, datagrams=90)
            counter += 2
        due = receiver.meter.next_timeout()
        if due is not None and due <= now:
            reports.append(receiver.meter.take_report(now))
        now += 0.01
    assert [report.gaps if report else None for report in reports] == [0] * len(reports)
    assert 4 <= len(reports) <= 6
    assert reports[-1] is not None
    assert (reports[-1].datagrams, reports[-1].records) == (45_000 + 90 * (counter // 2 - 500), counter)
    assert receiver.meter.next_timeout() is None


def test_nothing_is_reported_before_it_is_due() -> None:
    receiver = Receiver()
    assert receiver.meter.take_report(0.0) is None
    receiver.take(range(MIN_DATAGRAMS), 0.0)
    assert receiver.meter.next_timeout() == INTERVAL
    assert receiver.meter.take_report(INTERVAL - 0.01) is None
    assert receiver.meter.take_report(INTERVAL) == LossReport(9, MIN_DATAGRAMS, MIN_DATAGRAMS, 0, 0)


def test_a_broken_record_is_reported_at_once_and_not_more_often_than_ten_times_a_second() -> None:
    receiver = Receiver()
    receiver.take(range(3), 5.0, datagrams=100, broken=1)
    assert receiver.meter.next_timeout() == 5.0
    assert receiver.meter.take_report(5.0) == LossReport(9, 100, 3, 1, 0)
    receiver.take(range(3, 6), 5.01, datagrams=100, broken=2)
    assert receiver.meter.next_timeout() == 5.0 + MIN_INTERVAL
    report = receiver.meter.take_report(5.2)
    assert report is not None
    assert report.broken == 3


def test_gaps_are_counted_by_runs_when_reordering_has_had_its_time() -> None:
    receiver = Receiver()
    receiver.take([0, 1, 2, 5, 6, 8, 9], 0.0)
    receiver.take([10], REORDERING)
    receiver.take([12], 2 * REORDERING)  # judged: up to 9
    report = receiver.meter.take_report(2 * REORDERING)
    assert report is not None
    assert report.gaps == 2


def test_a_run_over_the_border_of_two_judgements_counts_once() -> None:
    receiver = Receiver()
    receiver.take([0, 3], 0.0)
    receiver.take([4], 1.0)  # judged: 0 … 2
    receiver.take([9], 2.0)  # 3
    receiver.take([10], 3.0)  # 4 … 8
    receiver.take([11, 20], 4.0)
    receiver.take([21], 5.0)
    receiver.take([22], 6.0)
    report = receiver.meter.take_report(6.0)
    assert report is not None
    assert report.gaps == 3


def test_late_counters_are_no_gaps() -> None:
    receiver = Receiver()
    now = 0.0
    for start in range(0, 2000, 20):
        late = list(range(start, start + 10))
        receiver.take(list(range(start + 10, start + 20)), now)
        receiver.take(late, now + REORDERING * 0.9)
        now += REORDERING * 0.95
    report = receiver.meter.take_report(now + INTERVAL)
    assert report is not None
    assert report.gaps == report.broken == 0


def test_counters_are_judged_before_the_window_passes_them() -> None:
    receiver = Receiver()
    for start in range(0, 4 * JUDGE_BACKLOG, 64):  # all in one instant; every 64th is lost
        receiver.take(range(start + 1, start + 64), 1.0)
    receiver.take([4 * JUDGE_BACKLOG], 2.0)
    receiver.take([4 * JUDGE_BACKLOG + 1], 3.0)
    report = receiver.meter.take_report(3.0)
    assert report is not None
    assert report.gaps == 4 * JUDGE_BACKLOG // 64


def test_a_jump_past_the_window_is_neither_loss_nor_an_error() -> None:
    receiver = Receiver()
    receiver.take(range(100), 0.0)
    receiver.take([1 << 40], 1.0)
    receiver.take([(1 << 40) + 1], 2.0)
    report = receiver.meter.take_report(2.0)
    assert report is not None
    assert report.gaps == 1  # what the window knows of, up to the jump


def test_key_pairs_come_and_go_and_what_they_counted_stays() -> None:
    receiver = Receiver()
    receiver.take(range(50), 0.0, datagrams=500, broken=1)
    second = Reader()
    receiver.meter.add(77, second, GapWindow())
    receiver.reader.lost += 1
    receiver.reader.completed += 1
    receiver.meter.remove(9, 0.5)
    receiver.meter.remove(9, 0.5)
    second.completed = 5
    receiver.meter.observe(77, 50, 0.6)
    assert receiver.meter.take_report(0.7) == LossReport(9, 550, 56, 2, 0)


def test_totals_go_round() -> None:
    receiver = Receiver()
    receiver.meter.observe(9, (1 << 32) + 5, 0.0)
    report = receiver.meter.take_report(INTERVAL)
    assert report is not None
    assert report.datagrams == 5
    assert parse_report(report.encode()) == report
