"""Sizes as people type and read them: `64kB`, `1.5MB`. Decimal units of bytes."""

import re

from overlay.errors import Exit, UserError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?b?)", re.ASCII)


def parse_size(text: str) -> int:
    """`64kB` → bytes, at least one. Raises `UserError` ("bad-size", exit 2)."""
    found = _SIZE.fullmatch(text.strip().lower())
    unit = found[2] if found else ""
    size = int(float(found[1]) * _BYTES[unit if unit in _BYTES else f"{unit}b"]) if found else 0
    if size < 1:
        raise UserError(
            "bad-size",
            f"'{text[:64]}' is not a size.",
            "Write a number and a unit of kB, MB or GB, as in 64kB.",
            Exit.USAGE,
        )
    return size


def format_size(size: int) -> str:
    """In the largest unit that gives at least 1: `1.2 kB`."""
    for unit in ("TB", "GB", "MB", "kB"):
        amount = size / _BYTES[unit.lower()]
        if amount >= 1:
            return f"{amount:.1f} {unit}"
    return f"{size} B"
