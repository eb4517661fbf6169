"""Many peers in one engine: what a packet costs must not depend on how many others there are. One of them talks."""

from collections.abc import Sequence
from dataclasses import replace

from tests.lab.bench import load
from tests.lab.bench.contenders import Contender, Ends, Overlay
from tests.lab.bench.machine import cpu_seconds, resident_mb
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.rivals import WireGuard
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites.tcp import throughput
from tests.lab.netns import Namespace

TITLE = "Many peers in one engine"
PEERS = (2, 100, 1000)
COST = Quantity("CPU per packet, sending end", "µs", more_is_better=False)
MEMORY = Quantity("memory, sending end", "MB", more_is_better=False)
RATE = 10_000.0  # datagrams/s that all can carry
SIZE = 64  # bytes


class Crowd:
    """A contender whose end a knows many peers."""

    def __init__(self, contender: Contender, peers: int) -> None:
        self.name = f"{contender.name}, {peers} peers"
        self._contender = contender
        self._peers = peers

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        return replace(self._contender.join(a, b, self._peers - 1), contender=self.name)


def _cost(ends: Ends, seconds: int) -> Sequence[Sample]:
    before = cpu_seconds(ends.processes_a)
    carried = load.udp(ends, seconds, SIZE, RATE)
    spent = cpu_seconds(ends.processes_a) - before
    return [(COST, spent * 1e6 / (carried.sent * seconds)), (MEMORY, resident_mb(ends.processes_a))]


def run(bench: Bench) -> Result:
    """The subject is the largest crowd: its ratio to the smallest is what must stay near 1."""
    sizes = PEERS[:2] if bench.quick else PEERS
    makers: list[Contender] = [Overlay(), *[rival for rival in bench.rivals if isinstance(rival, WireGuard)]]
    crowds: list[Contender] = [Crowd(maker, size) for maker in makers for size in sizes]
    result = Result("scale", TITLE, f"overlay, {sizes[-1]} peers")
    with bench.joined(result, crowds) as joined:
        bench.ask(
            result,
            joined,
            ("cost", lambda ends: _cost(ends, bench.seconds)),
            throughput("1 stream", bench.seconds),
        )
    return result
