"""Hostile reports: nothing but `RemoteProtocolError`, and no size out of bounds."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.record.frames import MAX_RECORD
from overlay.wire.record.reports import LossReport, is_report, parse_report
from overlay.wire.record.sizing import RecordSizer

u32 = st.integers(0, 0xFFFFFFFF)
reports = st.builds(LossReport, st.integers(0, 2), u32, u32, u32, u32)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: b"\x18\0\0\0\0\xff" + rest))
def test_parse(plain: bytes) -> None:
    is_report(plain)
    with suppress(RemoteProtocolError):
        parse_report(memoryview(plain))


@given(reports)
def test_round(report: LossReport) -> None:
    assert parse_report(report.encode()) == report


@given(st.integers(200, 9000), st.lists(st.tuples(reports, st.floats(0, 5)), max_size=20))
def test_whatever_a_peer_reports_the_size_stays_in_bounds(payload: int, told: list[tuple[LossReport, float]]) -> None:
    sizer = RecordSizer(payload)
    now = 0.0
    for report, pause in told:
        now += pause
        sizer.report_received(report, now)
        assert 1 <= sizer.fragments <= 255
        assert payload - 16 <= sizer.room <= MAX_RECORD
        assert 0.0 <= sizer.event_rate <= 1.0
