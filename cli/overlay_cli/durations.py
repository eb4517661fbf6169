"""Lengths of time as people type and read them: `24h`, `7d`, `3 min ago`."""

import re

from overlay.errors import Exit, UserError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `24h`, `7d`, `2w`, `1h30m` → seconds. Raises `UserError` ("bad-duration", exit 2)."""
    compact = text.strip().lower().replace(" ", "")
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise UserError(
            "bad-duration",
            f"'{text}' is not a length of time.",
            "Write a number and a unit of s, m, h, d or w, as in 90s, 24h or 7d.",
            Exit.USAGE,
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """The largest unit that gives at least 1: `45 s`, `3 min`, `2 h`, `5 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
