"""Brings contenders up and asks them in turn: every round measures all of them, each time another one first."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.bench.contenders import PLAIN_WIRE, Contender, Ends, Overlay, Veth, Wire
from tests.lab.bench.load import LoadFailed
from tests.lab.bench.publishers import Publisher
from tests.lab.bench.result import Result, Sample
from tests.lab.engines import ping as answers
from tests.lab.netns import Lab, pids, wait_for

Probe = Callable[[Ends], Iterable[Sample]]
"""One measurement: load, and what came of it."""

EXPECTED = (LoadFailed, OSError, AssertionError, LookupError, ValueError, subprocess.SubprocessError)
"""What a contender that does not work fails with (a wait's `TimeoutError` is an OSError): it is left out and named."""

LAST = 3  # lines of a log that are shown
JOIN_TIMEOUT = 20.0  # s until the first ping is answered; some negotiate for long


@dataclass
class Bench:
    """How to measure. `rivals` are those of other makers, the first is the one that matters most."""

    rivals: Sequence[Contender]
    rounds: int
    seconds: int  # of one measurement
    quick: bool  # to see that it works, not how fast
    say: Callable[[str], None]
    nodes: int | None = None  # that join a server; None: as many as the suite thinks
    publishers: Sequence[Publisher] = ()  # of exposures, beside ours

    def contenders(self) -> list[Contender]:
        return [Overlay(), Veth(), *self.rivals]

    @contextlib.contextmanager
    def joined(
        self, result: Result, contenders: Sequence[Contender], wire: Wire = PLAIN_WIRE, strangers: int = 0
    ) -> Iterator[list[Ends]]:
        """All contenders up at once, each on two machines of its own. One that does not come up is left out."""
        with Lab() as lab:
            ready = []
            for number, contender in enumerate(contenders):
                self.say(f"{result.suite}: {contender.name} comes up")
                try:
                    a, b, cable = wire.lay(lab, str(number))
                    ends = replace(contender.join(a, b, strangers), cable=cable)
                    wait_for(lambda ends=ends: answers(ends.a, ends.address_b, 1), "the first ping", JOIN_TIMEOUT)  # type: ignore[misc]
                except EXPECTED as error:
                    result.fail(contender.name, "did not come up", reason(error))
                    _stop(lab, number)
                    last = last_words(lab.directory, f"{number}[a-z]*.log")
                    result.failures += [f"    {line}" for line in last]
                else:
                    ready.append(ends)
            yield ready

    def ask(self, result: Result, joined: Sequence[Ends], *probes: tuple[str, Probe]) -> None:
        """Every probe (with its name) on every contender, in every round."""
        for at in range(self.rounds):
            for what, probe in probes:
                for ends in [*joined[at % len(joined) :], *joined[: at % len(joined)]] if joined else []:
                    self.say(f"{result.suite}: {what}, {ends.contender}, round {at + 1} of {self.rounds}")
                    try:
                        result.add(ends.contender, at, probe(ends))
                    except EXPECTED as error:
                        result.fail(ends.contender, what, reason(error))


def _stop(lab: Lab, number: int) -> None:
    """What does not work must not keep the processors from those that do. The lab's end does the rest."""
    for machine in lab.namespaces.values():
        if re.match(rf"{number}\D", machine.short_name):
            for pid in pids(machine.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def last_words(folder: Path, logs: str) -> list[str]:
    """The last lines of each of the logs."""
    found = sorted(folder.glob(logs))
    return [f"{log.name}: {line}" for log in found for line in log.read_text(errors="replace").splitlines()[-LAST:]]


def reason(error: BaseException) -> str:
    """One line: the error, and the last line of what a failed command printed."""
    notes = [line for note in getattr(error, "__notes__", ()) for line in str(note).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, str(error).splitlines()[0] if str(error) else "", *notes[-1:]])
