"""A kernel and a network that refuse while bytes flow: the same process goes on, bytes stay whole, drops have names."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.bad_network import HOST_A, HOST_B, BadNetwork, Peer
from tests.lab.engines import EngineHost
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.shapes import Stream

pytestmark = pytest.mark.lab

SIZE = 5_000_000  # bytes each way
RATE = 40e6  # bit/s: half of it takes half a second
WINDOW = 150_000  # bytes
PEERS: tuple[Peer, ...] = ("record", "wireguard")
IP_RECVERR = 11


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def carry_during(network: BadNetwork, fault: Callable[[], None], version: int = 4, counted: str = "") -> None:
    """A stream both ways, in whose middle `fault` happens and passes, arrives whole; so does another one after it.

    It flows on beside `fault`, slowly enough to outlast it. `counted`: a drop that the sender must have counted.
    """
    network.link.change(rate=RATE)
    pids = [host.process.pid for host in network.hosts]
    with ThreadPoolExecutor(1) as beside:
        happened: list[Future[None]] = []
        shape = Stream(version, SIZE, window=WINDOW, halfway=lambda: happened.append(beside.submit(fault)))
        sent, received = shape.carry(network.way, 1)
        assert sent == received
        happened[0].result()
    sent, received = Stream(version, 300_000).carry(network.way, 1)
    assert sent == received
    assert not counted or network.one.inspect()["drops"].get(counted), network.drops()
    assert [host.process.pid for host in network.hosts if host.process.poll() is None] == pids
    network.end()


def wait_for_drop(host: EngineHost, reason: str) -> None:
    wait_for(lambda: host.inspect()["drops"].get(reason), f"a drop called {reason}")


def set_mtu(mtu: int, *ends: tuple[Namespace, str]) -> None:
    for machine, interface in ends:
        machine.run(["ip", "link", "set", interface, "mtu", str(mtu)])


def outside(network: BadNetwork) -> tuple[tuple[Namespace, str], tuple[Namespace, str]]:
    return (network.a, network.link.interface_a), (network.b, network.link.interface_b)


# --- sockets that refuse ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS)
def test_a_full_socket_buffer(lab: Lab, peer: Peer) -> None:
    """EAGAIN, again and again: the least buffer there is, before a queue that drains slowly."""
    network = BadNetwork(lab, peer=peer)
    network.one.socket_option(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    shape(network.a, network.link.interface_a, "rate", "30mbit", "burst", "10k", "limit", "10m")

    def wait_until_full() -> None:
        wait_for(network.one.blocked, "a full socket", interval=0.0)

    carry_during(network, wait_until_full)


@pytest.mark.parametrize("peer", PEERS)
def test_a_queue_without_room(lab: Lab, peer: Peer) -> None:
    """ENOBUFS: the interface's queue drops, and the socket hears of it (which it does with IP_RECVERR alone)."""
    network = BadNetwork(lab, peer=peer)
    network.one.socket_option(socket.IPPROTO_IP, IP_RECVERR, 1)
    shape(network.a, network.link.interface_a, "rate", "30mbit", "burst", "10k", "limit", "20k")
    carry_during(network, lambda: None, counted="send_no_buffers")


def test_a_relays_full_socket_buffer(lab: Lab) -> None:
    """What its socket does not take waits, within bounds, and goes on when there is room."""
    network = BadNetwork(lab, relay=True)
    relay = network.relay
    assert relay is not None
    relay.socket_option(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    shape(lab.namespaces["r"], "eth1", "rate", "30mbit", "burst", "10k", "limit", "10m")
    carry_during(network, lambda: wait_for(lambda: relay.inspect()["relay_waiting"] > 0, "a run that waits"))


def shape(machine: Namespace, interface: str, *parameters: str) -> None:
    """A token bucket in front of an interface."""
    machine.run(["tc", "qdisc", "replace", "dev", interface, "root", "tbf", *parameters])


@pytest.mark.parametrize("peer", PEERS)
def test_a_firewall_that_comes_and_goes(lab: Lab, peer: Peer) -> None:
    """EPERM."""
    network = BadNetwork(lab, peer=peer)

    def fault() -> None:
        network.a.block(f"ip daddr {HOST_B}")
        wait_for_drop(network.one, "send_unreachable")
        network.a.unblock()

    carry_during(network, fault)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("mtu", [1280, 700])
def test_the_link_takes_less(lab: Lab, peer: Peer, mtu: int) -> None:
    """EMSGSIZE in the middle, and room again later."""
    network = BadNetwork(lab, peer=peer)
    sizes: list[int] = []

    def fault() -> None:
        before = largest(network.one)
        set_mtu(mtu, *outside(network))
        if peer == "record":
            wait_for(lambda: largest(network.one) < before, "smaller datagrams")
            sizes.append(largest(network.one))

    carry_during(network, fault)
    assert all(size + 28 <= mtu for size in sizes)


def largest(host: EngineHost) -> int:
    """Bytes of UDP payload that the engine now sends to its first peer."""
    peer: dict[str, Any] = host.inspect()["peers"][0]
    return int(peer["path"]["mtu"])


# --- interfaces that go and come --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("end", ["sender", "receiver"])
@pytest.mark.parametrize("peer", PEERS)
def test_the_tunnels_interface_goes_down_and_comes_up(lab: Lab, peer: Peer, end: str, version: int) -> None:
    network = BadNetwork(lab, peer=peer)
    assert network.other is not None
    host, machine, interface = (
        (network.one, network.a, network.way.sender_interface)
        if end == "sender"
        else (network.other, network.b, network.way.receiver_interface)
    )
    machine.set(f"net.ipv6.conf.{interface}.keep_addr_on_down", 1)

    def fault() -> None:
        machine.link_state(interface, up=False)
        wait_for_drop(host, "tun_down")
        machine.link_state(interface, up=True)

    carry_during(network, fault, version)


@pytest.mark.parametrize("peer", PEERS)
def test_the_outside_interface_goes_down_and_comes_up(lab: Lab, peer: Peer) -> None:
    network = BadNetwork(lab, peer=peer)

    def fault() -> None:
        network.a.link_state(network.link.interface_a, up=False)
        wait_for_drop(network.one, "send_unreachable")
        network.a.link_state(network.link.interface_a, up=True)

    carry_during(network, fault)


# --- addresses that change --------------------------------------------------------------------------------------------


def move(machine: Namespace, interface: str, before: str, after: str) -> None:
    machine.run(["ip", "address", "del", f"{before}/24", "dev", interface])
    machine.address(interface, f"{after}/24")


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("peer", PEERS)
def test_an_end_gets_another_address(lab: Lab, peer: Peer, end: str, told: bool) -> None:
    """`told`: the engine hears of it, as a daemon that watches the machine's addresses tells it."""
    network = BadNetwork(lab, peer=peer)
    assert network.other is not None
    (a, interface_a), (b, interface_b) = outside(network)
    moved, watching = (network.one, network.other) if end == "a" else (network.other, network.one)
    after = "198.51.100.11" if end == "a" else "198.51.100.12"

    def fault() -> None:
        if end == "a":
            move(a, interface_a, HOST_A, after)
        else:
            move(b, interface_b, HOST_B, after)
        if told:
            moved.order("link_changed")
        wait_for(lambda: endpoint(watching) == after, "the peer to be followed")

    carry_during(network, fault)


def endpoint(host: EngineHost) -> str:
    """Where the engine believes its first peer to be."""
    return str(host.inspect()["peers"][0]["path"]["endpoint"][0])


@pytest.mark.parametrize("told", [False, True], ids=["untold", "told"])
def test_an_end_gets_another_address_before_its_relay(lab: Lab, told: bool) -> None:
    network = BadNetwork(lab, relay=True)

    def fault() -> None:
        move(network.a, network.link.interface_a, HOST_A, "198.51.100.11")
        if told:
            network.one.order("link_changed")

    carry_during(network, fault)
    seen = [event["endpoint"][0] for event in network.one.events if event["name"] == "Observed"]
    assert seen == [HOST_A, "198.51.100.11"]
