"""CPU time of the tunnel's processes for a GB (10**9 bytes) of one TCP stream, with the kernel's work for them."""

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.machine import cpu_seconds
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import Bench

TITLE = "CPU seconds per GB"
SENDING = Quantity("sending end", "s/GB", more_is_better=False)
RECEIVING = Quantity("receiving end", "s/GB", more_is_better=False)
BOTH = Quantity("both ends", "s/GB", more_is_better=False)


def _probe(ends: Ends, seconds: int) -> list[Sample]:
    before = cpu_seconds(ends.processes_a), cpu_seconds(ends.processes_b)
    carried = load.iperf(ends, seconds)["sum_received"]["bytes"] / 1e9
    if not carried:
        raise load.LoadFailed("nothing arrived")
    sending = (cpu_seconds(ends.processes_a) - before[0]) / carried
    receiving = (cpu_seconds(ends.processes_b) - before[1]) / carried
    return [(SENDING, sending), (RECEIVING, receiving), (BOTH, sending + receiving)]


def run(bench: Bench) -> Result:
    result = Result("cpu", TITLE, "overlay")
    tunnels = [contender for contender in bench.contenders() if contender.name != "veth"]
    with bench.joined(result, tunnels) as joined:
        bench.ask(result, joined, ("CPU", lambda ends: _probe(ends, bench.seconds)))
    return result
