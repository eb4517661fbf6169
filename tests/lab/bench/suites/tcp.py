"""TCP: one stream and eight, there, back, and both ways at once."""

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import Bench, Probe

TITLE = "TCP throughput"

_OPTIONS: dict[str, tuple[str, ...]] = {
    "1 stream": (),
    "1 stream, reverse": ("-R",),
    "1 stream, both ways": ("--bidir",),
    "8 streams": ("-P", "8"),
    "8 streams, reverse": ("-P", "8", "-R"),
    "8 streams, both ways": ("-P", "8", "--bidir"),
}


def throughput(name: str, seconds: int, *options: str) -> tuple[str, Probe]:
    """A probe of one iperf3 run."""
    quantity = Quantity(name, "Gb/s")

    def probe(ends: Ends) -> list[Sample]:
        return [(quantity, load.tcp(ends, seconds, *options))]

    return name, probe


def run(bench: Bench) -> Result:
    result = Result("tcp", TITLE, "overlay")
    probes = [throughput(name, bench.seconds, *options) for name, options in _OPTIONS.items()]
    with bench.joined(result, bench.contenders()) as joined:
        bench.ask(result, joined, *(probes[:1] if bench.quick else probes))
    return result
