"""Small packets: the highest rate of UDP datagrams of which nearly all arrive."""

from collections.abc import Callable

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import Bench, Probe

TITLE = "UDP packets per second, highest rate with ≤ 1 % loss"
SIZES = (64, 1200)  # bytes of UDP payload
LOSS_LIMIT = 0.01
STEP = 1.3  # from one rate to the next
REFINEMENTS = 3  # halvings of the last step: within 4 %
FIRST_RATE, LOWEST_RATE, HIGHEST_RATE = 20_000.0, 1_000.0, 2_000_000.0  # per s
SHORTFALL = 0.9  # of the wished rate: a sender that stays below is at its own limit
RUN = 2  # s


def highest_rate(attempt: Callable[[float], load.Datagrams], refinements: int = REFINEMENTS) -> float:
    """The most datagrams/s that arrived at a rate with at most `LOSS_LIMIT` lost; 0.0: not even at `LOWEST_RATE`.

    Rates rise (or fall, if the first is too high) by `STEP`, and then close in on the limit. A rate has failed when it
    did so twice: a machine's hiccup is not a limit.
    """

    def passes(rate: float) -> load.Datagrams | None:
        for _ in range(2):
            seen = attempt(rate)
            if seen.loss <= LOSS_LIMIT:
                return seen
        return None

    best = 0.0
    low, high = 0.0, HIGHEST_RATE
    rate = FIRST_RATE
    while LOWEST_RATE <= rate <= HIGHEST_RATE:
        seen = passes(rate)
        if seen is None:
            high = rate
            if low:
                break
            rate /= STEP
            continue
        best = max(best, seen.received)
        low = rate
        if seen.sent < SHORTFALL * rate:
            return best
        if high < HIGHEST_RATE:
            break
        rate *= STEP
    for _ in range(refinements if low and high < HIGHEST_RATE else 0):
        middle = (low + high) / 2
        seen = passes(middle)
        if seen is None:
            high = middle
        else:
            low, best = middle, max(best, seen.received)
    return best


def _probe(size: int, *, quick: bool) -> tuple[str, Probe]:
    name = f"{size} bytes"
    quantity = Quantity(name, "packets/s")

    def probe(ends: Ends) -> list[Sample]:
        if quick:
            return [(quantity, load.udp(ends, 1, size, LOWEST_RATE).received)]
        return [(quantity, highest_rate(lambda rate: load.udp(ends, RUN, size, rate)))]

    return name, probe


def run(bench: Bench) -> Result:
    result = Result("pps", TITLE, "overlay")
    with bench.joined(result, bench.contenders()) as joined:
        bench.ask(result, joined, *(_probe(size, quick=bench.quick) for size in SIZES))
    return result
