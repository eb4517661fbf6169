import pytest

from overlay.errors import UserError
from overlay_cli.rates import format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100Mbit", 12.5e6), ("1.5gbit", 187.5e6), (" 800 kbit/s ", 1e5), ("64kbit", 8000), ("64000 kbit", 8e6)],
)
def test_parse(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "100", "Mbit", "100MB", "-1Mbit", "1e3Mbit", "63kbit", "0Gbit", "1Mbit 1kbit"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UserError, match="is not a rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("rate", "text"), [(8000, "64 kbit/s"), (125000, "1 Mbit/s"), (12.5e6, "100 Mbit/s"), (187.5e6, "1.5 Gbit/s")]
)
def test_format(rate: float, text: str) -> None:
    assert format_rate(rate) == text
