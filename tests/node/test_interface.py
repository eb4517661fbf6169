"""What is decided from a host's tables; the tables themselves are read in `tests/lab`."""

from ipaddress import ip_network

import anyio
import pytest

from overlay.engine.api import Network
from overlay.errors import UserError
from overlay.node.interface import (
    CANDIDATE_LIMIT,
    Assigned,
    Machine,
    Route,
    check_ranges,
    local_candidates,
    network_key,
    overlapping,
    read_machine,
)

RANGE = ip_network("10.77.0.0/16")
ULA = ip_network("fd12:3456:789a::/48")


def machine_with(*destinations: str, interface: str = "eth0") -> Machine:
    return Machine(routes=tuple(Route(destination, interface) for destination in destinations))


@pytest.mark.parametrize(
    "destination", ["10.77.0.0/16", "10.77.3.0/24", "10.0.0.0/8", "10.77.0.9/32", "10.64.0.0/10", "fd12:3456::/32"]
)
def test_overlaps(destination: str) -> None:
    machine = machine_with("192.168.1.0/24", destination)
    networks: list[Network] = [RANGE, ULA]
    with pytest.raises(UserError) as caught:
        check_ranges(networks, machine)
    assert caught.value.code == "range-overlaps"
    assert destination in caught.value.message
    assert "eth0" in caught.value.message
    assert "--range" in caught.value.hint


@pytest.mark.parametrize(
    "destinations",
    [
        (),
        ("0.0.0.0/0", "::/0"),
        ("0.0.0.0/1", "128.0.0.0/1"),  # how some VPNs write a default route
        ("10.78.0.0/16", "10.76.0.0/16", "192.168.0.0/16", "fd12:3456:789b::/48"),
    ],
)
def test_does_not_overlap(destinations: tuple[str, ...]) -> None:
    check_ranges([RANGE, ULA], machine_with(*destinations))


def test_the_overlays_own_routes_do_not_count() -> None:
    machine = machine_with("10.77.0.0/16", interface="overlay0")
    assert overlapping(RANGE, machine) == Route("10.77.0.0/16", "overlay0")
    check_ranges([RANGE], machine.without("overlay0"))


def test_candidates_of_both_families() -> None:
    machine = Machine((Assigned("192.168.1.5", "eth0"), Assigned("2001:db8::5", "wlan0")))
    assert local_candidates(machine, 41641) == (("192.168.1.5", 41641), ("2001:db8::5", 41641))


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("127.0.0.1", "eth0"),
        ("::1", "lo"),
        ("fe80::1", "eth0"),
        ("169.254.3.4", "eth0"),
        ("172.17.0.1", "docker0"),
        ("172.18.0.1", "br-0123456789ab"),
        ("172.18.0.2", "veth12ab34c"),
        ("192.168.122.1", "virbr0"),
        ("10.88.0.1", "podman0"),
        ("10.88.0.1", "cni0"),
        ("10.88.0.1", "cni-podman0"),
        ("192.168.100.1", "virbr-lab"),
        ("10.0.3.1", "lxcbr0"),
        ("10.0.3.2", "lxc_health"),
        ("10.138.0.1", "lxdbr0"),
        ("fd42::1", "incusbr0"),
        ("10.4.0.1", "nerdctl0"),
        ("10.42.0.0", "flannel.1"),
        ("10.244.0.1", "cilium_host"),
        ("192.168.56.1", "vboxnet0"),
        ("172.16.8.1", "vmnet8"),
        ("100.64.0.1", "docker0"),
        ("172.18.0.2", "vethAbC123"),
        ("10.99.0.2", "overlay1"),
        ("10.77.0.2", "eth0"),
        ("fd12:3456:789a::2", "eth0"),
    ],
)
def test_what_is_no_candidate(address: str, interface: str) -> None:
    machine = Machine((Assigned(address, interface), Assigned("198.51.100.7", "eth0")))
    assert local_candidates(machine, 1, [RANGE, ULA]) == (("198.51.100.7", 1),)


@pytest.mark.parametrize(("address", "interface"), [("2a01:4f8::1", "docker0"), ("5.9.1.1", "virbr0")])
def test_a_public_address_on_a_bridge_to_containers_is_a_candidate(address: str, interface: str) -> None:
    assert local_candidates(Machine((Assigned(address, interface),)), 1) == ((address, 1),)


@pytest.mark.parametrize(
    "interface", ["br-lan", "br0", "bond0", "vethernet", "vlan5", "enp3s0", "wlan0", "ppp0", "wg0"]
)
def test_bridges_to_the_outside_are_candidates(interface: str) -> None:
    assert local_candidates(Machine((Assigned("192.168.1.1", interface),)), 1)


def test_candidates_are_bounded() -> None:
    machine = Machine(tuple(Assigned(f"192.0.2.{n}", "eth0") for n in range(200)))
    assert len(local_candidates(machine, 1)) == CANDIDATE_LIMIT


def test_this_machines_tables_can_be_read() -> None:
    async def main() -> None:
        machine = await read_machine()
        assert all(route.interface for route in machine.routes)
        assert not any(assigned.interface == "lo" for assigned in machine.addresses)

    anyio.run(main)


def test_the_gateway_and_our_address_there_tell_networks_apart() -> None:
    addresses = (Assigned("192.0.2.10", "eth0"), Assigned("198.51.100.7", "eth1"), Assigned("2001:db8::7", "eth1"))
    home = Route("0.0.0.0/0", "eth0", gateway="192.0.2.1")
    assert network_key(Machine(addresses, (Route("192.0.2.0/24", "eth0"), home))) == "192.0.2.1 192.0.2.10"
    assert network_key(Machine(addresses, (Route("::/0", "eth1", gateway="fe80::1"),))) == "fe80::1 2001:db8::7"
    assert network_key(Machine(addresses, (Route("0.0.0.0/0", "eth1"),))) == "eth1 198.51.100.7"
    assert network_key(Machine(addresses)) == ""
