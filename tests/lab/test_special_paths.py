"""Which path is found where there is more, or less, than a NAT between two nodes; and after everything changed at once.

internet (198.51.100.0/24, 2001:db8::/64)
 ├── server      198.51.100.1, 2001:db8::1
 ├── open        198.51.100.21, and nothing before it
 ├── gate        198.51.100.22, a router without NAT that lets no UDP out ── closed 203.0.113.10
 ├── both        198.51.100.23, 2001:db8::23
 ├── six         2001:db8::24, and no IPv4
 ├── near-nat    198.51.100.25 ── near 192.168.1.10 ─┐
 └── two-nat     198.51.100.26 ── two  192.168.2.10 ─┴─ a cable, 172.16.0.0/24
"""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.lab.conftest import tracked
from tests.lab.gates import restrict
from tests.lab.homes import QUESTIONS, WITHOUT_UDP, new_lease
from tests.lab.nats import home
from tests.lab.netns import Lab, wait_for
from tests.lab.pings import COMMAND, Pings
from tests.lab.topology import SERVER_ADDRESS, Network, build_internet

pytestmark = pytest.mark.lab

SERVER6 = "2001:db8::1"
PUBLIC = {"server": SERVER_ADDRESS, "open": "198.51.100.21", "gate": "198.51.100.22", "both": "198.51.100.23"}
PUBLIC6 = {"server": SERVER6, "both": "2001:db8::23", "six": "2001:db8::24"}
ROUTERS = {"near": "198.51.100.25", "two": "198.51.100.26"}
CLOSED = "203.0.113.10"
CABLE = {"near": "172.16.0.1", "two": "172.16.0.2"}
NODES = ("open", "closed", "both", "six", "near", "two")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("gate", "server", *NODES)}
        routers = {name: lab.namespace(f"{name}-nat") for name in ROUTERS}
        public = [(spaces[name], address) for name, address in PUBLIC.items()]
        made = Network(lab, build_internet(lab, [*public, *((routers[name], at) for name, at in ROUTERS.items())]))
        for name in ("server", *NODES):
            made.machine(spaces[name])
        port, _ = lab.link(made.internet, [], spaces["six"], [])
        made.internet.run(["ip", "link", "set", port, "master", "br0"])
        for name, address in PUBLIC6.items():
            spaces[name].address("eth0", f"{address}/64")

        lab.link(spaces["gate"], "203.0.113.1/24", spaces["closed"], f"{CLOSED}/24")
        spaces["closed"].route("default", "203.0.113.1")
        spaces["gate"].forward()
        restrict(spaces["gate"], WITHOUT_UDP, QUESTIONS)
        for name in ("server", "open"):
            spaces[name].route("203.0.113.0/24", PUBLIC["gate"])

        for number, (name, router) in enumerate(routers.items(), 1):
            home(lab, router, f"192.168.{number}", [(spaces[name], "10")], "port-restricted")
        lab.link(spaces["near"], f"{CABLE['near']}/24", spaces["two"], f"{CABLE['two']}/24")

        made.start_server("--public", SERVER6)
        with tracked(made):
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(made.join, NODES))
            yield made


@contextmanager
def pinging(network: Network, a: str, b: str) -> Iterator[Pings]:
    wait_for(lambda: network[a].peer(b) and network[b].peer(a), f"{a} and {b} know each other")
    command = (*COMMAND, network.address(b))
    pings = Pings(network[a].popen(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    try:
        yield pings
    finally:
        pings.stop()


def wait_for_path(network: Network, a: str, b: str, kind: str, endpoint: str = "") -> None:
    """Until both use a path of that kind, and a has the peer at an endpoint that begins so."""

    def found() -> bool:
        known = network[a].peer(b)
        path = known["path"] if known else None
        where = str(path["endpoint"] or "") if path else ""
        return network[a].path_kind(b) == network[b].path_kind(a) == kind and where.startswith(endpoint)

    wait_for(found, f"{a} and {b} reach each other by {kind} {endpoint}", 20)


def test_udp_blocked_and_no_nat_is_tcp(network: Network) -> None:
    with pinging(network, "open", "closed"):
        wait_for_path(network, "open", "closed", "tcp", f"{CLOSED}:")


def test_ipv6_on_one_side_alone_is_the_relay(network: Network) -> None:
    with pinging(network, "six", "open") as pings:
        pings.wait_for_answers(40)
        wait_for_path(network, "six", "open", "relay")


def test_ipv6_on_both_sides_and_ipv4_on_one_is_ipv6(network: Network) -> None:
    with pinging(network, "six", "both"):
        wait_for_path(network, "six", "both", "lan", f"[{PUBLIC6['both']}]:")


def test_of_two_interfaces_the_nearer_and_when_it_is_gone_the_other(network: Network) -> None:
    with pinging(network, "near", "two") as pings:
        wait_for_path(network, "near", "two", "lan", f"{CABLE['two']}:")
        with unplugged(network):
            wait_for_path(network, "near", "two", "udp", f"{ROUTERS['two']}:")
            pings.wait_for_answers(20)
        wait_for_path(network, "near", "two", "lan", f"{CABLE['two']}:")


def test_both_change_their_addresses_at_once_while_the_server_restarts(network: Network) -> None:
    with unplugged(network), pinging(network, "near", "two") as pings:
        wait_for_path(network, "near", "two", "udp")
        network.server.kill_daemon()
        for name in ROUTERS:
            new_lease(network[name].namespace)
        network.start_server("--public", SERVER6)
        before = len(pings.arrivals)
        pings.wait_for_answers(20)
        wait_for_path(network, "near", "two", "udp")
        network["near"].wait_for_state("connected")
        times = [when for when, _ in pings.arrivals[max(0, before - 1) :]]
        silence = max(later - earlier for earlier, later in zip(times, times[1:], strict=False))
        print(f"nothing passed for {silence:.2f} s")  # noqa: T201


@contextmanager
def unplugged(network: Network) -> Iterator[None]:
    """The cable between near and two, meanwhile."""
    network["two"].namespace.link_state("eth1", up=False)
    try:
        yield
    finally:
        network["two"].namespace.link_state("eth1", up=True)
