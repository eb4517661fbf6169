"""What the demo shows: a line for each check as it happens, the table at the end, or one JSON document for scripts."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from overlay.errors import UserError

EXPECTED = (AssertionError, OSError, UserError, ValueError, LookupError, subprocess.SubprocessError)
"""What a check fails with; a `TimeoutError` of a wait is an OSError. Anything else is a defect of the demo itself."""


class Abandoned(Exception):
    """A check failed without which the rest makes no sense."""


@dataclass
class Check:
    """One thing shown. `value` is in `unit`; None where yes or no says it all."""

    name: str
    ok: bool = False
    value: float | None = None
    unit: str = ""
    reason: str = ""

    def figure(self) -> str:
        return "" if self.value is None else f"{self.value:,.4g} {self.unit}"


class Report:
    """Collects checks and draws them: on standard output, or on standard error if that is for JSON alone."""

    def __init__(self, *, as_json: bool) -> None:
        self.checks: list[Check] = []
        self._as_json = as_json
        self._console = Console(stderr=as_json, highlight=False, markup=False, emoji=False)
        self._started = time.monotonic()

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def heading(self, text: str) -> None:
        self._console.print(Text(f"\n{text}", style="bold"))

    @contextlib.contextmanager
    def check(self, name: str, unit: str = "", *, needed: bool = False) -> Iterator[Check]:
        """The block is the check: it fails if the block raises one of `EXPECTED`, and the demo goes on.

        Raises `Abandoned` instead where the check is `needed` for the rest.
        """
        check = Check(name, unit=unit)
        self.checks.append(check)
        with self._console.status(Text(name)):
            try:
                yield check
            except EXPECTED as error:
                check.reason = _reason(error)
            else:
                check.ok = True
        self._console.print(self._line(check), soft_wrap=True)
        if needed and not check.ok:
            raise Abandoned

    def finish(self) -> None:
        """The table and the verdict, or the document."""
        seconds = time.monotonic() - self._started
        table = Table(title="What the demo checked", title_justify="left", title_style="bold")
        table.add_column("check")
        table.add_column("", justify="center")
        table.add_column("value", justify="right")
        for check in self.checks:
            table.add_row(check.name, self._mark(check), check.figure())
        failed = sum(not check.ok for check in self.checks)
        verdict = f"{failed} of {len(self.checks)} checks failed" if failed else f"all {len(self.checks)} checks passed"
        style = "bold green" if self.ok else "bold red"
        self._console.print()
        self._console.print(table)
        self._console.print(Text(f"{verdict} in {seconds:.0f} s", style=style))
        if self._as_json:
            checks = [
                {"name": check.name, "ok": check.ok, "value": check.value, "unit": check.unit} for check in self.checks
            ]
            sys.stdout.write(json.dumps({"ok": self.ok, "checks": checks}) + "\n")

    def say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def _line(self, check: Check) -> Text:
        reason = ("\n    " + check.reason.replace("\n", "\n    "), "red") if check.reason else ""
        figure = f"  {check.figure()}" if check.value is not None else ""
        return Text.assemble("  ", self._mark(check), " ", check.name, (figure, "cyan"), reason)

    @staticmethod
    def _mark(check: Check) -> Text:
        return Text("✓", style="green") if check.ok else Text("✗", style="red")


def _reason(error: BaseException) -> str:
    """The error and the notes on it (what a failed command printed)."""
    notes = [str(note).strip() for note in getattr(error, "__notes__", ())]
    return "\n".join([f"{type(error).__name__}: {error}".strip(), *filter(None, notes)])
