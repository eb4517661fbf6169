import pytest

from overlay.daemon.quantities import format_amount, format_rate, parse_amount, parse_rate
from overlay.errors import UserError


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


@pytest.mark.parametrize(
    ("text", "amount"), [("10GB", 10**10), ("1.5 mb", 1_500_000), ("1kB", 1000), ("2TB", 2 * 10**12)]
)
def test_amounts(text: str, amount: int) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", ["", "10", "0GB", "10GiB", "10Gbit", "-1GB", "0.0001kB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(UserError, match="is not an amount"):
        parse_amount(text)


def test_amounts_as_people_read_them() -> None:
    assert [format_amount(each) for each in (0, 999, 1500, 10**10, 2 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "10.0 GB",
        "2000.0 TB",
    ]
