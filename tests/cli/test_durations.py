import pytest

from overlay.errors import UserError
from overlay_cli.durations import format_duration, parse_duration


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
    ("seconds", "text"), [(-1, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200000, "2 d")]
)
def test_format(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
