"""Long and lossy paths: one TCP stream over 1 Gb/s with 20 ms of round trip, for each congestion control there is."""

from collections.abc import Sequence
from pathlib import Path

from tests.lab.bench.contenders import Ends, Wire
from tests.lab.bench.result import Result
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites.tcp import throughput
from tests.lab.delay_link import Conditions

TITLE = "One TCP stream at 20 ms, with loss"
LOSSES = (0.0, 0.001, 0.01)
CONGESTION_CONTROLS = ("cubic", "bbr")
DELAY = 0.010  # s, one way
RATE = 1e9  # bit/s
QUEUE = 2_500_000  # bytes: one bandwidth-delay product
ENOUGH = 0.8  # of the rate: what one stream over the bare network must reach
TIMES = 2  # as long as other runs: the start is slow at 20 ms


def congestion_controls() -> list[str]:
    """Those of ours that this kernel has."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return [name for name in CONGESTION_CONTROLS if name in available]


def run(bench: Bench) -> Result:
    result = Result("loss", TITLE, "overlay")
    for loss in LOSSES[-1:] if bench.quick else LOSSES:
        wire = Wire(conditions=Conditions(delay=DELAY, loss=loss, rate=RATE, queue=QUEUE))
        probes = [
            throughput(f"{loss:.1%} lost, {control}", TIMES * bench.seconds, "-C", control)
            for control in congestion_controls()
        ]
        with bench.joined(result, bench.contenders(), wire) as joined:
            bench.ask(result, joined, *probes)
            _judge_the_link(result, joined, f"{loss:.1%} lost")
        if loss == 0.0 and not bench.quick:
            _judge_the_bare_network(result, [name for name, _ in probes])
    return result


def _judge_the_link(result: Result, joined: Sequence[Ends], what: str) -> None:
    for ends in joined:
        assert ends.cable is not None
        overflowed = sum(each.overflowed for each in ends.cable.counters())
        if overflowed:
            result.fail(ends.contender, what, f"the delay link was too slow for {overflowed} frames")


def _judge_the_bare_network(result: Result, names: Sequence[str]) -> None:
    """Without loss nothing but the rate may limit the bare network; if something does, it limits all others too."""
    for quantity in result.samples:
        carried = result.median(quantity, "veth")
        if quantity.name in names and carried is not None and carried * 1e9 < ENOUGH * RATE:
            reason = f"only {carried:.2f} Gb/s: this machine is too slow or too busy for what this suite asks"
            result.fail("veth", quantity.name, reason)
