"""Runs become datagrams with headers that are right, inner packets stay what they are."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.daemon.capture import Inner, Outer
from overlay_cli.capture.packets import Offload, inner_packet, outer_packets
from tests.cli.capture.samples import LOCAL, LOCAL6, REMOTE, REMOTE6, TIME, ones_complement_ok


def outer(data: bytes, segment: int, *, outbound: bool = True, ipv6: bool = False) -> Outer:
    local, remote = (LOCAL6, REMOTE6) if ipv6 else (LOCAL, REMOTE)
    return Outer(TIME, outbound, local, remote, segment, data)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(1, 120), st.booleans(), st.booleans())
def test_a_run_is_cut_to_datagrams_with_right_headers(run: bytes, segment: int, ipv6: bool, outbound: bool) -> None:
    packets = list(outer_packets(outer(run, segment, ipv6=ipv6, outbound=outbound), 1 << 18))
    assert b"".join(packet.message for packet in packets) == run
    for packet in packets:
        data, payload = packet.data, packet.message
        assert packet.size == len(data) == len(payload) + (48 if ipv6 else 28)
        assert (packet.time, packet.outbound) == (TIME, outbound)
        if ipv6:
            assert data[0] >> 4 == 6 and struct.unpack(">HB", data[4:7]) == (8 + len(payload), 17)
            pseudo, udp = data[8:40] + struct.pack(">II", 8 + len(payload), 17), data[40:]
        else:
            assert data[0] == 0x45 and struct.unpack(">H", data[2:4]) == (len(data),) and data[9] == 17
            assert ones_complement_ok(data[:20])
            pseudo, udp = data[12:20] + struct.pack(">HH", 17, 8 + len(payload)), data[20:]
        ports = struct.unpack(">HHH", udp[:6])
        assert ports == ((50380, 33771) if outbound else (33771, 50380)) + (8 + len(payload),)
        assert udp[6:8] != b"\0\0" and ones_complement_ok(pseudo + udp)


def test_a_sum_of_zero_is_sent_as_all_ones() -> None:
    (first,) = outer_packets(outer(bytes(2), 2), 1 << 18)
    missing = first.data[26:28]
    (second,) = outer_packets(outer(missing, 2), 1 << 18)
    assert second.data[26:28] == b"\xff\xff"


def test_datagrams_are_cut_to_the_snap_length_and_keep_their_size() -> None:
    packets = list(outer_packets(outer(bytes(300), 100), 40))
    assert [(len(packet.data), packet.size, len(packet.message)) for packet in packets] == [(40, 128, 12)] * 3


def test_an_empty_datagram_is_one_too() -> None:
    (packet,) = outer_packets(outer(b"", 1), 1 << 18)
    assert packet.size == 28 and packet.message == b""


def test_a_scope_is_no_part_of_an_address() -> None:
    message = Outer(TIME, False, ("fe80::1", 1), ("fe80::2%eth0", 2), 1, b"x")
    (packet,) = outer_packets(message, 1 << 18)
    assert packet.data[8:24] == bytes.fromhex("fe80") + bytes(13) + b"\x02"


@pytest.mark.parametrize(
    ("header", "offload"),
    [
        (bytes(10), Offload()),
        (struct.pack("<BBHHHH", 1, 0, 0, 0, 20, 16), Offload(checksum=True)),
        (struct.pack("<BBHHHH", 1, 1, 52, 1340, 20, 16), Offload(checksum=True, segment=1340)),
        (struct.pack("<BBHHHH", 1, 0x84, 52, 1340, 20, 16), Offload(checksum=True, segment=1340)),
        (struct.pack("<BBHHHH", 2, 0, 0, 0, 0, 0), Offload()),
    ],
)
def test_offload_fields(header: bytes, offload: Offload) -> None:
    packet = inner_packet(Inner(TIME, True, 40, header + b"E" * 20))
    assert (packet.data, packet.size, packet.offload, packet.ends) == (b"E" * 20, 40, offload, None)


@settings(deadline=None)
@given(st.binary(max_size=9))
def test_data_without_its_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="virtio"):
        inner_packet(Inner(TIME, True, 40, data))
