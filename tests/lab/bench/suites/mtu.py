"""Outside networks with small and large packets: does it carry anything, and how much."""

from tests.lab.bench.contenders import Wire
from tests.lab.bench.result import Result
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites.tcp import throughput

TITLE = "One TCP stream by the path's MTU"
SIZES = (576, 1124, 1280, 1500, 9000)


def run(bench: Bench) -> Result:
    result = Result("mtu", TITLE, "overlay")
    for size in SIZES[2:3] if bench.quick else SIZES:
        with bench.joined(result, bench.contenders(), Wire(mtu=size)) as joined:
            bench.ask(result, joined, throughput(f"MTU {size}", bench.seconds))
    return result
