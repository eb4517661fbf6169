"""Round-trip time: idle, and for a ping that shares the tunnel with a bulk stream."""

import math
import time

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import Bench

TITLE = "Round-trip time"

IDLE = Quantity("idle, median", "ms", more_is_better=False)
IDLE_HIGH = Quantity("idle, 99 %", "ms", more_is_better=False)
BUSY = Quantity("under one TCP stream, median", "ms", more_is_better=False)
BUSY_HIGH = Quantity("under one TCP stream, 99 %", "ms", more_is_better=False)
BUSY_LOST = Quantity("under one TCP stream, lost", "%", more_is_better=False)
INTERVAL = 0.005  # s between pings
RAMP = 0.5  # s that the stream gets to reach its speed


def run(bench: Bench) -> Result:
    result = Result("rtt", TITLE, "overlay")
    count = max(20, round(bench.seconds / INTERVAL))

    def idle(ends: Ends) -> list[Sample]:
        pings = load.ping(ends, count, INTERVAL)
        return [(IDLE, pings.quantile(0.5) * 1e3), (IDLE_HIGH, pings.quantile(0.99) * 1e3)]

    def busy(ends: Ends) -> list[Sample]:
        with load.bulk(ends, math.ceil(count * INTERVAL + 10 * RAMP)):
            time.sleep(RAMP)
            pings = load.ping(ends, count, INTERVAL)
        lost = 100 * pings.lost / count
        return [(BUSY, pings.quantile(0.5) * 1e3), (BUSY_HIGH, pings.quantile(0.99) * 1e3), (BUSY_LOST, lost)]

    with bench.joined(result, bench.contenders()) as joined:
        bench.ask(result, joined, ("idle", idle), ("under bulk load", busy))
    return result
