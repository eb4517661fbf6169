"""The inspector in this terminal: draws a `View`, reads keys, and asks the daemon. Plain lines where there is none."""

import json as jsonlib
import os
import re
import select
import sys
import termios
import threading
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from overlay.errors import UserError
from overlay_cli import output
from overlay_cli.inspect_view import Action, View, detail_lines
from overlay_cli.requests import plain, request_line

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient

REPLAY_TIMEOUT: Final = 90.0  # s: the daemon waits 60 for the answer
_LOOK_AGAIN: Final = 1.0  # s between drawings when nothing happens: the terminal may have another size
_KEYS: Final = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
    b"\x1b[5~": "page-up",
    b"\x1b[6~": "page-down",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b[1~": "home",
    b"\x1b[4~": "end",
    b"\x1bOH": "home",
    b"\x1bOF": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b" ": "page-down",
}

_KEY: Final = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|[\x00-\xff]")


def inspect(client: "LocalClient", exposure: dict[str, Any], *, note: str = "", show_secrets: bool) -> None:
    """Until q is pressed. On no terminal: a line for each request, until the exposure is given back. `note`: what a
    person has to know beside it."""
    from overlay.node.places import shown_place

    page = f"{client.request('POST', '/v1/inspector')['url']}#{exposure['id']}"
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        output.note(f"Inspector: {page}")
        for summary in _summaries(client, exposure["id"]):
            if summary["state"] != "open":
                output.print_line(_plain_line(summary))
                sys.stdout.flush()
        return
    heading = [f"{shown_place(exposure['url'])} → {exposure['target']}", f"Inspector: {page}", *filter(None, [note])]
    _Terminal(client, exposure["id"], View(*heading, show_secrets=show_secrets)).run()


def replay(client: "LocalClient", identity: str, *, show_secrets: bool, json: bool) -> None:
    """Send a request again and print what came of it."""
    path = f"/v1/exchanges/{quote(identity, safe='')}/replay{'?secrets=1' if show_secrets else ''}"
    with output.working("Waiting for the answer…", quiet=json):
        detail = client.request("POST", path, timeout=REPLAY_TIMEOUT)
    if json:
        output.print_json(detail)
    else:
        output.show(*detail_lines(detail))


class _Terminal:
    def __init__(self, client: "LocalClient", exposure: str, view: View) -> None:
        self._client = client
        self._exposure = exposure
        self._view = view
        self._heard: deque[Callable[[], Action | None]] = deque()  # by other threads, for the one that draws
        self._woken, self._wake_end = os.pipe()
        self._ended = False

    def run(self) -> None:
        from rich.console import Group
        from rich.live import Live

        drawn = output.console(sys.stdout)
        threading.Thread(target=self._watch, daemon=True).start()
        with _keys_at_once(), Live(console=drawn, screen=True, auto_refresh=False) as live:
            while not self._ended:
                size = drawn.size  # what is drawn beyond it is cut off
                live.update(Group(*self._view.lines(size.width, size.height)), refresh=True)
                ready, _, _ = select.select([sys.stdin.fileno(), self._woken], [], [], _LOOK_AGAIN)
                if self._woken in ready:
                    os.read(self._woken, 4096)
                if sys.stdin.fileno() in ready:
                    data = os.read(sys.stdin.fileno(), 64)
                    if not data:
                        return
                    if any(self._act(self._view.press(key)) for key in keys_in(data)):
                        return
                while self._heard:
                    self._act(self._heard.popleft()())

    def _act(self, action: Action | None) -> bool:
        """→ whether that was the end"""
        if action == "load":
            self._in_thread(self._load, self._view.selected)
        elif action == "replay":
            self._view.message = f"Sending {self._view.selected} again…"
            self._in_thread(self._replay, self._view.selected)
        return action == "quit"

    # in other threads

    def _in_thread(self, part: Callable[[str], None], identity: str) -> None:
        threading.Thread(target=self._trying, args=(part, identity), daemon=True).start()

    def _trying(self, part: Callable[[str], None], identity: str) -> None:
        try:
            part(identity)
        except UserError as error:
            sentence = f"{error.message} {error.hint}"
            self._hear(lambda: self._say(sentence))

    def _load(self, identity: str) -> None:
        path = f"/v1/exchanges/{quote(identity, safe='')}{'?secrets=1' if self._view.show_secrets else ''}"
        detail = self._client.request("GET", path)
        self._hear(lambda: self._view.take_detail(detail))

    def _replay(self, identity: str) -> None:
        detail = self._client.request(
            "POST", f"/v1/exchanges/{quote(identity, safe='')}/replay", timeout=REPLAY_TIMEOUT
        )
        made = detail["summary"]["id"]

        def shown() -> Action:
            self._view.message = f"{identity} was sent again: {made}."
            return self._view.open(made)

        self._hear(shown)

    def _watch(self) -> None:
        try:
            for summary in _summaries(self._client, self._exposure):
                self._hear(partial(self._view.take, summary))
            self._hear(lambda: self._say("It is inspected no longer."))
        except UserError as error:
            sentence = error.message
            self._hear(lambda: self._say(sentence))

    def _say(self, sentence: str) -> None:
        self._view.message = sentence

    def _hear(self, what: Callable[[], Action | None]) -> None:
        self._heard.append(what)
        os.write(self._wake_end, b"\0")


def keys_in(data: bytes) -> list[str]:
    """The keys that a terminal says were pressed; several come at once where somebody is quick."""
    found = _KEY.findall(data)
    return [_KEYS.get(each, each.decode(errors="replace")) for each in found]


def _summaries(client: "LocalClient", exposure: str) -> Iterator[dict[str, Any]]:
    waiting = b""
    with client.stream("GET", f"/v1/exchanges/watch?exposure={quote(exposure, safe='')}") as chunks:
        for data in chunks:
            *lines, waiting = (waiting + data).split(b"\n")
            for line in filter(None, lines):
                yield jsonlib.loads(line)


def _plain_line(summary: dict[str, Any]) -> str:
    entry = {
        **summary,
        "status": "---" if summary["status"] is None else summary["status"],
        "sent": summary["received"],
        "path": summary["target"],
        "source": plain(summary["source"]),
    }
    again = f"  replay of {summary['replay_of']}" if summary["replay_of"] else ""
    return f"{summary['id']:6}{request_line(entry)}{again}"


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys are read as they are pressed, and not shown; Ctrl-C is what it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
