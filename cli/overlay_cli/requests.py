"""How a user's request looks in the terminal."""

import time
from typing import Any


def request_line(entry: dict[str, Any]) -> str:
    """`18:04:05  GET  200  12 ms  1.2 kB  192.0.2.7  /docs?page=1`: whatever users write, it stays one plain line."""
    at = time.strftime("%H:%M:%S", time.localtime(entry["at"]))
    took = f"{entry['took_ms']:.0f} ms"
    path = "".join(each if each.isprintable() else "?" for each in entry["path"])
    return (
        f"{at}  {entry['method'][:8]:8} {entry['status']}  {took:>8}  {_size(entry['sent']):>8}  "
        f"{entry['source']:15}  {path}"
    )


def _size(size: int) -> str:
    for unit, step in (("B", 1), ("kB", 1_000), ("MB", 1_000_000)):
        if size < 1000 * step or unit == "MB":
            return f"{size / step:.0f} {unit}" if unit == "B" else f"{size / step:.1f} {unit}"
    raise AssertionError
