"""Frames of every shape over a bad network: what comes out has the SHA-256 of what went in, and nothing comes twice."""

from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.lab.bad_network import BadNetwork, Peer
from tests.lab.netns import Lab
from tests.lab.packet_socket import PacketSocket
from tests.lab.shapes import (
    DESTINATION,
    GRE,
    HOP_BY_HOP,
    ICMP,
    ROUTER_OPTIONS,
    Crafted,
    Datagrams,
    Echo,
    Shape,
    Stream,
    kind_of,
)
from tests.wire.packet.lies import FLOWS, OPTIONS6
from tests.wire.packet.packets import TCP, UDP, Flow

pytestmark = pytest.mark.lab

FAULTS: Mapping[str, Mapping[str, float]] = {
    "loss": {"loss": 0.01},
    "duplication": {"duplicate": 0.01},
    "reordering": {"reorder": 0.05},
    "corruption": {"corrupt": 0.01},
    "all": {"loss": 0.01, "duplicate": 0.01, "reorder": 0.05, "corrupt": 0.01},
}
OFFLOADS = ("tun_vnet", "tun_csum", "tun_tso", "tun_uso", "udp_gso", "udp_gro")
"""Every offload, as features of the engine."""

NO_OPTIONS = {"tcp_timestamps": 0, "tcp_sack": 0}
STREAMS: dict[str, Shape] = {
    "tcp4": Stream(4),
    "tcp6": Stream(6),
    "tcp4 without options": Stream(4, 300_000, sysctls=NO_OPTIONS),
    "tcp6 without options": Stream(6, 300_000, sysctls=NO_OPTIONS),
    "tcp4, IP options": Stream(4, 500_000, [ROUTER_OPTIONS]),
    "tcp6, hop-by-hop": Stream(6, 500_000, [HOP_BY_HOP]),
    "tcp6, two extension headers": Stream(6, 500_000, [HOP_BY_HOP, DESTINATION]),
}
SOCKETS: dict[str, Shape] = {
    **{f"udp{version}, superpackets": Datagrams(version, 1200, 400, segments=20) for version in (4, 6)},
    **{f"udp{version}, small": Datagrams(version, 40, 400) for version in (4, 6)},
    **{f"udp{version}, full": Datagrams(version, 1300, 200) for version in (4, 6)},
    **{f"udp{version}, 60 KB in fragments": Datagrams(version, 60_000, 5) for version in (4, 6)},
    "udp4, superpackets, IP options": Datagrams(4, 1200, 100, segments=20, options=[ROUTER_OPTIONS]),
    "udp6, extension headers": Datagrams(6, 1000, 100, options=[HOP_BY_HOP, DESTINATION]),
    **{f"ping{version}": Echo(version, 600, 100) for version in (4, 6)},
    **{f"ping{version}, 30 KB in fragments": Echo(version, 30_000, 5) for version in (4, 6)},
}
CRAFTED: dict[str, Shape] = {
    **{f"crafted {name}, superpackets": Crafted(flow, 900, 60, segments=15) for name, flow in FLOWS.items()},
    **{f"crafted {name}, checksum offload": Crafted(flow, 300, 40, partial=True) for name, flow in FLOWS.items()},
    **{f"crafted {name}, plain": Crafted(flow, 300, 40) for name, flow in FLOWS.items()},
    "crafted udp4 without checksum": Crafted(Flow(protocol=UDP), 300, 40, checksum=False),
    "crafted udp4, superpackets of tiny datagrams": Crafted(Flow(protocol=UDP), 20, 120, segments=60),
    **{f"crafted icmp{version}": Crafted(Flow(version=version, protocol=ICMP[version]), 500, 40) for version in (4, 6)},
    **{f"crafted gre{version}": Crafted(Flow(version=version, protocol=GRE), 1200, 40) for version in (4, 6)},
    "crafted gre6, destination options": Crafted(Flow(version=6, protocol=GRE, ip_extra=OPTIONS6), 1200, 40),
    "crafted unknown protocol": Crafted(Flow(protocol=253), 700, 40),
    "crafted no next header": Crafted(Flow(version=6, protocol=59), 700, 40),
    "crafted first fragment4": Crafted(Flow(protocol=UDP, dont_fragment=False), 1000, 40, fragment=0x2000),
    "crafted later fragment4": Crafted(Flow(protocol=TCP, dont_fragment=False), 1000, 40, fragment=0x2010),
    "crafted fragment6": Crafted(
        Flow(version=6, protocol=UDP, ip_extra=bytes(3) + b"\1" + bytes(4), extension=44), 900, 40
    ),
}
ALL: dict[str, Shape] = {**STREAMS, **SOCKETS, **CRAFTED}
CORE = (
    "tcp4",
    "tcp6",
    "udp4, superpackets",
    "udp6, superpackets",
    "udp4, small",
    "udp6, 60 KB in fragments",
    "ping4",
    "ping6, 30 KB in fragments",
    "crafted tcp4, IP options, superpackets",
    "crafted tcp6, destination options, superpackets",
    "crafted udp6, destination options, superpackets",
    "crafted gre4",
    "crafted later fragment4",
)


def carry(network: BadNetwork, names: Iterable[str], *, seen: bool = True) -> None:
    """Each of these shapes, with equal bytes at either end. `seen`: the sender's interface had frames of the shape."""
    for index, name in enumerate(names):
        shape = ALL[name]
        with PacketSocket(network.a, network.way.sender_interface, outgoing=True) as interface:
            sent, received = shape.carry(network.way, 1000 + index)
            kinds = {kind_of(frame) for frame in interface.frames()}
        assert sent == received, name
        assert not seen or shape.kind in kinds, f"{name}: there was no {shape.kind}, but {kinds}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def check_counted(network: BadNetwork, fault: str) -> None:
    """What the engines did about the faults has a name."""
    drops = network.drops()
    if "duplicate" in FAULTS[fault]:
        assert drops["replay"] > 0, drops
    if "corrupt" in FAULTS[fault]:
        assert drops["bad_tag"] > 0, drops


def test_every_shape_over_a_good_network_costs_no_drop(lab: Lab) -> None:
    network = BadNetwork(lab)
    carry(network, ALL)
    assert network.drops() == {}
    network.end()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_shape_over_a_bad_network(lab: Lab, fault: str) -> None:
    network = BadNetwork(lab)
    with network.faults(**FAULTS[fault]):
        carry(network, ALL)
    check_counted(network, fault)
    network.end()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("peer", ["wireguard", "wireguard-go"])
def test_every_shape_in_the_stock_transport_over_a_bad_network(lab: Lab, peer: Peer, fault: str) -> None:
    network = BadNetwork(lab, peer=peer)
    with network.faults(**FAULTS[fault]):
        carry(network, ALL)
    check_counted(network, fault)
    network.end()


@pytest.mark.parametrize("peer", ["record", "wireguard"])
def test_every_shape_of_programs_without_any_offload(lab: Lab, peer: Peer) -> None:
    """One end's interface and sockets without, the other's with: what one sends, the other must be able to write."""
    network = BadNetwork(lab, peer=peer, without=OFFLOADS)
    with network.faults(**FAULTS["all"]):
        carry(network, [*STREAMS, *SOCKETS], seen=False)
    found = network.one.inspect()["features"]
    assert not any(found[name] for name in OFFLOADS)
    network.end()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_usual_shapes_through_a_relay_over_a_bad_network(lab: Lab, fault: str) -> None:
    network = BadNetwork(lab, relay=True)
    with network.faults(**FAULTS[fault]):
        carry(network, CORE)
    check_counted(network, fault)
    assert network.one.path_kind(3) == "relay"
    network.end()
