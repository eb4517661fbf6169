"""The virtio-net header that stands before each packet of a TUN device opened with `IFF_VNET_HDR`.

    flags u8 | gso type u8 | header length u16 | gso size u16 | checksum start u16 | checksum offset u16

little-endian (VIRTIO 1.2 §5.1.6; `TUNSETVNETLE` makes it so on every host). A peer's record carries these ten bytes to
our kernel, so `validate` holds every field against the packet's own headers first. Nothing here knows records or
devices.
"""

from struct import Struct

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip

VIRTIO_HEADER = Struct("<BBHHHH")
VIRTIO_HEADER_SIZE = VIRTIO_HEADER.size
NO_OFFLOAD = bytes(VIRTIO_HEADER_SIZE)

NEEDS_CSUM = 1
DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3  # IP fragmentation offload; never asked for, never taken
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

TCP_CHECKSUM_OFFSET = 16
UDP_CHECKSUM_OFFSET = 6

MIN_TCP_GSO_SIZE = 8
"""Bytes. The smallest TCP segment that Linux cuts: its least MSS of 48 less 40 of options (`TCP_MIN_GSO_SIZE`)."""

MAX_UDP_SEGMENTS = 128
"""Linux's `UDP_MAX_SEGMENTS`: no kernel makes a larger one, and one datagram must not become thousands of packets."""


def validate(header: memoryview, packet: memoryview) -> None:
    """Check a peer's offload fields against the packet that they belong to, and make them exact.

    `header`: the 10 bytes, writable: the header length is replaced by the true one (a forwarding kernel reports any),
    fields without meaning are cleared, so that the kernel sees nothing that the packet does not bear out. `packet` must
    be exactly as long as its IP header says.

    Raises `RemoteProtocolError`: those of `ip.parse`, `bad_ip_length`, `bad_offload`.
    """
    version, protocol, transport, length = ip.parse(packet)
    if length != len(packet):
        raise RemoteProtocolError("bad_ip_length", "packet longer than its header says")
    flags, gso_type, _, gso_size, checksum_start, checksum_offset = VIRTIO_HEADER.unpack_from(header)
    if flags & ~(NEEDS_CSUM | DATA_VALID):
        raise RemoteProtocolError("bad_offload", "unknown flag")
    if not flags & NEEDS_CSUM:
        if gso_type:
            raise RemoteProtocolError("bad_offload", "segmentation without checksum offload")
        header[:VIRTIO_HEADER_SIZE] = NO_OFFLOAD
        return
    if not transport or checksum_start != transport:
        raise RemoteProtocolError("bad_offload", "checksum start")
    if protocol == ip.TCP:
        payload = _tcp_payload(packet, transport, length)
        if checksum_offset != TCP_CHECKSUM_OFFSET:
            raise RemoteProtocolError("bad_offload", "checksum offset")
    else:
        payload = _udp_payload(packet, transport, length)
        if checksum_offset != UDP_CHECKSUM_OFFSET:
            raise RemoteProtocolError("bad_offload", "checksum offset")
    if gso_type == GSO_NONE:
        gso_size = 0
    else:
        _check_segmentation(version, protocol, gso_type, gso_size, length - payload)
        if length - payload <= gso_size:  # one segment: nothing to cut
            gso_type = gso_size = 0
    VIRTIO_HEADER.pack_into(header, 0, NEEDS_CSUM, gso_type, payload, gso_size, checksum_start, checksum_offset)


def _tcp_payload(packet: memoryview, transport: int, length: int) -> int:
    if transport + 20 > length:
        raise RemoteProtocolError("bad_offload", "no room for a TCP header")
    data_offset = packet[transport + 12] >> 4 << 2
    if data_offset < 20 or transport + data_offset > length:
        raise RemoteProtocolError("bad_offload", "TCP data offset")
    return transport + data_offset


def _udp_payload(packet: memoryview, transport: int, length: int) -> int:
    if transport + 8 > length:
        raise RemoteProtocolError("bad_offload", "no room for a UDP header")
    if packet[transport + 4] << 8 | packet[transport + 5] != length - transport:
        raise RemoteProtocolError("bad_offload", "UDP length")
    return transport + 8


def _check_segmentation(version: int, protocol: int, gso_type: int, gso_size: int, payload_size: int) -> None:
    if protocol == ip.TCP:
        if gso_type & ~GSO_ECN != (GSO_TCPV4 if version == 4 else GSO_TCPV6):
            raise RemoteProtocolError("bad_offload", "segmentation type")
        if gso_size < MIN_TCP_GSO_SIZE:
            raise RemoteProtocolError("bad_offload", "segment size")
    else:
        if gso_type != GSO_UDP_L4:
            raise RemoteProtocolError("bad_offload", "segmentation type")
        if gso_size == 0 or payload_size > gso_size * MAX_UDP_SEGMENTS:
            raise RemoteProtocolError("bad_offload", "segment size")
