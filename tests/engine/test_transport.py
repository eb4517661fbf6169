"""Type 4: superpackets out as runs, runs in as packets."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.engine.transport import TransportBuffers, TransportReader, TransportWriter
from overlay.engine.udp import datagrams
from overlay.errors import LocalProtocolError
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, NO_OFFLOAD, VIRTIO_HEADER
from overlay.wire.record.frames import LENGTH
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.replay import ReplayWindow
from tests.engine.rig import udp4

KEY = bytes(range(32))


def keypair() -> Keypair:
    return Keypair(local_index=1, remote_index=2, send_key=KEY, receive_key=KEY, initiator=True, created=0.0)


def frame(packet: bytes, header: bytes = NO_OFFLOAD) -> bytes:
    return LENGTH.pack(len(packet)) + header + packet


def pair(mtu: int = 1420) -> tuple[TransportWriter, TransportReader]:
    buffers = TransportBuffers()
    return TransportWriter(keypair(), mtu, buffers), TransportReader(KEY, ReplayWindow(), buffers)


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
    assert b"".join(bytes(padded[28 : padded[2] << 8 | padded[3]]) for padded in opened) == packet[28:]


def test_an_empty_write_is_a_keepalive_of_32_bytes() -> None:
    writer, reader = pair()
    ((run, segment),) = on_the_wire(writer, b"")
    assert (len(run), segment) == (32, 0)
    assert [bytes(plain) for plain in reader.receive(memoryview(run), len(run))] == [b""]


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
        opened = reader.receive(memoryview(run), segment or len(run))
        received += [bytes(padded[: padded[2] << 8 | padded[3]]) for padded in opened]
    assert received == packets
    assert not reader.drops


def test_thousands_of_tiny_segments_fit_too() -> None:
    writer, reader = pair()
    packet = udp4("10.0.0.1", "10.0.0.2", bytes(127 * 9))
    header = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 9, 20, 6)
    runs = on_the_wire(writer, frame(packet, header) * 40)
    assert sum(len(reader.receive(memoryview(run), segment or len(run))) for run, segment in runs) == 127 * 40


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
    assert reader.receive(memoryview(bytes(damaged)), len(damaged)) == []
    assert len(reader.receive(memoryview(run), len(run))) == 1
    assert reader.receive(memoryview(run), len(run)) == []
    assert reader.receive(memoryview(run[:20]), 20) == []
    assert reader.receive(memoryview(run[:7]), 7) == []
    assert reader.drops == {"bad_tag": 1, "replay": 1, "bad_length": 1, "short_header": 1}


@given(st.binary(max_size=400), st.integers(1, 100))
def test_fuzz_no_bytes_raise(data: bytes, segment: int) -> None:
    _, reader = pair()
    assert reader.receive(memoryview(data), segment) == []
