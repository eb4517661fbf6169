"""What a pair that has nothing to say costs: bytes on the outside network, and CPU time, per minute."""

import time
from collections.abc import Sequence

from tests.lab.bench.contenders import Ends
from tests.lab.bench.machine import cpu_seconds
from tests.lab.bench.result import Quantity, Result
from tests.lab.bench.runner import EXPECTED, Bench, reason

TITLE = "An idle pair"
BYTES = Quantity("on the wire, both directions", "bytes/minute", more_is_better=False)
CPU = Quantity("CPU of both ends", "ms/minute", more_is_better=False)
SETTLE = 60.0  # s after the last packet: by then all have forgotten it
WATCH = 60.0  # s
QUICK = 1.0  # s, for either


def outside_bytes(ends: Ends) -> int:
    """All that a's outside interface has sent and received."""
    folder = f"/sys/class/net/{ends.outside}/statistics"
    done = ends.a.run(["cat", f"{folder}/rx_bytes", f"{folder}/tx_bytes"])
    return sum(int(line) for line in done.stdout.split())


def _look(result: Result, joined: Sequence[Ends]) -> dict[str, tuple[int, float]]:
    """Bytes and CPU seconds until now, of those that are still there."""
    seen = {}
    for ends in joined:
        try:
            seen[ends.contender] = (outside_bytes(ends), cpu_seconds(ends.processes))
        except EXPECTED as error:
            result.fail(ends.contender, "a look at it", reason(error))
    return seen


def run(bench: Bench) -> Result:
    """All pairs are watched at once: what is idle is in nobody's way."""
    result = Result("idle", TITLE, "overlay")
    with bench.joined(result, bench.contenders()) as joined:
        bench.say(f"idle: all settle for {QUICK if bench.quick else SETTLE:g} s")
        time.sleep(QUICK if bench.quick else SETTLE)
        for at in range(1 if bench.quick else bench.rounds):
            bench.say(f"idle: round {at + 1}")
            start, before = time.monotonic(), _look(result, joined)
            time.sleep(QUICK if bench.quick else WATCH)
            minutes = (time.monotonic() - start) / 60
            for name, (count, cpu) in _look(result, joined).items():
                if name not in before:
                    continue
                per_minute = (count - before[name][0]) / minutes, (cpu - before[name][1]) * 1e3 / minutes
                result.add(name, at, zip((BYTES, CPU), per_minute, strict=True))
    return result
