"""Rates as people type and read them: `100Mbit`, `1.5Gbit`, `800kbit`. Decimal units of bits, as lines are sold."""

import re

from overlay.errors import Exit, UserError

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]bit)(?:/s)?")

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
