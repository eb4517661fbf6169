"""Rates and amounts as people type and read them: `100Mbit`, `1.5Gbit`, in decimal units of bits, as lines are sold;
`10GB`, `1.5TB`, in decimal units of bytes, as traffic is. Of the command line and of the daemons' files."""

import re

from overlay.errors import Exit, UserError

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]bit)(?:/s)?")
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?b?)", re.ASCII)

LEAST = 64e3 / 8
"""Bytes per second. What is less would have one datagram in a quarter of a second."""


def parse_rate(text: str) -> float:
    """`100Mbit` → bytes per second. Raises `UserError` ("bad-rate", exit 2)."""
    found = _RATE.fullmatch(text.strip().lower())
    rate = float(found[1]) * _BITS[found[2]] / 8 if found else 0.0
    if rate < LEAST:
        raise UserError(
            "bad-rate",
            f"'{text}' is not a rate of 64kbit or more.",
            "Write a number and a unit of kbit, Mbit or Gbit (per second), as in 100Mbit.",
            Exit.USAGE,
        )
    return rate


def format_rate(rate: float) -> str:
    """Bytes per second in the largest unit that gives at least 1: `100 Mbit/s`."""
    bits = rate * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits >= size:
            return f"{bits / size:g} {unit}"
    return f"{bits / 1e3:g} kbit/s"


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
