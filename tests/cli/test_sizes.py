"""Sizes, as people type and read them."""

import pytest

from overlay.errors import UserError
from overlay_cli.sizes import format_size, parse_size


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
