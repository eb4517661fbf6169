"""How soon two whole nodes find their path through real NATs, and what a path that goes costs: one try a round.

Every try begins with both nodes down and NATs that know no flow. What the NATs are is in `tests.lab.homes`.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.lab.bench.result import Quantity, Result
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.homes import HOMES, build_homes, new_lease, outside_address
from tests.lab.nats import forget_flows
from tests.lab.netns import Lab, wait_for
from tests.lab.pings import COMMAND, Pings
from tests.lab.steady import Steady
from tests.lab.topology import Machine, Network

TITLE = "Paths through NATs"
OURS = "overlay"
FIRST = Quantity("first packet to a peer after up, by the relay", "ms", more_is_better=False)
CASES: dict[str, tuple[str, str, tuple[str, ...], float]] = {
    "neither NAT is symmetric": ("port-restricted1", "port-restricted2", ("udp",), 10.0),
    "symmetric, and address-dependent filtering": ("symmetric1", "address-restricted2", ("udp",), 10.0),
    "symmetric, and address-and-port-dependent filtering": ("symmetric1", "port-restricted2", ("udp",), 24.0),
    "UDP blocked on both sides": ("no-udp1", "no-udp2", ("tcp",), 10.0),
    "both behind the same NAT": ("lan1", "lan2", ("lan",), 10.0),
}
"""Case → two nodes, the path kinds that are right, and s of patience."""

TIME = {case: Quantity(f"{case}: until direct", "s", more_is_better=False) for case in CASES}
SHARE = {case: Quantity(f"{case}: tries that were direct", "%") for case in CASES}
CUTS = {"UDP": "neither NAT is symmetric", "TCP": "UDP blocked on both sides"}
"""Protocol of a direct path that is cut under a transfer → the case of its nodes."""

CUT = {by: Quantity(f"direct path by {by} cut: longest pause", "s", more_is_better=False) for by in CUTS}
MENDED = {by: Quantity(f"direct path by {by} mended: until direct", "s", more_is_better=False) for by in CUTS}
MOVED = Quantity("a node changes its address: silence", "s", more_is_better=False)
ALL = Quantity("both change at once, and the server restarts: silence", "s", more_is_better=False)

USED = sorted({name for one, other, _, _ in CASES.values() for name in (one, other)})
CUT_FOR = 3.0  # s
AFTER = 200  # answers to pings after a change: 10 s of them and the silence
FIRST_PATIENCE = 5  # s
PATIENCE = 60.0  # s until that many came, or all is direct again


def run(bench: Bench) -> Result:
    result = Result("paths", TITLE, OURS)
    with Lab() as lab:
        homes = [name for name, (_, nodes) in HOMES.items() if set(nodes) & set(USED)]
        network = build_homes(lab, *homes)
        network.start_server()
        for name in USED:
            network.join(name)
            network[name].overlay("down", "--quiet")
        found: dict[str, list[float | None]] = {case: [] for case in CASES}
        steps: list[tuple[str, Callable[[int], None]]] = [
            *((case, lambda at, case=case: _find(network, case, at, result, found)) for case in CASES),
            *((f"a path by {by} is cut", lambda at, by=by: _cut(network, by, at, result)) for by in CUTS),
            ("addresses change", lambda at: _move(network, at, result)),
        ]
        for at in range(bench.rounds):
            for what, step in steps:
                bench.say(f"paths: {what}, try {at + 1} of {bench.rounds}")
                try:
                    step(at)
                except EXPECTED as error:
                    result.fail(OURS, what, reason(error))
        for case, times in found.items():
            if times:
                result.add(OURS, 0, [(SHARE[case], 100.0 * sum(each is not None for each in times) / len(times))])
    return result


@contextmanager
def _pair(network: Network, a: str, b: str) -> Iterator[tuple[Machine, Machine]]:
    """Two nodes that are just up, with NATs that know nothing of them; down again after."""
    for name in (a, b):
        router = "lan" if name.startswith("lan") else name
        forget_flows(network.lab.namespaces[f"{router}-nat"])
    machines = network[a], network[b]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda machine: machine.overlay("up", "--quiet"), machines))
    try:
        yield machines
    finally:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda machine: machine.overlay("down", "--quiet"), machines))


def _find(network: Network, case: str, at: int, result: Result, found: dict[str, list[float | None]]) -> None:
    one, other, kinds, patience = CASES[case]
    with _pair(network, one, other) as (a, _):
        address = network.address(other)
        start = time.monotonic()
        answered = a.run("ping", "-n", "-c", "1", "-W", str(FIRST_PATIENCE), address, check=False).returncode == 0
        if answered:
            result.add(OURS, at, [(FIRST, 1e3 * (time.monotonic() - start))])
        with _pinging(a, address):
            direct = _until(lambda: a.path_kind(other) in kinds, patience)
        found[case].append(time.monotonic() - start if direct else None)
        if direct:
            result.add(OURS, at, [(TIME[case], time.monotonic() - start)])


def _cut(network: Network, by: str, at: int, result: Result) -> None:
    one, other, kinds, _ = CASES[CUTS[by]]
    with _pair(network, one, other) as (a, b):

        def direct() -> bool:
            return a.path_kind(other) in kinds and b.path_kind(one) in kinds

        with _pinging(a, network.address(other)):
            wait_for(direct, "a direct path", 15)
        stream = Steady(a.namespace, b.namespace, network.address(other))
        stream.wait_for_bytes(1_000_000)
        stream.mark()
        router = network.lab.namespaces[f"{one}-nat"]
        router.block(f"ip daddr {outside_address(other)}")
        time.sleep(CUT_FOR)
        router.unblock()
        mended = time.monotonic()
        wait_for(direct, "the direct path again", 60)
        result.add(OURS, at, [(MENDED[by], time.monotonic() - mended)])
        stream.finish()
        result.add(OURS, at, [(CUT[by], stream.longest_pause)])


def _move(network: Network, at: int, result: Result) -> None:
    one, other, kinds, _ = CASES["neither NAT is symmetric"]
    with _pair(network, one, other) as (a, b):
        address = network.address(other)
        with _pinging(a, address) as pings:
            wait_for(lambda: a.path_kind(other) in kinds, "a direct path", 15)
            pings.wait_for_answers(20)
            new_lease(a.namespace)
            pings.wait_for_answers(AFTER, PATIENCE)
            result.add(OURS, at, [(MOVED, _silence(pings))])
        with _pinging(a, address) as pings:
            pings.wait_for_answers(20)
            network.server.kill_daemon()
            new_lease(a.namespace)
            new_lease(b.namespace)
            network.start_server()
            for machine in (a, b):
                machine.wait_for_state("connected")
            wait_for(lambda: a.path_kind(other) in kinds and b.path_kind(one) in kinds, "a direct path again", PATIENCE)
            pings.wait_for_answers(AFTER, PATIENCE)
            result.add(OURS, at, [(ALL, _silence(pings))])


@contextmanager
def _pinging(machine: Machine, address: str) -> Iterator[Pings]:
    pings = Pings(machine.popen(*COMMAND, address, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    try:
        yield pings
    finally:
        pings.stop()


def _silence(pings: Pings) -> float:
    """The longest time without an answer, until now."""
    times = [when for when, _ in pings.arrivals] + [time.time()]
    return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def _until(done: Callable[[], bool], patience: float) -> bool:
    end = time.monotonic() + patience
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)
    return True
