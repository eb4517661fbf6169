"""A peer with good keys and bad intent: what it says is counted, bounded, and never seen by the kernel."""

import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.engine import api
from overlay.engine.loop import clock
from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.superpacket import split
from overlay.wire.record.fragments import MAX_FRAGMENTS
from overlay.wire.record.frames import REPORT_GSO_TYPE
from overlay.wire.record.reader import MAX_AGE, MAX_OPEN_BYTES, MAX_OPEN_RECORDS
from overlay.wire.record.reports import LossReport
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.engine.hostile_peer import HostilePeer
from tests.engine.rig import udp4
from tests.engine.test_loop import Driven
from tests.wire.packet import lies
from tests.wire.packet.packets import ADDRESSES, UDP, Flow
from tests.wire.packet.test_fuzz_packet import damaged_frames

MARKER = b"seen by no kernel"
ATTACKER, VICTIM = 2, 3
SOURCES = [ip_network(address) for address in ("10.77.0.2/32", "fd00::a/128")]


class Scene:
    """A victim, turned by hand, and a hostile peer on loopback, with a session.

    `prefix`: for who sends through a relay, what stands before each message.
    """

    def __init__(self, transport: str, *, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.victim = Driven(VICTIM)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(10)
        sock.bind(("127.0.0.1", 0))
        self.source = ("127.0.0.1", int(sock.getsockname()[1]))
        private_key = clamp(bytes(range(32)))
        self.peer = HostilePeer(
            sock, ("127.0.0.1", self.victim.sockets.port), self.victim.machine.public_key, private_key
        )
        self.victim.post(
            api.SetPeer(
                api.PeerConfig(
                    number=ATTACKER,
                    public_key=public_key(private_key),
                    allowed=tuple(SOURCES),
                    transport="record" if transport == "record" else "wireguard",
                    endpoints=(self.source,),
                )
            )
        )
        self.victim.loop.turn(0.0)
        self.peer.shake_hands(lambda: self.victim.loop.turn(1.0))
        self.say = self._record if transport == "record" else self._packet
        self.say(b"")

    def _record(self, plain: bytes) -> None:
        """A record of that plaintext reaches the victim, as one batch."""
        datagrams = self.peer.record(plain)
        segment = len(datagrams[0]) if len(datagrams) > 1 else 0
        self.run(b"".join(datagrams), segment or len(datagrams[0]))

    def _packet(self, plain: bytes) -> None:
        datagram = self.peer.packet(plain)
        self.run(datagram, len(datagram))

    def run(self, batch: bytes, segment: int) -> None:
        self.victim.loop._inbound.run(memoryview(bytearray(batch)), segment, self.source, clock())

    def written(self) -> list[bytes]:
        """Frames that the victim gave to its kernel since the last call."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self.victim.kernel.recv(1 << 17))
            except BlockingIOError:
                return found

    def drops(self) -> Counter[str]:
        """Less what the victim had to say to the hostile peer, which answers no ping and so has no path."""
        counted = Counter(self.victim.snapshot().drops)
        del counted["no_path"]
        return counted

    def close(self) -> None:
        self.peer.close()
        self.victim.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene("record")
    yield made
    made.close()


@pytest.fixture
def stock() -> Iterator[Scene]:
    """The same in WireGuard's own transport."""
    made = Scene("wireguard")
    yield made
    made.close()


def test_every_lie_in_a_frame_is_counted_by_its_name_and_stays_out(scene: Scene) -> None:
    expected: Counter[str] = Counter()
    before = scene.drops()
    for tell in (lies.of_offload_fields, lies.of_headers, lies.of_plain_packets, lies.of_sources):
        for lie in tell(MARKER):
            scene.say(lies.plaintext(lie.frame))
            expected[lie.reason] += 1
            assert scene.written() == [], lie.name
    assert scene.drops() - before == expected
    assert sum(expected.values()) > 7000


def test_every_lie_about_a_frames_length_loses_the_record_alone(scene: Scene) -> None:
    expected: Counter[str] = Counter()
    before = scene.drops()
    for name, plain, reason in lies.of_frame_lengths(MARKER):
        scene.say(plain)
        expected[reason] += 1
        assert scene.written() == [], name
    assert scene.drops() - before == expected


def test_what_is_odd_and_honest_passes(scene: Scene) -> None:
    before = scene.drops()
    for name, frame in lies.honest(MARKER):
        scene.say(lies.plaintext(frame))
        (written,) = scene.written()
        assert written[virtio.VIRTIO_HEADER_SIZE :] == frame[virtio.VIRTIO_HEADER_SIZE :], name
    assert scene.drops() == before


def test_a_lie_between_honest_frames_costs_itself_alone(scene: Scene) -> None:
    honest = [bytes(10) + Flow(protocol=253, hop_limit=limit).packet(b"honest") for limit in (1, 2)]
    for tell in (lies.of_headers, lies.of_sources):
        for lie in tell(MARKER):
            if lie.reason == "bad_ip_version" or "byte" in lie.name:
                continue
            scene.say(lies.plaintext(honest[0], lie.frame, honest[1]))
            assert scene.written() == honest, lie.name


def test_datagrams_that_could_be_merged_are_each_judged(scene: Scene) -> None:
    """Neighbours of one flow become one superpacket: a lie among them must not ride along."""
    flow = Flow(protocol=UDP)
    good = [flow.partial(flow.packet(bytes([number]) * 100, identification=number)) for number in range(6)]
    other = lies.with_source(flow.partial(flow.packet(MARKER.ljust(100))), "10.77.0.4", flow)
    hostile = [
        lies.changed(good[3], gso_type=3),
        lies.changed(good[3], checksum_start=21),
        lies.changed(good[3], checksum_offset=16),
        lies.changed(good[3], flags=4),
        lies.patched(good[3], 24, b"\0\x09"),
        lies.patched(good[3], 6, b"\x20\0"),
        other,
    ]
    for bad in hostile:
        scene.say(lies.plaintext(*good[:3], bad, *good[4:]))
        plain = [packet for frame in scene.written() for packet in split(memoryview(frame))]
        honest = [*good[:3], *good[4:]]
        assert [packet[28:] for packet in plain] == [frame[38:] for frame in honest]
        assert {packet[12:16] for packet in plain} == {ADDRESSES[4][0]}
    drops = scene.drops()
    assert (drops["bad_offload"], drops["wrong_source"]) == (len(hostile) - 1, 1)


any_frame = damaged_frames() | st.builds(
    lambda fields, packet: lies.HEADER.pack(*fields) + packet,
    st.tuples(*[st.integers(0, 255)] * 2, *[st.integers(0, 65535)] * 4),
    st.sampled_from([flow.packet(b"x" * 100) for flow in lies.FLOWS.values()]) | st.binary(max_size=100),
)
any_plaintext = st.lists(any_frame.filter(lambda frame: len(frame) >= lies.VNET_SIZE), max_size=5).map(
    lambda frames: lies.plaintext(*frames)
) | st.binary(max_size=200)


@settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
@given(any_plaintext)
def check_any_plaintext(scene: Scene, plain: bytes) -> None:
    scene.say(plain)
    for written in scene.written():
        exact = memoryview(bytearray(written))
        virtio.validate(exact[: virtio.VIRTIO_HEADER_SIZE], exact[virtio.VIRTIO_HEADER_SIZE :])
        assert exact == written, "the kernel got fields that are not exact"
        packet = written[virtio.VIRTIO_HEADER_SIZE :]
        source = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
        assert source in (ADDRESSES[4][0], ADDRESSES[6][0])
    assert not {"internal_error", "tun_refused"} & scene.victim.loop._drops.counts.keys()


def test_whatever_a_record_holds_the_kernel_gets_exact_fields_from_the_peers_addresses(scene: Scene) -> None:
    check_any_plaintext(scene)


any_report = st.builds(LossReport, *[st.integers(0, 2**32 - 1)] * 5).map(LossReport.encode) | st.builds(
    lambda length, body: struct.pack("<IBB8x", length, 0, REPORT_GSO_TYPE) + body,
    st.integers(0, 40) | st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(any_report, max_size=20))
def check_any_reports(scene: Scene, reports: list[bytes]) -> None:
    for report in reports:
        scene.say(report)
    assert scene.written() == []
    assert "internal_error" not in scene.victim.loop._drops.counts


def test_whatever_a_loss_report_says_it_is_only_believed(scene: Scene) -> None:
    """Totals that jump, epochs that change, bodies of any length: who lies about what came gets smaller records."""
    check_any_reports(scene)
    (peer,) = scene.victim.loop._peers
    assert 1 <= peer.sizer.fragments <= MAX_FRAGMENTS


# --- WireGuard's own transport ----------------------------------------------------------------------------------------


def test_what_is_no_packet_of_the_peers_stays_out_of_the_stock_transport(stock: Scene) -> None:
    before = stock.drops()
    expected: Counter[str] = Counter()
    for tell in (lies.of_plain_packets, lies.of_sources):
        for lie in tell(MARKER):
            if lie.frame[:10] != bytes(10) or is_padded(lie.frame[10:]):
                continue  # here are no offload fields, and padding is allowed
            stock.say(lie.frame[10:])
            expected[lie.reason] += 1
            assert stock.written() == [], lie.name
    assert stock.drops() - before == expected
    assert set(expected) == {"bad_ip_version", "bad_ip_length", "short_packet", "wrong_source"}


def is_padded(packet: bytes) -> bool:
    """Is there more than the header says, and the header whole?"""
    if packet[0] >> 4 == 6:
        return len(packet) > 40 + int.from_bytes(packet[4:6], "big")
    return packet[0] == 0x45 and len(packet) > int.from_bytes(packet[2:4], "big") >= 20


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(any_frame.map(lambda frame: frame[10:]) | st.binary(max_size=100))
def check_any_packet(stock: Scene, packet: bytes) -> None:
    stock.say(packet)
    for written in stock.written():
        assert written[: virtio.VIRTIO_HEADER_SIZE] == virtio.NO_OFFLOAD
        assert packet.startswith(written[virtio.VIRTIO_HEADER_SIZE :])
    assert not {"internal_error", "tun_refused"} & stock.victim.loop._drops.counts.keys()


def test_whatever_a_datagram_holds_the_kernel_gets_it_as_it_is_or_not_at_all(stock: Scene) -> None:
    check_any_packet(stock)


# --- half-finished records --------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_half_finished_records_hold_no_more_than_a_few(scene: Scene) -> None:
    """First fragments, each of another record; the small ones for their number, the large ones for their bytes.

    The reader alone gets a million of them (`tests/wire/record/test_reader.py`).
    """

    def flood(batches: int, datagrams: int, box: bytes) -> None:
        for _ in range(batches):
            batch = b"".join([scene.peer.first_fragment(box, 255) for _ in range(datagrams)])
            scene.run(batch, len(batch) // datagrams)

    flood(1000, 1, bytes(60_000))
    flood(100, 40, bytes(1400))
    before, blocks = resident(), sys.getallocatedblocks()
    flood(2000, 1, bytes(60_000))
    flood(500, 40, bytes(1400))
    flood(200, 1000, b"x")
    assert resident() < before + 2 * MAX_OPEN_BYTES
    assert sys.getallocatedblocks() < blocks + 1000
    drops = scene.drops()
    assert drops["record_evicted"] + drops["record_expired"] >= 227_000 - MAX_OPEN_RECORDS
    scene.say(lies.plaintext(bytes(10) + Flow(protocol=253).packet(b"honest")))
    assert len(scene.written()) == 1


def test_half_finished_records_are_forgotten_by_time(scene: Scene) -> None:
    scene.run(scene.peer.first_fragment(bytes(1000)), 1016)
    (receiver,) = [each for each in scene.victim.loop._peers.receivers.values() if each.record is not None]
    assert receiver.record is not None
    deadline = receiver.record.next_timeout()
    assert deadline is not None
    assert deadline <= clock() + MAX_AGE
    receiver.record.expire(deadline)
    assert scene.drops()["record_expired"] == 1
    assert receiver.record.next_timeout() is None


def test_a_hostile_peer_takes_nothing_from_the_others(scene: Scene) -> None:
    """Its half-finished records are its own session's: another peer's reassembly goes on beside them."""
    other = Driven(4)
    try:
        victim = scene.victim
        victim.know(other)
        other.know(victim)
        first = udp4(other.machine.address, victim.machine.address, b"first")
        other.kernel.send(bytes(10) + first)
        received: list[bytes] = []
        deadline = time.monotonic() + 10
        while first not in received:
            assert time.monotonic() < deadline
            other.loop.turn(0.001)
            victim.loop.turn(0.001)
            received += victim.received()
        for _ in range(50):
            scene.run(b"".join(scene.peer.first_fragment(bytes(1000)) for _ in range(40)), 1016)
            whole = udp4(other.machine.address, victim.machine.address, bytes(20_000))
            other.kernel.send(bytes(10) + whole)
            received.clear()
            while whole not in received:
                assert time.monotonic() < deadline
                other.loop.turn(0.001)
                victim.loop.turn(0.001)
                received += victim.received()
    finally:
        other.close()


def test_lies_in_fragment_headers_are_counted(scene: Scene) -> None:
    (datagram,) = scene.peer.record(lies.plaintext(bytes(10) + Flow(protocol=253).packet(MARKER)))
    for at, value in ((1, 1), (1, 255), (2, 0), (3, 1)):
        hostile = bytearray(datagram)
        hostile[at] = value
        scene.run(bytes(hostile), len(hostile))
    assert scene.drops()["bad_fragment_header"] == 4
    for size in range(16, 32):
        scene.run(datagram[:size], size)
    assert scene.written() == []
    scene.run(datagram, len(datagram))
    assert len(scene.written()) == 1
    scene.run(datagram, len(datagram))
    assert scene.written() == []
    assert scene.drops()["replay"] == 1


def test_the_model_of_what_must_stay_out_is_that_of_the_code_below() -> None:
    """What a lie is named is what the check itself says, without an engine around it."""
    for tell in (lies.of_offload_fields, lies.of_headers, lies.of_plain_packets):
        for lie in tell(MARKER):
            writable = memoryview(bytearray(lie.frame))
            with pytest.raises(RemoteProtocolError) as refused:
                virtio.validate(writable[:10], writable[10:])
            assert refused.value.reason == lie.reason, lie.name
