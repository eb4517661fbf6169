"""Lengths of time as people type and read them: `24h`, `7d`, `3 min ago`; and when something is to end."""

import re
from datetime import datetime

from overlay.errors import Exit, UserError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_DATE = re.compile(r"\d{4}-\d", re.ASCII)
_POINT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
"""RFC 3339 §5.6."""


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


def parse_end(text: str) -> tuple[float, float]:
    """When something ends: `2026-12-31T18:00:00Z` → that, Unix time, and 0; `2h` → 0 and that, seconds from its begin.
    Raises `UserError` ("bad-time", "bad-duration", exit 2)."""
    compact = text.strip().upper()
    if not _DATE.match(compact):
        return 0.0, parse_duration(text)
    try:
        if _POINT.fullmatch(compact):
            return datetime.fromisoformat(compact).timestamp(), 0.0
    except ValueError:  # the 31st of June
        pass
    raise UserError(
        "bad-time",
        f"'{text[:64]}' is no point in time.",
        "Write date, time and zone, as in 2026-12-31T18:00:00Z or 2026-12-31T18:00:00+01:00.",
        Exit.USAGE,
    )


def format_duration(seconds: float) -> str:
    """The largest unit that gives at least 1: `45 s`, `3 min`, `2 h`, `5 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
