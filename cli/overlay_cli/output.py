"""What the commands print: results on standard output, everything for people beside them on standard error.

Knows no command. rich is imported only where something is drawn: it costs as much as the rest of a command's start.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from overlay.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH_OF_A_PIPE = 200
"""Columns when nobody looks: wide enough that no table cuts what a script may want to find."""


def print_json(document: Any) -> None:
    """The one JSON document of a command run with `--json`."""
    print_line(inert(json.dumps(document, ensure_ascii=False, indent=2)))


def inert(text: str) -> str:
    """JSON that says the same, with nothing in it that a terminal would obey or hide."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def print_line(text: str) -> None:
    """A plain result that scripts may read."""
    sys.stdout.write(text + "\n")


def flush() -> None:
    """Before a command that stays: a script waits for what it prints."""
    sys.stdout.flush()


def show(*renderables: "RenderableType") -> None:
    """Draw on standard output, in colour if that is a terminal and NO_COLOR does not forbid it."""
    drawn = console(sys.stdout)
    for renderable in renderables:
        drawn.print(renderable)


def note(text: str) -> None:
    """A message for a person, beside the result."""
    sys.stderr.write(text + "\n")


def report_error(error: UserError, *, as_json: bool) -> None:
    """One sentence and a hint, or the contract's `{"error": {...}}`."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return
    if sys.stderr.isatty():
        from rich.text import Text

        drawn = console(sys.stderr)
        drawn.print(Text.assemble(("overlay: ", "bold red"), error.message), soft_wrap=True)
        if error.hint:
            drawn.print(Text(error.hint, style="dim"), soft_wrap=True)
    else:
        note(f"overlay: {error.message}")
        if error.hint:
            note(error.hint)


@contextmanager
def working(text: str, *, quiet: bool) -> Iterator[None]:
    """A spinner on standard error while the block runs; nothing if nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.text import Text

    with console(sys.stderr).status(Text(text)):
        yield


def console(file: TextIO) -> "Console":
    """Draws there, in colour if that is a terminal and NO_COLOR does not forbid it."""
    from rich.console import Console

    width = None if file.isatty() else WIDTH_OF_A_PIPE
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)
