"""What a NAT does, told by real packets through the kernel's: by netcheck, by a node that is up, by a stock client."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.conftest import tracked
from tests.lab.nats import FILTERING, MAPPING, NAT_KINDS, NatKind, home, only_tcp_443, set_nat, udp_blocked
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab

SECOND_ADDRESS = "198.51.100.2"  # of the server
HOMES: dict[NatKind, str] = {kind: f"home{number}" for number, kind in enumerate(NAT_KINDS)}
CARRIER = "carrier-grade"


@pytest.fixture(scope="module")
def homes() -> Iterator[Network]:
    """A server with two addresses, a home of each kind, and one behind a carrier's symmetric NAT."""
    with Lab() as lab:
        names = ["server", "carrier", *(f"{name}-nat" for name in HOMES.values())]
        spaces = {name: lab.namespace(name) for name in names}
        addresses = {"server": SERVER_ADDRESS}
        addresses |= {name: f"198.51.100.{20 + number}" for number, name in enumerate(names[1:])}
        network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in addresses.items()]))
        spaces["server"].address("eth0", f"{SECOND_ADDRESS}/24")
        network.machine(spaces["server"])
        for number, (kind, name) in enumerate(HOMES.items()):
            node = network.machine(lab.namespace(name)).namespace
            home(lab, spaces[f"{name}-nat"], f"192.168.{number}", [(node, "10")], kind)
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
    found = netchecks(homes, "server", "behind", *HOMES.values())
    for kind, name in HOMES.items():
        nat = found[name]
        assert (nat["mapping"], nat["filtering"]) == (MAPPING[kind], FILTERING[kind]), (kind, nat)
        assert nat["translated"] and nat["port_preserved"] is (kind != "symmetric"), (kind, nat)
        assert nat["hairpinning"] is (None if kind == "symmetric" else False), (kind, nat)
        assert nat["endpoints"][0].startswith("198.51.100."), (kind, nat)
    behind = found["behind"]
    assert (behind["mapping"], behind["filtering"]) == (MAPPING["symmetric"], FILTERING["symmetric"])
    assert found["server"]["translated"] is False


def test_hairpinning_and_what_is_closed(homes: Network) -> None:
    spaces = homes.lab.namespaces
    kinds = [kind for kind in NAT_KINDS if kind != "symmetric"]
    for kind in kinds:
        set_nat(spaces[f"{HOMES[kind]}-nat"], kind, hairpinning=True)
    with udp_blocked(spaces[f"{HOMES['symmetric']}-nat"]), only_tcp_443(spaces["behind-nat"]):
        found = netchecks(homes, "behind", *HOMES.values())
    for kind in kinds:
        nat = found[HOMES[kind]]
        assert nat["hairpinning"] is True, (kind, nat)
        assert (nat["mapping"], nat["filtering"]) == (MAPPING[kind], FILTERING[kind]), (kind, nat)
    for name in ("behind", HOMES["symmetric"]):
        assert found[name]["translated"] is None and "nothing answers" in found[name]["summary"]


def test_a_node_that_is_up_knows_its_nat(homes: Network) -> None:
    name = HOMES["symmetric"]
    homes.join(name)
    node = homes[name]
    wait_for(lambda: node.status()["nat"]["filtering"] is not None, "the node knows its NAT")
    nat = node.status()["nat"]
    assert (nat["mapping"], nat["filtering"]) == (MAPPING["symmetric"], FILTERING["symmetric"])
    shown = node.overlay("status", "-v").stdout
    assert "mapping address-and-port-dependent" in shown and nat["endpoints"][0] in shown
    router = homes.lab.namespaces[f"{name}-nat"]
    set_nat(router, "port-restricted")  # the relay sees the node elsewhere: that is reason to look again
    wait_for(lambda: node.status()["nat"]["mapping"] == "endpoint-independent", "the node looks again", 45)
    node.overlay("down", "--quiet")


def test_a_stock_client(homes: Network) -> None:
    """coturn's, which knows RFC 8489 and RFC 5780."""
    node = homes[HOMES["port-restricted"]]
    for port in ("443", "3478"):
        shown = node.run("turnutils_stunclient", "-p", port, SERVER_ADDRESS).stdout
        assert "198.51.100." in shown and "UDP reflexive addr" in shown, shown
    shown = node.run("turnutils_natdiscovery", "-m", "-f", "-p", "443", SERVER_ADDRESS).stdout
    assert "Endpoint Independent Mapping" in shown, shown
