"""A stock WireGuard at the other end (type 4 messages), beside two stock ends and two of ours that speak type 4."""

from tests.lab.bench.contenders import Contender, Overlay
from tests.lab.bench.result import Result
from tests.lab.bench.rivals import OverlayWithWireGuard, WireGuard
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites.tcp import throughput

TITLE = "With a stock WireGuard"


def run(bench: Bench) -> Result:
    stock = [rival for rival in bench.rivals if isinstance(rival, WireGuard)]
    mixed = [OverlayWithWireGuard(each) for each in stock]
    result = Result("wireguard", TITLE, mixed[0].name if mixed else "overlay, type 4")
    if not stock:
        result.fail("wireguard-go", "not found", "install the packages wireguard-go and wireguard-tools")
    probes = [throughput("1 stream", bench.seconds)]
    if not bench.quick:
        probes.append(throughput("1 stream, reverse", bench.seconds, "-R"))
        probes.append(throughput("8 streams", bench.seconds, "-P", "8"))
    contenders: list[Contender] = [*mixed, Overlay("overlay, type 4", transport="wireguard"), *stock]
    with bench.joined(result, contenders) as joined:
        bench.ask(result, joined, *probes)
    return result
