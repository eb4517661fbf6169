"""What the inspector shows in a terminal, and what keys do there: state and lines. No terminal, no daemon.

Two views: the list of requests, newest first, and one request with its answer. What is shown is a stranger's: nothing
of it is obeyed by the terminal.
"""

from typing import Any, Final, Literal

from rich.text import Text

from overlay.daemon.quantities import format_size
from overlay_cli.requests import clock, middle_out, plain, status_style, took

MOST_ROWS: Final = 400
_LIST_KEYS: Final = "↑↓ move   Enter details   r replay   q quit"
_DETAIL_KEYS: Final = "↑↓ scroll   Esc back   r replay   s secrets   q quit"
_TAB: Final = "    "
_NARROW: Final = 56  # columns below which the list has no times and sizes

Action = Literal["quit", "replay", "load"]
"""What the terminal is to do now: end; send the selected request again; load its details."""


class View:
    """`take` what comes, `press` keys, and draw `lines`."""

    def __init__(self, *heading: str, show_secrets: bool = False) -> None:
        """`heading`: lines on what is exposed where."""
        self._heading = heading
        self.show_secrets = self._wants_secrets = show_secrets
        self.message = ""  # what became of the last key
        self.selected = ""  # id
        self.detail: dict[str, Any] | None = None  # of the selected one, while it is shown
        self._requests: dict[str, dict[str, Any]] = {}
        self._opened = False
        self._top = 0  # of the view at hand: the first line that is shown
        self._follows = True  # the newest is selected, until somebody moves
        self._page_size = 10
        self._detail_lines: tuple[int, list[Text]] = (0, [])  # width, and what they are there

    # what comes ------------------------------------------------------------------------------------------------------

    def take(self, summary: dict[str, Any]) -> Action | None:
        """A request that is new, or has changed."""
        identity = summary["id"]
        self._requests[identity] = summary
        while len(self._requests) > MOST_ROWS:
            self._requests.pop(next(iter(self._requests)))
        if self._follows and not self._opened or self.selected not in self._requests:
            self.selected = next(reversed(self._requests))
        return "load" if self._opened and identity == self.selected else None

    def take_detail(self, detail: dict[str, Any]) -> None:
        if detail["summary"]["id"] == self.selected:
            self.detail, self._detail_lines = detail, (0, [])

    def open(self, identity: str) -> Action:
        """Show one, such as what came of sending it again."""
        self.selected, self._follows = identity, False
        self._opened, self._top, self.detail = True, 0, None
        return "load"

    def press(self, key: str) -> Action | None:
        self.message = ""
        if key == "q":
            return "quit"
        if key == "r":
            return "replay" if self.selected else None
        return self._press_in_detail(key) if self._opened else self._press_in_list(key)

    # drawing ---------------------------------------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Text]:
        """Exactly `height` lines, none wider than `width`."""
        said = [Text(plain(line), "dim" if at else "bold") for at, line in enumerate(self._heading)]
        head = [*(part for line in said for part in _wrap(line, width)), Text("")]
        if len(head) > height // 2:
            head = [*said, Text("")]
        foot = (
            Text(self.message, "yellow") if self.message else Text(_DETAIL_KEYS if self._opened else _LIST_KEYS, "dim")
        )
        room = max(1, height - len(head) - 1)
        self._page_size = room
        body = self._drawn_detail(width, room) if self._opened else self._drawn_list(width, room)
        body += [Text("")] * (room - len(body))
        drawn = [*head, *body, foot][-height:]
        for line in drawn:
            line.no_wrap = True
            line.truncate(width, overflow="ellipsis")
        return drawn

    # inside ----------------------------------------------------------------------------------------------------------

    def _newest_first(self) -> list[str]:
        return list(reversed(self._requests))

    def _press_in_list(self, key: str) -> Action | None:
        order = self._newest_first()
        if not order:
            return None
        at = order.index(self.selected)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -self._page_size, "page-down": self._page_size}
        if key in ("enter", "right", "l"):
            return self.open(self.selected)
        if key in ("home", "g"):
            at = 0
        elif key in ("end", "G"):
            at = len(order) - 1
        elif key in steps:
            at = min(max(at + steps[key], 0), len(order) - 1)
        else:
            return None
        self.selected, self._follows = order[at], at == 0
        return None

    def _press_in_detail(self, key: str) -> Action | None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -self._page_size, "page-down": self._page_size}
        if key in ("escape", "left", "h", "backspace"):
            self._opened, self._top, self.detail = False, 0, None
            self.show_secrets = self._wants_secrets  # what was asked of one is not shown of the next
        elif key == "s":
            self.show_secrets = not self.show_secrets
            return "load"
        elif key in ("home", "g"):
            self._top = 0
        elif key in ("end", "G"):
            self._top = len(self._detail_lines[1])
        elif key in steps:
            self._top += steps[key]
        return None

    def _drawn_list(self, width: int, room: int) -> list[Text]:
        order = self._newest_first()
        if not order:
            return [Text("No requests yet.", "dim")]
        numbers = f" {'took':>7} {'size':>8}" if width >= _NARROW else ""
        head = Text(f"{'time':8}  {'method':7} {'':3}{numbers}  path", "dim")
        at, shown = order.index(self.selected), max(1, room - 1)
        if self._follows:
            self._top = 0
        self._top = min(max(self._top, at - shown + 1, 0), at)
        return [head, *(self._row(identity, width) for identity in order[self._top : self._top + shown])]

    def _row(self, identity: str, width: int) -> Text:
        each = self._requests[identity]
        line = Text()
        line.append(f"{clock(each['at'])}  ", "dim")
        line.append(f"{plain(each['method'])[:7]:7} ")
        line.append(f"{_status(each):>3}", status_style(each["status"]))
        size = each["received"] + (each["sent"] if each["upgraded"] else 0)
        line.append(f" {took(each['took_ms']):>7} {format_size(size):>8}  " if width >= _NARROW else "  ")
        path = ("↻ " if each["replay_of"] else "") + plain(each["target"])
        line.append(middle_out(path, max(12, width - line.cell_len)))
        if identity == self.selected:
            line.pad_right(max(0, width - line.cell_len))
            line.stylize("reverse")
        return line

    def _drawn_detail(self, width: int, room: int) -> list[Text]:
        if self.detail is None:
            return [Text("Loading…", "dim")]
        if self._detail_lines[0] != width:
            made = [wrapped for line in detail_lines(self.detail) for wrapped in _wrap(line, width)]
            self._detail_lines = width, made
        made = self._detail_lines[1]
        self._top = min(max(self._top, 0), max(0, len(made) - room))
        return [line.copy() for line in made[self._top : self._top + room]]


def detail_lines(detail: dict[str, Any]) -> list[Text]:
    """One exchange, request first, as long as it is."""
    summary, answer = detail["summary"], detail["answer"]
    facts = [summary["id"], clock(summary["at"]), took(summary["took_ms"])]
    if summary["source"]:
        facts.append(f"from {plain(summary['source'])}")
    if summary["replay_of"]:
        facts.append(f"replay of {summary['replay_of']}")
    if summary["upgraded"]:
        facts.append(f"{format_size(summary['sent'])} sent, {format_size(summary['received'])} received")
    if summary["state"] in ("cut", "lost"):
        facts.append("ended before its end" if summary["state"] == "cut" else "the answer was not understood")
    lines = [Text("  ".join(facts), "dim"), Text("")]
    lines += _message_lines(detail["request"], "bold")
    lines.append(Text(""))
    if answer is None:
        lines.append(Text("No answer yet." if summary["state"] == "open" else "No answer.", "dim"))
    else:
        lines += _message_lines(answer, f"bold {status_style(summary['status'])}")
    return lines


def _message_lines(message: dict[str, Any], style: str) -> list[Text]:
    lines = [Text(plain(message["line"]), style)]
    lines += [Text.assemble((f"{plain(name)}: ", "dim"), plain(value)) for name, value in message["fields"]]
    body = message["body"]
    if body["size"] or body["notes"]:
        lines.append(Text(""))
        lines.append(Text("; ".join((f"{body['size']} bytes", *map(plain, body["notes"]))), "dim"))
    lines += [Text(plain(line.replace("\t", _TAB))) for line in body["text"].splitlines()]
    return lines


def _status(each: dict[str, Any]) -> str:
    if each["status"] is not None:
        return str(each["status"])
    return {"open": "…", "cut": "cut", "lost": "?", "done": "–"}[each["state"]]


def _wrap(line: Text, width: int) -> list[Text]:
    """Cut where the terminal ends, as what is shown has no words to cut between."""
    if line.cell_len <= width:
        return [line]
    parts, start, cells = [], 0, 0
    for at, each in enumerate(line.plain):
        size = Text(each).cell_len
        if cells + size > width:
            parts.append(at)
            start, cells = at, 0
        cells += size
    return list(line.divide(parts)) if start else [line]
