import pytest

from overlay.errors import UserError
from overlay_cli.durations import format_duration, parse_duration, parse_end


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("1h30m", 5400), (" 1.5H ", 5400)],
)
def test_parse(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1x", "-1h", "1h-", "1h 30"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="not a length of time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2h", (0.0, 7200.0)),
        ("1970-01-02T00:00:00Z", (86400.0, 0.0)),
        (" 1970-01-02t01:00:00.5+01:00", (86400.5, 0.0)),
        ("1970-01-01 23:00:00-01:00", (86400.0, 0.0)),
    ],
)
def test_an_end_is_a_point_in_time_or_a_length_of_it(text: str, end: tuple[float, float]) -> None:
    assert parse_end(text) == end


@pytest.mark.parametrize(
    "text", ["2026-12-31", "2026-12-31T18:00:00", "2026-12-31T18:00Z", "2026-06-31T18:00:00Z", "2026-12-31T18:00:00Zx"]
)
def test_what_is_no_point_in_time(text: str) -> None:
    with pytest.raises(UserError, match="no point in time") as caught:
        parse_end(text)
    assert "2026-12-31T18:00:00Z" in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200000, "2 d")]
)
def test_format(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
