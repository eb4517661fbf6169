"""Packets of one flow under one header, or one packet that others may join: what `join` puts together.

Says what may be joined, by Linux's rules, and builds the superpacket. Nothing here knows where packets come from.
"""

from struct import Struct

from overlay.wire.packet import ip, virtio
from overlay.wire.packet.checksum import complement, is_complete, pseudo_header, sum16
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.superpacket import MAX_SUPERPACKET, MAX_UDP_SEGMENTS
from overlay.wire.packet.virtio import NO_OFFLOAD, VIRTIO_HEADER

TCP_PSH = 0x08
TCP_ACK = 0x10
_DONT_FRAGMENT = 0x40

_u16 = Struct(">H").pack_into


class Segments:
    """Packets that stand, or may come to stand, under one header: that of `packet`, the first in sequence."""

    __slots__ = (
        "_right", "alike", "ended", "flow", "frame", "identification", "is_tcp", "packet", "packets", "partial",
        "parts", "payload", "position", "pushed", "segments", "sequence", "size", "tail", "transport",
    )  # fmt: skip

    def __init__(
        self,
        packet: memoryview,
        frame: memoryview | None,
        flow: bytes,
        transport: int,
        payload: int,
        gso_size: int,
        partial: int,
        alike: bytes,
    ) -> None:
        self.packet = packet
        self.frame = frame
        self.flow = flow
        self.transport = transport  # offsets
        self.payload = payload
        self.partial = partial  # non-zero: the transport's checksum is still to be made
        self.alike = alike  # header bytes that all must share
        self.parts: list[Octets] = [packet[payload:]]
        self.packets = 1
        self.tail = len(packet) - payload  # bytes of payload in all
        self.size = gso_size or self.tail  # of one segment
        self.segments = -(-self.tail // self.size)
        self.identification = packet[4] << 8 | packet[5]
        self.is_tcp = False
        self.sequence = 0
        self.pushed = False
        self.ended = self.tail < self.segments * self.size  # a smaller segment is the last one
        self.position = 0  # in the output
        self._right: bool | None = None  # not looked at yet

    @property
    def counts_identification(self) -> bool:
        """RFC 6864 §4.1: the identification means something only where fragmentation may happen (DF clear)."""
        return self.transport == 20 and not self.packet[6] & _DONT_FRAGMENT

    def room(self) -> int:
        """How many more packets like the first fit under this header."""
        tail = self.tail // self.packets
        room = (MAX_SUPERPACKET - self.payload - self.tail) // tail
        if not self.is_tcp:
            room = min(room, (MAX_UDP_SEGMENTS - self.segments) * self.size // tail)
        return max(0, room)

    def takes(self, other: "Segments") -> bool:
        """May `other`, of the same flow and next in sequence, follow under this header?"""
        if self.ended or self.alike != other.alike:
            return False
        if other.size > self.size or (other.size < self.size and other.segments > 1):
            return False
        if self.payload + self.tail + other.tail > MAX_SUPERPACKET:
            return False
        if not self.is_tcp and self.segments + other.segments > MAX_UDP_SEGMENTS:
            return False
        if self.counts_identification and self.identification + self.segments & 0xFFFF != other.identification:
            return False
        return self.right() and other.right()

    def right(self) -> bool:
        """Are the checksums of the packet right? Looked at only when it is to be joined: alone, it goes as it came."""
        if self._right is None:
            self._right = self._has_right_checksums()
        return self._right

    def judge(self, *, right: bool) -> None:
        """The checksums of the packet were looked at elsewhere."""
        self._right = right

    def _has_right_checksums(self) -> bool:
        packet, transport = self.packet, self.transport
        if transport == 20 and sum16(packet[:20]):
            return False
        if self.partial:
            return True
        if self.is_tcp:
            return is_complete(packet[12 if transport == 20 else 8 :], ip.TCP, len(packet) - transport)
        # A datagram sent without a checksum stays so.
        checksum = packet[transport + 6] | packet[transport + 7]
        return checksum != 0 and is_complete(packet[12 if transport == 20 else 8 :], ip.UDP, len(packet) - transport)

    def append(self, other: "Segments") -> None:
        self.ended = other.ended or other.size < self.size
        self.pushed = other.pushed
        self.parts += other.parts
        self.packets += other.packets
        self.tail += other.tail
        self.segments += other.segments

    def build(self) -> Octets:
        """The frame; the one that came, if its packet stayed alone."""
        packet = self.packet
        payload = self.payload
        transport = self.transport
        if self.packets == 1:
            return self.frame if self.frame is not None else b"".join((NO_OFFLOAD, packet))
        headers = bytearray(packet[:payload])
        length = transport_length = payload - transport + self.tail
        if transport == 20:
            addresses = packet[12:20]
            length += transport
            _u16(headers, 2, length)
            _u16(headers, 10, 0)
            _u16(headers, 10, complement(sum16(headers[:20])))
        else:
            addresses = packet[8:40]
            _u16(headers, 4, transport_length)
        if self.is_tcp:
            protocol, checksum_offset = ip.TCP, virtio.TCP_CHECKSUM_OFFSET
            gso_type = virtio.GSO_TCPV4 if transport == 20 else virtio.GSO_TCPV6
            if self.pushed:
                headers[transport + 13] |= TCP_PSH
        else:
            protocol, gso_type, checksum_offset = ip.UDP, virtio.GSO_UDP_L4, virtio.UDP_CHECKSUM_OFFSET
            _u16(headers, transport + 4, transport_length)
        _u16(headers, transport + checksum_offset, pseudo_header(addresses, protocol, transport_length))
        offload = VIRTIO_HEADER.pack(virtio.NEEDS_CSUM, gso_type, payload, self.size, transport, checksum_offset)
        return b"".join((offload, headers, *self.parts))


def tcp_segment(
    packet: memoryview, frame: memoryview | None, flow: bytes, transport: int, gso_size: int, partial: int
) -> Segments | None:
    """A TCP segment that may be joined; None: it may not."""
    size = len(packet)
    payload = transport + (packet[transport + 12] >> 4 << 2) if size >= transport + 20 else 0
    if payload < transport + 20 or payload >= size:
        return None
    flags = packet[transport + 13]
    if flags & ~TCP_PSH != TCP_ACK:
        return None
    # Acknowledgement, data offset, window, urgent pointer and options: as Linux's tcp_gro_receive compares them.
    alike = b"".join(
        (
            _ip_alike(packet, transport),
            packet[transport + 8 : transport + 13],
            packet[transport + 14 : transport + 16],
            packet[transport + 18 : payload],
        )
    )
    run = Segments(packet, frame, flow, transport, payload, gso_size, partial, alike)
    run.is_tcp = True
    run.sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big")
    run.pushed = flags & TCP_PSH != 0
    # Nothing follows a push, nor may a superpacket's segments be smaller than `virtio.validate` takes.
    run.ended |= run.pushed or run.size < virtio.MIN_TCP_GSO_SIZE
    return run


def udp_datagram(
    packet: memoryview, frame: memoryview | None, flow: bytes, transport: int, gso_size: int, partial: int
) -> Segments | None:
    """A UDP datagram that may be joined; None: it may not."""
    payload = transport + 8
    if payload >= len(packet) or packet[transport + 4] << 8 | packet[transport + 5] != len(packet) - transport:
        return None
    return Segments(packet, frame, flow, transport, payload, gso_size, partial, _ip_alike(packet, transport))


def _ip_alike(packet: memoryview, transport: int) -> bytes:
    """What packets of one flow must share in their IP headers: traffic class, flow label, DF, hop limit."""
    if transport == 20:
        return packet[1:2].tobytes() + packet[6:9].tobytes()
    return packet[:4].tobytes() + packet[7:8].tobytes()
