"""The relay: the same load over the direct path and over a third machine, with bare engines and with whole daemons."""

import contextlib
from collections.abc import Iterator

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends, Overlay, RelayedOverlay, Veth
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.bench.suites.tcp import throughput
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import one_lan

TITLE = "Through the relay over udp"
RELAYED, DAEMONS, DAEMONS_RELAYED = "overlay, relayed", "overlay daemons", "overlay daemons, relayed"
RTT = Quantity("round trip, median", "ms", more_is_better=False)
PINGS, INTERVAL = 100, 0.005


@contextlib.contextmanager
def daemons(bench: Bench, result: Result, *, relayed: bool) -> Iterator[list[Ends]]:
    """A server and two nodes, as people run them. `relayed`: what the nodes send to each other directly is dropped."""
    name = DAEMONS_RELAYED if relayed else DAEMONS
    bench.say(f"{result.suite}: {name} come up")
    with Lab() as lab:
        try:
            network = one_lan(lab)
            a, b = network["a"], network["b"]
            if relayed:
                # Each in its own namespace drops what the other sends: no candidate is ever proven.
                a.namespace.block("ip saddr 198.51.100.22")
                b.namespace.block("ip saddr 198.51.100.21")
            network.start_server()
            network.join("a", "b")
            kinds = ("relay",) if relayed else ("udp", "lan")
            address = network.address("b")
            wait_for(lambda: a.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0, "a ping")
            wait_for(lambda: a.path_kind("b") in kinds and b.path_kind("a") in kinds, f"the path is {kinds}", 20)
            pids = [machine.daemon_pid() for machine in (a, b, network.server)]
        except EXPECTED as error:
            result.fail(name, "did not come up", reason(error))
            yield []
            return
        assert all(pids)
        processes = [pid for pid in pids if pid is not None]
        yield [
            Ends(
                name,
                *(a.namespace, b.namespace),
                *(network.address("a"), address),
                processes_a=processes[:1],
                processes_b=processes[1:],
            )
        ]


def run(bench: Bench) -> Result:
    result = Result("relay", TITLE, RELAYED)

    def rtt(ends: Ends) -> list[Sample]:
        return [(RTT, load.ping(ends, PINGS, INTERVAL).quantile(0.5) * 1e3)]

    probes = [throughput("1 stream", bench.seconds), ("round trip", rtt)]
    if not bench.quick:
        probes[1:1] = [
            throughput("1 stream, reverse", bench.seconds, "-R"),
            throughput("8 streams", bench.seconds, "-P", "8"),
        ]
    with contextlib.ExitStack() as stack:
        joined = list(stack.enter_context(bench.joined(result, [RelayedOverlay(RELAYED), Overlay(), Veth()])))
        if not bench.quick:
            joined += stack.enter_context(daemons(bench, result, relayed=False))
            joined += stack.enter_context(daemons(bench, result, relayed=True))
        bench.ask(result, joined, *probes)
    return result
