"""How a user's request looks in the terminal."""

import json as jsonlib
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from overlay_cli import output

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient


def show_requests(client: "LocalClient", name: str, *, json: bool, quiet: bool = False, entry: str = "") -> None:
    """Users' requests to the exposure of this id as they come, until it is given back; `entry`: what it is called."""
    waiting = b""
    with client.stream("GET", f"/v1/exposures/{quote(name, safe='')}/requests") as chunks:
        for data in chunks:
            *lines, waiting = (waiting + data).split(b"\n")
            for line in filter(None, lines):
                if json:
                    output.print_line(line.decode())
                elif not quiet:
                    output.print_line((f"{entry}  " if entry else "") + request_line(jsonlib.loads(line)))
            sys.stdout.flush()


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
