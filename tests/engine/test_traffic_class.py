"""DSCP and ECN through the engine: on sockets, into records and out of them."""

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from overlay.engine import api
from overlay.engine.drops import Drops
from overlay.engine.features import ALL, Features
from overlay.engine.msghdr import TRAFFIC_CLASS, Name, RecordMessage
from overlay.engine.outbox import Outbox
from overlay.engine.run import Run
from overlay.engine.udp import UdpSocket, UdpSockets, open_udp
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.ecn import CE, ECT_0, ECT_1, NOT_ECT
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.record.buffers import RecordBuffers
from tests.engine.rig import udp4, udp6
from tests.engine.test_loop import Driven, Make, introduce, make, turn_until
from tests.engine.test_udp import reluctant
from tests.wire.packet.packets import internet_checksum

__all__ = ["make"]  # the fixture

CLASSES = (0, ECT_1, ECT_0, CE, 0xB8, 0xB8 | ECT_0, 255)
NO_OFFLOADS = Features(udp_gso=False, udp_gro=False)


@pytest.fixture
def other() -> Iterator[UdpSockets]:
    made = open_udp(0, ALL)
    yield made
    made.close()


def taken(sock: UdpSocket) -> list[tuple[int, int]]:
    """Bytes and traffic class of each datagram that waits."""
    found: list[tuple[int, int]] = []
    while run := sock.receive():
        sizes = [min(run.segment, run.size - at) for at in range(0, run.size, run.segment)]
        found += [(size, run.traffic_class) for size in sizes]
    return found


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("wanted", [ALL, NO_OFFLOADS], ids=["offloads", "no offloads"])
def test_a_run_has_the_class_that_it_was_sent_with(other: UdpSockets, wanted: Features, ipv6: bool) -> None:
    ours = open_udp(0, wanted)
    target = other.ipv6 if ipv6 else other.ipv4
    assert target is not None
    endpoint = ("::1" if ipv6 else "127.0.0.1", other.port)
    for traffic_class in CLASSES:
        assert ours.send((bytes(2500),), 1000, endpoint, traffic_class) == ""
        assert ours.send((bytes(700),), 0, endpoint, traffic_class) == ""
        sock = ours.to(endpoint)
        assert sock is not None
        assert sock.send_fragmented((bytes(1500),), 1000, endpoint, traffic_class) == ""
        sizes = (1000, 1000, 500, 700, 1000, 500)
        assert taken(target) == [(size, traffic_class) for size in sizes]
    assert ours.send((bytes(10),), 0, endpoint) == ""
    assert taken(target) == [(10, 0)]
    ours.close()


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_record_has_the_class_that_it_was_sent_with(other: UdpSockets, ipv6: bool) -> None:
    ours = open_udp(0, ALL)
    endpoint = ("::1" if ipv6 else "127.0.0.1", other.port)
    sock, target = ours.to(endpoint), other.to(endpoint)
    assert isinstance(sock, UdpSocket) and isinstance(target, UdpSocket)
    layout = RecordBuffers().layout(1000, 0)
    message = RecordMessage(layout)
    name = Name(endpoint, socket.AF_INET6 if ipv6 else socket.AF_INET)
    for traffic_class in (*CLASSES, *reversed(CLASSES)):
        for size, sizes in ((layout.payload * 2 + 5, [1000, 1000, 21]), (50, [66])):
            assert message.send(sock.fileno(), name, size, traffic_class) == 0
            assert taken(target) == [(each, traffic_class) for each in sizes]
    ours.close()


def test_a_kernel_without_segmentation_sends_the_class_too(other: UdpSockets) -> None:
    def refusal(call: str, arguments: tuple[object, ...]) -> int:
        return errno.EIO if call == "sendmsg" and any(kind == 103 for _, kind, _ in arguments[1]) else 0  # type: ignore[attr-defined]

    ours = open_udp(0, ALL, reluctant(refusal))
    assert ours.send((bytes(1500),), 1000, ("127.0.0.1", other.port), CE) == ""
    assert taken(other.ipv4) == [(1000, CE), (500, CE)]
    assert not ours.ipv4.features.udp_gso
    ours.close()


def test_what_waited_for_a_full_socket_keeps_its_class(other: UdpSockets) -> None:
    full = [True]

    def refusal(call: str, arguments: tuple[object, ...]) -> int:
        return errno.EAGAIN if call == "sendmsg" and full[0] else 0

    ours = open_udp(0, ALL, reluctant(refusal))
    outbox = Outbox(ours, Drops())
    endpoint: Endpoint = ("127.0.0.1", other.port)
    for traffic_class in (CE, 0, ECT_0):
        assert outbox.send((bytes(1500),), 1000, endpoint, traffic_class) == ""
    full[0] = False
    outbox.flush(ours.ipv4)
    assert taken(other.ipv4) == [(size, each) for each in (CE, 0, ECT_0) for size in (1000, 500)]
    ours.close()


def test_a_kernel_that_does_not_tell_the_class(other: UdpSockets) -> None:
    other.ipv4._socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        marking = [(*TRAFFIC_CLASS[socket.AF_INET], struct.pack("@i", CE))]
        sender.sendmsg([bytes(10)], marking, 0, ("127.0.0.1", other.port))
    assert taken(other.ipv4) == [(10, 0)]


# --- records ----------------------------------------------------------------------------------------------------------


def with_class(packet: bytes, traffic_class: int) -> bytes:
    if packet[0] >> 4 == 6:
        return struct.pack(">I", 6 << 28 | traffic_class << 20) + packet[4:]
    changed = packet[:1] + bytes([traffic_class]) + packet[2:10] + b"\0\0" + packet[12:]
    return changed[:10] + struct.pack(">H", internet_checksum(changed[:20])) + changed[12:]


def sent_together(one: Driven, other: Driven, classes: list[int], family: int = 4) -> list[tuple[int, int]]:
    """How many packets, and with which outer class, came in each record when `one` found packets of these classes."""
    records: list[tuple[int, int]] = []
    inbound = other.loop._inbound
    before = inbound._take_frames
    expected = len(classes)

    def watch(plain: memoryview, found: list[memoryview]) -> None:
        records.append((bytes(plain).count(b"packet"), inbound._traffic_class))
        before(plain, found)

    inbound._take_frames = watch  # type: ignore[method-assign]
    for index, traffic_class in enumerate(classes):
        if family == 4:
            packet = udp4(one.machine.address, other.machine.address, b"packet %d" % index)
        else:
            packet = udp6(one.machine.address6, other.machine.address6, b"packet %d" % index)
        one.kernel.send(NO_OFFLOAD + with_class(packet, traffic_class))
    one.loop.turn(0.01)
    turn_until(lambda: sum(count for count, _ in records) == expected, other)
    inbound._take_frames = before  # type: ignore[method-assign]
    return records


@pytest.mark.parametrize("family", [4, 6])
def test_a_records_packets_have_one_ecn_field(make: Make, family: int) -> None:
    one, other = make(2), make(3)
    introduce(one, other)
    classes = [0, 0xB8, 0, ECT_0, ECT_0 | 0xB8, ECT_1, CE, CE, 0]
    assert sent_together(one, other, classes, family) == [(3, 0), (2, ECT_0), (1, ECT_1), (2, CE), (1, 0)]


@pytest.mark.parametrize("family", [4, 6])
def test_and_one_dscp_where_it_is_copied(family: int) -> None:
    one, other = Driven(2, copy_dscp=True), Driven(3)
    introduce(one, other)
    classes = [0, 0xB8, 0xB8, 0xB9, 0xB8]
    assert sent_together(one, other, classes, family) == [(1, 0), (2, 0xB8), (1, 0xB9), (1, 0xB8)]
    one.close()
    other.close()


class Congested(Run):
    """What arrives has been marked on the way, all of it."""

    __slots__ = ()

    def _read_control(self, control: bytes) -> tuple[int, int]:
        segment, traffic_class = super()._read_control(control)
        return segment, traffic_class | CE


def test_a_mark_of_the_way_reaches_the_packet(make: Make) -> None:
    one, other = make(2), make(3)
    introduce(one, other)
    other.sockets.ipv4._run = Congested()
    packets = [with_class(udp4(one.machine.address, other.machine.address, b"four"), field) for field in range(4)]
    packets += [with_class(udp6(one.machine.address6, other.machine.address6, b"six"), field) for field in range(4)]
    found: list[bytes] = []
    for packet in packets:
        one.kernel.send(NO_OFFLOAD + packet)

    def all_came() -> bool:
        found.extend(other.received())
        return len(found) == 6

    turn_until(all_came, one, other)
    assert found == [with_class(packet, CE) for index, packet in enumerate(packets) if index % 4 != NOT_ECT]
    assert other.loop._drops.counts["ecn_not_ect_ce"] == 2


def test_a_mark_reaches_packets_of_a_stock_peer(make: Make) -> None:
    one, other = make(2), make(3)
    for driven, peer in ((one, other), (other, one)):
        endpoints: tuple[Endpoint, ...] = (("127.0.0.1", peer.sockets.port),)
        driven.post(api.SetPeer(peer.machine.config(endpoints=endpoints, transport="wireguard")))
    other.sockets.ipv4._run = Congested()
    packets = [
        with_class(udp4(one.machine.address, other.machine.address, b"%d" % n), n) for n in (0, ECT_0, ECT_1, CE)
    ]
    found: list[bytes] = []
    for packet in packets:
        one.kernel.send(NO_OFFLOAD + packet)

    def all_came() -> bool:
        found.extend(other.received())
        return len(found) == 3

    turn_until(all_came, one, other)
    assert found == [with_class(packet, CE) for packet in packets[1:]]
    assert other.loop._drops.counts["ecn_not_ect_ce"] == 1
