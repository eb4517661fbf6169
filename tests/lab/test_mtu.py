"""Networks with a narrow link in the middle: everything gets through, and no datagram is larger than the path takes."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.path.pmtu import GRANULARITY, MAX_PLPMTU
from overlay.wire.packet.checksum import sum16
from tests.lab.engines import EngineHost, Key, ping, transfer, wait_for_ping
from tests.lab.narrow import (
    OUTSIDE,
    OUTSIDE6,
    NarrowNetwork,
    all_answered,
    echoed,
    echoing,
    narrow_network,
    set_mtu,
    talking,
)
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import Network

pytestmark = pytest.mark.lab

NUMBERS = {"server": 1, "a": 2, "b": 3, "c": 4}
INNER = {name: f"10.9.0.{number}" for name, number in NUMBERS.items()}
INNER6 = {name: f"fd00:9::{number}" for name, number in NUMBERS.items()}
SIZES = (576, 1124, 1280, 1500, 9000)
SEARCH_TIMEOUT = 60.0  # s; a failed size costs some two, and a search in vain has seven of them at the most
ENVELOPE = 16


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


class Engines:
    """Engines on the machines of a narrow network: a and b see each other directly, a and c by the relay alone."""

    def __init__(self, network: NarrowNetwork, *, ipv6: bool = False, transport: str = "record") -> None:
        self.network = network
        self.outside = OUTSIDE6 if ipv6 else OUTSIDE
        self.transport = transport
        self.hosts = {name: self._host(name) for name in NUMBERS}
        for name in ("a", "b", "c"):
            self._connect(name)
        for one, other in (("a", "b"), ("a", "c")):
            for name, peer in ((one, other), (other, one)):
                seen = [(self.outside[peer], self.hosts[peer].port)] if other == "b" else []
                self._know(name, peer, seen)

    def __getitem__(self, name: str) -> EngineHost:
        return self.hosts[name]

    def _host(self, name: str) -> EngineHost:
        options = ["--relay-clients"] if name == "server" else []
        addresses = [f"{INNER[name]}/24", f"{INNER6[name]}/64"]
        return EngineHost(self.network[name], Key(), NUMBERS[name], addresses=addresses, options=options)

    def _know(self, name: str, peer: str, endpoints: list[tuple[str, int]]) -> None:
        allowed = [f"{INNER[peer]}/32", f"{INNER6[peer]}/128"]
        self[name].peer(self[peer].key, NUMBERS[peer], allowed, endpoints, transport=self.transport)

    def _connect(self, name: str) -> None:
        relay, host = self["server"], self[name]
        ticket = int.from_bytes(os.urandom(8), "little")
        relay.order("client", number=host.number, public_key=host.key.public_text, ticket=ticket)
        endpoint = [self.outside["server"], relay.port]
        host.order("relay", endpoints=[endpoint], number=1, public_key=relay.key.public_text, ticket=ticket)
        wait_for(lambda: [event for event in host.events if event["name"] == "Observed"], "the relay's answer")

    def path(self, name: str, peer: str) -> dict[str, object]:
        (found,) = [each["path"] for each in self[name].inspect()["peers"] if each["number"] == NUMBERS[peer]]
        return found or {"kind": None, "mtu": 0}

    def size(self, name: str, peer: str) -> int:
        size = self.path(name, peer)["mtu"]
        assert isinstance(size, int)
        return size

    def wait_for_sizes(self, low: int, high: int, *pairs: tuple[str, str]) -> None:
        """The searches end there; data meanwhile."""
        with contextlib.ExitStack() as stack:
            for name, peer in pairs:
                stack.enter_context(talking(self.network[name], INNER[peer]))
            for name, peer in pairs:
                wait_for(
                    lambda name=name, peer=peer: low <= self.size(name, peer) <= high,  # type: ignore[misc]
                    f"{name} finds what the path to {peer} takes",
                    SEARCH_TIMEOUT,
                )

    def check_traffic(self, one: str, other: str) -> None:
        """Everything gets through, both ways, from the first packet but one on."""
        for here, there in ((one, other), (other, one)):
            wait_for_ping(self.network[here], INNER[there])
            for size in (56, 1332, 1352, 1353, 8000):  # 1332 and 1352 fill a packet of IPv6 and of IPv4
                for address in (INNER[there], INNER6[there]):
                    assert all_answered(self.network[here], address, size), (here, there, size)
            with echoing(self.network[there], INNER[there]):
                for size in (1, 1300, 8000):
                    assert echoed(self.network[here], INNER[there], size), (here, there, size)
            sent, received = transfer(self.network[here], self.network[there], INNER[there], 3_000_000)
            assert sent == received

    def check_clean(self) -> None:
        for name, host in self.hosts.items():
            counted = host.inspect()["drops"]
            assert not {"internal_error", "send_too_long"} & set(counted), (name, counted)
            assert host.stop()["failed"] == []


def bounds(mtu: int, *, ipv6: bool) -> tuple[int, int]:
    """Bytes of UDP payload that a search may end with on such a path."""
    most = mtu - (48 if ipv6 else 28)
    return (min(most, MAX_PLPMTU) - GRANULARITY + 1, most)


CASES = [(mtu, False, icmp) for mtu in SIZES for icmp in (True, False)]
CASES += [(mtu, True, icmp) for mtu in SIZES if mtu >= 1280 for icmp in (True, False)]


def _name(mtu: int, ipv6: bool, icmp: bool) -> str:
    return f"{mtu}-{'ipv6' if ipv6 else 'ipv4'}-{'icmp' if icmp else 'black hole'}"


@pytest.mark.parametrize(("mtu", "ipv6", "icmp"), CASES, ids=[_name(*case) for case in CASES])
def test_everything_gets_through_a_narrow_link(lab: Lab, mtu: int, ipv6: bool, icmp: bool) -> None:
    network = narrow_network(lab, mtu)
    if not icmp:
        network.black_hole()
    engines = Engines(network, ipv6=ipv6)
    with talking(network["a"], INNER["b"]):
        wait_for(lambda: engines.path("a", "b")["kind"] == engines.path("b", "a")["kind"] == "udp", "the direct path")
    engines.check_traffic("a", "b")
    assert engines.path("a", "c")["kind"] == "relay"
    engines.check_traffic("a", "c")
    pairs = (("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"))
    engines.wait_for_sizes(*bounds(mtu, ipv6=ipv6), *pairs)
    for one, other in pairs:
        assert all_answered(network[one], INNER[other], 8000)
        sent, received = transfer(network[one], network[other], INNER6[other], 2_000_000)
        assert sent == received
    assert engines.path("a", "b")["kind"] == "udp", "the search for a size is no reason to leave a path"
    assert network.fragments() == 0
    engines.check_clean()


@pytest.mark.parametrize("mtu", SIZES)
def test_a_network_of_programs(lab: Lab, mtu: int) -> None:
    """Server and two nodes as people run them: `overlay status` says what the path takes, direct and relayed."""
    narrow = narrow_network(lab, mtu)
    network = Network(lab, narrow.routers["core"])
    for name in ("server", "a", "b"):
        network.machine(narrow[name])
    network.start_server()
    network.join("a", "b")
    inner = {name: network.address(name) for name in ("a", "b")}

    def path(here: str, there: str) -> dict[str, Any]:
        return (network[here].peer(there) or {}).get("path") or {"kind": None, "mtu": 0}

    def found(here: str, there: str) -> bool:
        size, endpoint = path(here, there)["mtu"], path(here, there).get("endpoint")
        low, high = bounds(mtu, ipv6=endpoint is not None and endpoint.startswith("["))
        return bool(low <= size <= high)

    def all_paths(condition: Callable[[str, str], bool], what: str) -> None:
        """It holds for both directions; data meanwhile."""
        with talking(narrow["a"], inner["b"]), talking(narrow["b"], inner["a"]):
            wait_for(lambda: condition("a", "b") and condition("b", "a"), what, SEARCH_TIMEOUT)

    def check(*kinds: str) -> None:
        all_paths(lambda here, there: path(here, there)["kind"] in kinds, f"the path is {kinds}")
        for here, there in (("a", "b"), ("b", "a")):
            sent, received = transfer(narrow[here], narrow[there], inner[there], 3_000_000)
            assert sent == received
        all_paths(lambda here, there: found(here, there) and path(here, there)["kind"] in kinds, "the size is found")
        for here, there in (("a", "b"), ("b", "a")):
            for length in (56, 1352, 8000):
                assert all_answered(narrow[here], inner[there], length), (here, there, length, path(here, there))

    check("lan", "udp")
    narrow.routers["b-router"].block(f"ip saddr {OUTSIDE['b']} ip daddr {OUTSIDE['a']}")
    narrow.routers["b-router"].block(f"ip6 saddr {OUTSIDE6['b']} ip6 daddr {OUTSIDE6['a']}")
    check("relay")


def test_a_link_that_becomes_narrow_under_a_transfer_costs_a_moment(lab: Lab) -> None:
    network = narrow_network(lab, 1500)
    network.black_hole()
    engines = Engines(network)
    for other in ("b", "c"):
        network.narrow_to(1500)
        engines.check_traffic("a", other)
        engines.wait_for_sizes(*bounds(1500, ipv6=False), ("a", other))
        sent, received = transfer(
            network["a"], network[other], INNER[other], 40_000_000, during=lambda: network.narrow_to(1300)
        )
        assert sent == received
        assert engines.size("a", other) <= 1300 - 28
        # The other end has sent acknowledgements alone: its first large answers find out for their direction.
        wait_for(lambda other=other: ping(network["a"], INNER[other], 1, "-s", "8000"), "large answers")  # type: ignore[misc]
        assert engines.size(other, "a") <= 1300 - 28
        assert all_answered(network["a"], INNER[other], 8000)
    assert engines.path("a", "b")["kind"] == "udp"
    assert network.fragments() == 0
    engines.check_clean()


def test_a_relay_whose_own_link_is_narrow(lab: Lab) -> None:
    """Until the sender knows, the relay has IP fragment what is too long for its own interface, so that nothing waits
    for the probes; but it fragments no probe, so that the sender does get to know."""
    network = narrow_network(lab, 1500)
    for name in ("server", "core"):
        namespace = network.routers.get(name) or network.machines[name]
        set_mtu(namespace, "eth0", 1000)
    engines = Engines(network)
    engines.check_traffic("a", "c")
    engines.wait_for_sizes(*bounds(1000, ipv6=False), ("a", "c"), ("c", "a"))
    engines.check_traffic("a", "c")


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize("mtu", [576, 1280])
def test_a_stock_wireguard_peer_behind_a_narrow_link(lab: Lab, mtu: int, icmp: bool) -> None:
    """It answers no probes: IP fragments what is too long, as WireGuard itself has it."""
    network = narrow_network(lab, mtu)
    if not icmp:
        network.black_hole()
    engines = Engines(network, transport="wireguard")
    engines.check_traffic("a", "b")
    assert network.fragments() > 0
    engines.check_clean()


def test_icmp_that_anybody_can_send_changes_nothing(lab: Lab) -> None:
    """Forged words of a router, which the kernel believes, about packets that were never sent."""
    network = narrow_network(lab, 1500)
    engines = Engines(network)
    engines.check_traffic("a", "b")
    engines.wait_for_sizes(1472, 1472, ("a", "b"))
    wait_for(lambda: forged_icmp_is_believed(network, engines["a"].port), "the kernel believes it")
    sent, received = transfer(network["a"], network["b"], INNER["b"], 3_000_000)
    assert sent == received
    assert all_answered(network["a"], INNER["b"], 8000)
    assert engines.size("a", "b") == 1472
    assert network.fragments() == 0
    engines.check_clean()


def forged_icmp_is_believed(network: NarrowNetwork, port: int) -> bool:
    """b-router claims that what a sent to b was too large for 552 bytes, the least that Linux believes."""
    source, destination = socket.inet_aton(OUTSIDE["a"]), socket.inet_aton(OUTSIDE["b"])
    quoted = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 1500, 1, 0x4000, 60, socket.IPPROTO_UDP, 0, source, destination)
    quoted += struct.pack(">HHHH", port, port, 1480, 0)
    message = struct.pack(">BBHHH", 3, 4, 0, 0, 552) + quoted
    message = message[:2] + struct.pack(">H", 0xFFFF - sum16(message)) + message[4:]
    with network.routers["b-router"].enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sender:
        sender.sendto(message, (OUTSIDE["a"], 0))
    return "mtu 552" in network["a"].run(["ip", "route", "get", OUTSIDE["b"]]).stdout
