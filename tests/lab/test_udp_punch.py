"""Direct paths by UDP through real NATs: two nodes, the kernel's masquerade between them, and a server that calls."""

import time
from collections.abc import Iterator

import pytest

from tests.lab.conftest import tracked
from tests.lab.gates import only
from tests.lab.nats import NatKind, home
from tests.lab.netns import Lab, wait_for
from tests.lab.pings import COMMAND
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab

HOMES: dict[str, NatKind] = {
    "plain": "port-restricted",
    "plain2": "port-restricted",
    "restricted": "address-restricted",
    "random": "symmetric",
    "random2": "symmetric",
}
"""One node in each."""


@pytest.fixture(scope="module")
def homes() -> Iterator[Network]:
    """A server, and a node behind a NAT of each kind; all up, and each knows its NAT."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", *(f"{name}-nat" for name in HOMES))}
        addresses = {name: f"198.51.100.{20 + number}" for number, name in enumerate(spaces)}
        addresses["server"] = SERVER_ADDRESS
        network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in addresses.items()]))
        network.machine(spaces["server"])
        for number, (name, kind) in enumerate(HOMES.items()):
            node = network.machine(lab.namespace(name)).namespace
            home(lab, spaces[f"{name}-nat"], f"192.168.{number}", [(node, "10")], kind)
        network.start_server()
        with tracked(network):
            network.join(*HOMES)
            wait_for(lambda: all(knows_its_nat(network[name]) for name in HOMES), "all know their NATs")
            yield network


def knows_its_nat(machine: Machine) -> bool:
    nat = machine.status()["nat"]
    return nat is not None and nat["filtering"] is not None


def seconds_until(network: Network, a: str, b: str, kind: str, patience: float) -> float:
    """Of traffic from `a` to `b`, until data goes both ways by a path of that kind."""
    network[b].wait_for_state("connected")
    wait_for(lambda: network[a].peer(b) is not None, f"{a} knows {b}")
    start = time.monotonic()
    pinging = network[a].popen(*COMMAND, "-q", network.address(b))
    try:
        wait_for(
            lambda: network[a].path_kind(b) == network[b].path_kind(a) == kind,
            f"{a} and {b} reach each other by {kind}",
            patience,
        )
    finally:
        pinging.terminate()
        pinging.wait(timeout=10)
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("a", "b", "patience"),
    [("plain", "plain2", 10.0), ("plain", "restricted", 10.0), ("random", "restricted", 15.0)],
)
def test_a_direct_path_through_two_nats(homes: Network, a: str, b: str, patience: float) -> None:
    seconds_until(homes, a, b, "udp", patience)


def test_a_path_whose_udp_is_cut_is_relayed_then_by_tcp_and_by_udp_again_when_mended(homes: Network) -> None:
    seconds_until(homes, "plain", "plain2", "udp", 10.0)
    with only(homes.lab.namespaces["plain-nat"], "meta l4proto != udp", f"ip daddr {SERVER_ADDRESS}"):
        seconds_until(homes, "plain", "plain2", "relay", 10.0)
        seconds_until(homes, "plain", "plain2", "tcp", 20.0)
    seconds_until(homes, "plain", "plain2", "udp", 10.0)


def test_two_symmetric_ones_stay_on_the_relay_and_why_says_it(homes: Network) -> None:
    wait_for(lambda: homes["random"].peer("random2") is not None, "random knows random2")
    homes["random"].run(*COMMAND, "-c", "5", homes.address("random2"))
    assert homes["random"].path_kind("random2") == "relay"
    wait_for(
        lambda: homes["random"].overlay_json("why", "random2")["reason"] == "both-nats-hard",
        "why says that both NATs are hard",
    )
