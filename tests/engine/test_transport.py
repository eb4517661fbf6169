"""Type 4: superpackets out as runs, runs in as packets."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.engine.transport import TransportBuffers, TransportReader, TransportWriter
from overlay.engine.udp import datagrams
from overlay.errors import LocalProtocolError
from overlay.wire.packet.join import join_padded
from overlay.wire.packet.superpacket import split
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, NO_OFFLOAD, VIRTIO_HEADER
from overlay.wire.record.frames import LENGTH
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.replay import ReplayWindow
from overlay.wire.wireguard.transport import HEADER_SIZE, OVERHEAD
from tests.engine.rig import udp4

KEY = bytes(range(32))


def keypair() -> Keypair:
    return Keypair(local_index=1, remote_index=2, send_key=KEY, receive_key=KEY, initiator=True, created=0.0)


def frame(packet: bytes, header: bytes = NO_OFFLOAD) -> bytes:
    return LENGTH.pack(len(packet)) + header + packet


def pair(mtu: int = 1420) -> tuple[TransportWriter, TransportReader]:
    buffers = TransportBuffers()
    return TransportWriter(keypair(), mtu, buffers), TransportReader(KEY, ReplayWindow(), buffers)


def unpadded(opened: memoryview | None, segment: int) -> list[bytes]:
    """The packets that a reader opened."""
    assert opened is not None
    padded = [opened[at : at + segment - 32] for at in range(0, len(opened), segment - 32)]
    return [bytes(packet[: packet[2] << 8 | packet[3]]) for packet in padded]


def on_the_wire(writer: TransportWriter, plain: bytes) -> list[tuple[bytes, int]]:
    return [(b"".join(buffers), segment) for buffers, segment in writer.write(memoryview(plain))]


def test_a_superpacket_is_one_run_of_equal_datagrams() -> None:
    writer, reader = pair()
    packet = udp4("10.0.0.1", "10.0.0.2", os.urandom(20_500))
    plain = frame(packet, VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6))
    ((run, segment),) = on_the_wire(writer, plain)
    assert segment == 1040 + 32  # 1028 padded to 16
    assert len(list(datagrams([run], segment))) == 21
    opened = reader.receive(memoryview(run), segment)
    assert b"".join(each[28:] for each in unpadded(opened, segment)) == packet[28:]


def test_an_empty_write_is_a_keepalive_of_32_bytes() -> None:
    writer, reader = pair()
    ((run, segment),) = on_the_wire(writer, b"")
    assert (len(run), segment) == (32, 0)
    opened = reader.receive(memoryview(run), len(run))
    assert opened is not None
    assert not opened


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=90), st.sampled_from([0, 1280, 1420]))
def test_packets_of_any_sizes_come_out_as_they_went_in(sizes: list[int], mtu: int) -> None:
    writer, reader = pair(mtu)
    packets = [udp4("10.0.0.1", "10.0.0.2", bytes(size)) for size in sizes]
    received: list[bytes] = []
    for run, segment in on_the_wire(writer, b"".join(map(frame, packets))):
        assert len(run) <= 65_000
        parts = list(datagrams([run], segment))
        assert len(parts) <= 64
        assert (segment == 0) == (len(parts) == 1)
        segment = segment or len(run)
        received += unpadded(reader.receive(memoryview(run), segment), segment)
    assert received == packets
    assert not reader.drops


def test_thousands_of_tiny_segments_fit_too() -> None:
    writer, reader = pair()
    packet = udp4("10.0.0.1", "10.0.0.2", bytes(127 * 9))
    header = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 9, 20, 6)
    runs = on_the_wire(writer, frame(packet, header) * 40)
    opened = [reader.receive(memoryview(run), segment or len(run)) for run, segment in runs]
    assert sum(len(packets or b"") for packets in opened) == 127 * 40 * 48  # 37 bytes, padded


def test_a_packet_that_fits_no_datagram_is_refused_before_a_counter_is_used() -> None:
    pair_ = keypair()
    writer = TransportWriter(pair_, 0, TransportBuffers())
    with pytest.raises(LocalProtocolError):
        writer.write(memoryview(frame(udp4("10.0.0.1", "10.0.0.2", bytes(65_490)))))
    assert pair_.send_counter == 0


def test_damaged_replayed_and_short_datagrams_are_counted() -> None:
    writer, reader = pair()
    ((run, _),) = on_the_wire(writer, frame(udp4("10.0.0.1", "10.0.0.2", b"x")))
    damaged = bytearray(run)
    damaged[-1] ^= 1
    assert reader.receive(memoryview(bytes(damaged)), len(damaged)) is None
    assert len(reader.receive(memoryview(run), len(run)) or b"") == 32
    assert reader.receive(memoryview(run), len(run)) is None
    assert reader.receive(memoryview(run[:20]), 20) is None
    assert reader.receive(memoryview(run[:7]), 7) is None
    assert reader.drops == {"bad_tag": 1, "replay": 1, "bad_length": 1, "short_header": 1}


def numbered(writer: TransportWriter, count: int, size: int = 100) -> tuple[list[bytes], list[bytes], int]:
    """Packets and their datagrams, all of one size, and that size."""
    packets = [udp4("10.0.0.1", "10.0.0.2", bytes([number]) * size) for number in range(count)]
    ((run, segment),) = on_the_wire(writer, b"".join(map(frame, packets)))
    return packets, list(datagrams([run], segment)), segment


def test_a_damaged_datagram_costs_itself_alone() -> None:
    for damaged in (0, 1, 20, 39):
        writer, reader = pair()
        on_the_wire(writer, b"")  # a first counter other than 0
        packets, sent, segment = numbered(writer, 40)
        sent[damaged] = sent[damaged][:-1] + bytes([sent[damaged][-1] ^ 1])
        opened = unpadded(reader.receive(memoryview(b"".join(sent)), segment), segment)
        assert opened == packets[:damaged] + packets[damaged + 1 :]
        assert reader.drops == {"bad_tag": 1}
        # What was lost may still come; what was taken may not.
        assert reader.receive(memoryview(b"".join(sent)), segment) is None
        assert reader.drops == {"bad_tag": 2, "replay": 39}


@given(st.permutations(range(1, 41)), st.integers(1, 40))
def test_datagrams_in_any_order_are_opened_once(order: list[int], size: int) -> None:
    writer, reader = pair()
    on_the_wire(writer, b"")
    packets, sent, segment = numbered(writer, 41)
    received: list[bytes] = []
    for start in range(0, 40, size):
        run = memoryview(b"".join(sent[number] for number in order[start : start + size]))
        received += unpadded(reader.receive(run, segment), segment)
        assert reader.receive(run, segment) is None
    assert received == [packets[number] for number in order]
    assert reader.drops == {"replay": 40}
    assert unpadded(reader.receive(memoryview(sent[0]), segment), segment) == packets[:1]


def test_a_run_may_end_with_a_shorter_datagram_or_a_keepalive() -> None:
    for last in (b"x" * 20, None):
        writer, reader = pair()
        packets, sent, segment = numbered(writer, 10)
        if last is not None:
            packets.append(udp4("10.0.0.1", "10.0.0.2", last))
        ((run, _),) = on_the_wire(writer, b"" if last is None else frame(packets[-1]))
        opened = reader.receive(memoryview(b"".join(sent) + run), segment)
        assert unpadded(opened, segment) == packets


def test_other_messages_in_a_run_are_counted() -> None:
    writer, reader = pair()
    on_the_wire(writer, b"")
    packets, sent, segment = numbered(writer, 6)
    sent[2] = b"\1" + sent[2][1:]
    sent[4] = (
        sent[4][:4] + b"\xff" + sent[4][5:]
    )  # another receiver: the header is under no tag, so the box still opens
    opened = unpadded(reader.receive(memoryview(b"".join(sent)), segment), segment)
    assert opened == packets[:2] + packets[3:]
    assert reader.drops == {"unknown_type": 1}


def test_more_datagrams_than_a_kernel_puts_in_a_run() -> None:
    writer, reader = pair()
    sent = b"".join(run for run, _ in on_the_wire(writer, frame(udp4("10.0.0.1", "10.0.0.2", b"abcd")) * 700))
    opened = reader.receive(memoryview(sent), 64)
    assert unpadded(opened, 64) == [udp4("10.0.0.1", "10.0.0.2", b"abcd")] * 700


def test_sizes_that_change_all_the_time() -> None:
    writer, reader = pair()
    for size in range(300):
        packets, sent, segment = numbered(writer, 3, size)
        assert unpadded(reader.receive(memoryview(b"".join(sent)), segment), segment) == packets


@given(st.binary(max_size=400), st.integers(1, 100))
def test_fuzz_no_bytes_raise(data: bytes, segment: int) -> None:
    _, reader = pair()
    assert reader.receive(memoryview(data), segment) is None


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8), st.integers(0, 100))
def test_fuzz_whatever_a_peer_seals_is_a_packet_or_counted(plains: list[bytes], size: int) -> None:
    """Authentic datagrams of one size and any content, the last shorter."""
    writer, reader = pair()
    packets = [plain[:size] + bytes(size - len(plain[:size])) for plain in plains[:-1]] + [plains[-1][:size]]
    offsets = [number * (size + OVERHEAD) for number in range(len(packets))]
    out = memoryview(bytearray(offsets[-1] + len(packets[-1]) + OVERHEAD))
    boxes = [out[at + HEADER_SIZE : at + len(packet) + OVERHEAD] for at, packet in zip(offsets, packets, strict=True)]
    writer._seal(packets, offsets, boxes, out)
    opened = reader.receive(out, size + OVERHEAD)
    assert opened is not None
    assert bytes(opened) == b"".join(packets)
    if opened:
        frames = join_padded(opened, size, reader.drops)
        after = [packet for joined in frames for packet in split(memoryview(joined))]
        assert len(after) + reader.drops.total() == sum(map(bool, packets))
