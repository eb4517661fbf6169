"""What the bench shows: a table per suite as soon as it is done, a chart of each in a folder, or a JSON document."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.lab.bench.chart import chart, number
from tests.lab.bench.result import Result

FILE_WIDTH = 120  # columns where there is no terminal to ask


class Report:
    """Tables go to standard output, or to standard error if that is for JSON alone."""

    def __init__(self, *, as_json: bool, charts: Path | None) -> None:
        self._as_json = as_json
        self._charts = charts
        self._console = Console(stderr=as_json, highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = FILE_WIDTH
        self._status = self._console.status("")
        self._results: list[Result] = []
        self._machine: Mapping[str, str] = {}

    def machine(self, description: Mapping[str, str], notes: Sequence[str] = ()) -> None:
        self._machine = description
        table = Table.grid(padding=(0, 2))
        for name, value in description.items():
            table.add_row(Text(name, style="bold"), Text(value))
        self._console.print(table)
        for note in notes:
            self._console.print(Text(note, style="yellow"))

    def say(self, text: str) -> None:
        """What is going on now: on a terminal only, and gone when the next is said."""
        self._status.update(Text(text))
        self._status.start()

    def add(self, result: Result) -> None:
        self._results.append(result)
        self._status.stop()
        self._console.print(table_of(result))
        for failure in result.failures:
            self._console.print(Text(f"  ✗ {failure}", style="red"), soft_wrap=True)
        if self._charts is not None and result.samples:
            self._charts.mkdir(parents=True, exist_ok=True)
            (self._charts / f"{result.suite}.svg").write_text(chart(result))

    def finish(self) -> None:
        self._status.stop()
        if self._charts is not None:
            self._console.print(Text(f"charts: {self._charts}/*.svg", style="dim"))
        if self._as_json:
            sys.stdout.write(self.document() + "\n")

    def document(self) -> str:
        suites = [result.document() for result in self._results]
        return json.dumps({"machine": self._machine, "suites": suites}, ensure_ascii=False)


def table_of(result: Result) -> Table:
    """A row per quantity and contender: median, range, and the subject's value divided by it."""
    table = Table(title=result.title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("contender")
    table.add_column("median", justify="right")
    table.add_column("unit")
    table.add_column("least – most", justify="right", style="dim")
    table.add_column(f"{result.subject} ÷ it", justify="right")
    for quantity in result.samples:
        heading = quantity.name
        for name in result.contenders(quantity):
            values = result.values(quantity, name)
            ratio = None if name == result.subject else result.ratio(quantity, name)
            table.add_row(
                heading,
                Text(name, style="bold" if name == result.subject else ""),
                number(result.median(quantity, name) or 0.0),
                quantity.unit,
                f"{number(min(values))} – {number(max(values))}",
                "" if ratio is None else Text(f"{ratio:.2f}", style=_style(ratio, more=quantity.more_is_better)),
            )
            heading = ""
        table.add_section()
    return table


def _style(ratio: float, *, more: bool) -> str:
    return "green" if (ratio >= 1) == more else "red"
