"""How users' requests look in the terminal, and the log of them as they come."""

import json as jsonlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from overlay.daemon.quantities import format_size
from overlay_cli import output

if TYPE_CHECKING:
    from rich.text import Text

    from overlay.daemon.client import LocalClient

_LONGEST_METHOD: Final = 7
_LONGEST_SOURCE: Final = 15  # that of IPv4: on a terminal more of an IPv6 address would leave no room for the path
_NARROW: Final = (76, 56)  # columns of a terminal below which a line has no source; no size and time either


def show_requests(
    client: "LocalClient", name: str, *, json: bool, quiet: bool = False, entry: Callable[[], str] = lambda: ""
) -> None:
    """Users' requests to the exposure of this id as they come, until it is given back; `entry`: what stands before
    each, beside those of others."""
    waiting = b""
    with client.stream("GET", f"/v1/exposures/{quote(name, safe='')}/requests") as chunks:
        for data in chunks:
            *lines, waiting = (waiting + data).split(b"\n")
            for line in filter(None, lines):
                if json:
                    output.print_line(output.inert(line.decode()))
                elif not quiet:
                    show_request(jsonlib.loads(line), entry())
            sys.stdout.flush()


def show_request(request: dict[str, Any], entry: str = "") -> None:
    """One line: coloured and no longer than the terminal, or whole where something else reads it."""
    if sys.stdout.isatty():
        console = output.console(sys.stdout)
        console.print(short_line(request, console.width, entry), soft_wrap=True)
    else:
        output.print_line((f"{entry}  " if entry else "") + request_line(request))


def request_line(request: dict[str, Any]) -> str:
    """`18:04:05  GET  200  12 ms  1.2 kB  192.0.2.7  /docs?page=1`: whatever users write, it stays one plain line."""
    return (
        f"{clock(request['at'])}  {plain(request['method'])[:8]:8} {request['status']}  "
        f"{took(request['took_ms']):>8}  {format_size(request['sent']):>8}  {request['source']:15}  "
        f"{plain(request['path'])}"
    )


def short_line(request: dict[str, Any], width: int, entry: str = "") -> "Text":
    """The same for a terminal of so many columns: what does not fit is left out of the path's middle."""
    from rich.text import Text

    source = request["source"]
    if len(source) > _LONGEST_SOURCE:
        source = source[: _LONGEST_SOURCE - 1] + "…"
    line = Text(no_wrap=True)
    if entry:
        line.append(f"{entry}  ", "bold")
    line.append(f"{clock(request['at'])}  ", "dim")
    line.append(f"{plain(request['method'])[:_LONGEST_METHOD]:{_LONGEST_METHOD}} ")
    line.append(f"{request['status']:3}", status_style(request["status"]))
    if width >= _NARROW[1]:
        line.append(f" {took(request['took_ms']):>7} {format_size(request['sent']):>8}")
    line.append("  ")
    if width >= _NARROW[0]:
        line.append(f"{source:{_LONGEST_SOURCE}}  ", "dim")
    line.append(middle_out(plain(request["path"]), max(12, width - line.cell_len)))
    return line


def status_style(status: int | None) -> str:
    if status is None:
        return "dim"
    return "red" if status >= 500 else "yellow" if status >= 400 else "cyan" if status >= 300 else "green"


def plain(text: str) -> str:
    """Nothing in it that a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text)


def middle_out(text: str, width: int) -> str:
    """At most so many characters: a path's begin and its end say most."""
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def took(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "…"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
