import pytest

from overlay.daemon.quantities import format_rate, format_size, parse_rate, parse_size
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
    ("text", "size"),
    [("64kB", 64_000), ("1.5 MB", 1_500_000), ("7", 7), ("2G", 2_000_000_000), ("10b", 10), (" 1KB ", 1000)],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "kB", "-1kB", "1XB", "1e9", "0.1B", "9" * 40, "١kB"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)


def test_how_it_is_shown() -> None:
    assert [format_size(size) for size in (0, 999, 1000, 1_234_567, 7_000_000_000, 5 * 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "7.0 GB",
        "5000.0 TB",
    ]
