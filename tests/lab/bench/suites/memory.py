"""Resident memory of one end: fresh, after load, and how much it grew while load went on.

Of bare engines and the others' programs, and of a whole node's daemon. `--seconds 60` makes the load ten minutes long.
"""

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.machine import resident_mb
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites.relay import daemons

TITLE = "Resident memory of the receiving end"
BEFORE = Quantity("before load", "MB", more_is_better=False)
AFTER = Quantity("after load", "MB", more_is_better=False)
GROWTH = Quantity("growth over the second half of the load", "MB", more_is_better=False)
TIMES = 5  # as long as other runs, twice


def run(bench: Bench) -> Result:
    result = Result("memory", TITLE, "overlay")
    seconds = bench.seconds if bench.quick else TIMES * bench.seconds

    def probe(ends: Ends) -> list[Sample]:
        before = resident_mb(ends.processes_b[:1])
        load.iperf(ends, seconds, "--bidir")
        half = resident_mb(ends.processes_b[:1])
        load.iperf(ends, seconds, "--bidir")
        after = resident_mb(ends.processes_b[:1])
        return [(BEFORE, before), (AFTER, after), (GROWTH, after - half)]

    tunnels = [contender for contender in bench.contenders() if contender.name != "veth"]
    with bench.joined(result, tunnels) as joined, daemons(bench, result, relayed=False) as whole:
        bench.ask(result, [*joined, *whole], ("memory", probe))
    return result
