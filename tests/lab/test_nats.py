"""What a NAT does, told by real packets through the kernel's: by netcheck, by a node that is up, by a stock client."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.conftest import tracked
from tests.lab.nats import FILTERING, MAPPING, NatKind, home, only_tcp_443, udp_blocked
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab

SECOND_ADDRESS = "198.51.100.2"  # of the server
HOMES: dict[str, tuple[NatKind, bool]] = {  # node → its NAT's kind, and whether it hairpins
    "cone": ("full-cone", True),
    "restricted": ("address-restricted", False),
    "plain": ("port-restricted", True),
    "plain2": ("port-restricted", False),
    "random": ("symmetric", False),
    "no-udp": ("port-restricted", False),
}
"""One node in each; `behind` is in one more, with a carrier's NAT before it."""


@pytest.fixture(scope="module")
def homes() -> Iterator[Network]:
    """A server with two addresses, a home of each kind, and one behind a carrier's symmetric NAT."""
    with Lab() as lab:
        names = ["server", "carrier", *(f"{name}-nat" for name in HOMES)]
        spaces = {name: lab.namespace(name) for name in names}
        addresses = {"server": SERVER_ADDRESS}
        addresses |= {name: f"198.51.100.{20 + number}" for number, name in enumerate(names[1:])}
        network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in addresses.items()]))
        spaces["server"].address("eth0", f"{SECOND_ADDRESS}/24")
        network.machine(spaces["server"])
        for number, (name, (kind, hairpinning)) in enumerate(HOMES.items()):
            node = network.machine(lab.namespace(name)).namespace
            home(lab, spaces[f"{name}-nat"], f"192.168.{number}", [(node, "10")], kind, hairpinning=hairpinning)
        router, node = lab.namespace("behind-nat"), network.machine(lab.namespace("behind")).namespace
        home(lab, spaces["carrier"], "100.64.0", [(router, "9")], "symmetric")
        home(lab, router, "192.168.9", [(node, "10")], "full-cone")
        network.start_server("--public", SECOND_ADDRESS)
        with tracked(network):
            yield network


def start_netcheck(machine: Machine, invite: str) -> "subprocess.Popen[str]":
    return machine.popen(
        OVERLAY, "netcheck", invite, "--carrier", "udp,tcp", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def nat_of(netcheck: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = netcheck.communicate(timeout=30)
    assert netcheck.returncode == 0, errors
    nat: dict[str, Any] = json.loads(output)["nat"]
    return nat


def netchecks(network: Network, *names: str) -> dict[str, dict[str, Any]]:
    """Of several machines at once."""
    invite = network.invite()
    started = {name: start_netcheck(network[name], invite) for name in names}
    return {name: nat_of(netcheck) for name, netcheck in started.items()}


def test_netcheck_names_every_kind(homes: Network) -> None:
    with udp_blocked(homes.lab.namespaces["no-udp-nat"]):
        found = netchecks(homes, "server", "behind", *HOMES)
    assert found["server"]["translated"] is False
    no_udp, behind = found["no-udp"], found["behind"]
    assert no_udp["translated"] is None and "nothing answers" in no_udp["summary"]
    # Of two NATs the worse one counts.
    assert (behind["mapping"], behind["filtering"]) == (MAPPING["symmetric"], FILTERING["symmetric"])
    for name in HOMES.keys() - {"no-udp"}:
        (kind, hairpinning), nat = HOMES[name], found[name]
        assert (nat["mapping"], nat["filtering"]) == (MAPPING[kind], FILTERING[kind]), (kind, nat)
        assert nat["translated"] and nat["port_preserved"] is (kind != "symmetric"), (kind, nat)
        assert nat["hairpinning"] is (None if kind == "symmetric" else hairpinning), (kind, nat)
        assert nat["endpoints"][0].startswith("198.51.100."), (kind, nat)


def test_a_node_that_is_up_knows_its_nat_and_looks_again_when_its_network_is_another(homes: Network) -> None:
    node, router = homes["random"], homes.lab.namespaces["random-nat"]
    with only_tcp_443(router):
        homes.join("random")
        assert node.status()["nat"]["translated"] is None
    node.namespace.address("eth0", "192.168.4.11/24")
    wait_for(lambda: node.status()["nat"]["filtering"] is not None, "the node knows its NAT")
    nat = node.status()["nat"]
    assert (nat["mapping"], nat["filtering"]) == (MAPPING["symmetric"], FILTERING["symmetric"])
    shown = node.overlay("status", "-v").stdout
    assert "mapping address-and-port-dependent" in shown and nat["endpoints"][0] in shown
    node.overlay("down", "--quiet")


def test_a_stock_client_finds_the_same(homes: Network) -> None:
    """coturn's, which knows RFC 8489 and RFC 5780."""
    command = ["turnutils_natdiscovery", "-m", "-f", "-p", "443", SERVER_ADDRESS]
    started = {name: homes[name].popen(*command, stdout=subprocess.PIPE) for name in ("cone", "restricted")}
    shown = {name: client.communicate(timeout=30)[0] for name, client in started.items()}
    for words in shown.values():
        assert "NAT with Endpoint Independent Mapping!" in words
    assert "NAT with Endpoint Independent Filtering!" in shown["cone"]
    assert "NAT with Address Dependent Filtering!" in shown["restricted"]
