"""Superpackets: many TCP segments or UDP datagrams of one flow under one header, as TUN devices trade them.

`split` does in Python what a kernel or a NIC does for a superpacket (TSO, USO, and checksum completion): for peers that
take one packet at a time, and for devices without offloads. `join` is the inverse (GRO): it puts together only what
`split` would cut to the same packets again. A **frame** here is a virtio-net header and its packet, side by side.
Nothing here knows records, devices or sessions.
"""

from collections.abc import Iterable
from struct import Struct

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip, virtio
from overlay.wire.packet.checksum import complement, complement_udp, is_complete, pseudo_header, sum16
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.virtio import NO_OFFLOAD, VIRTIO_HEADER, VIRTIO_HEADER_SIZE

MAX_SUPERPACKET = 65535
"""Bytes, headers included: what an IPv4 total length can say."""

MAX_UDP_SEGMENTS = 64
"""Datagrams that `join` puts under one header: `UDP_MAX_SEGMENTS` of older kernels; newer ones take 128."""

_u16 = Struct(">H").pack_into
_u32 = Struct(">I").pack_into

_TCP_PSH = 0x08
_TCP_FIN_PSH = 0x09
_TCP_ACK = 0x10
_TCP_CWR = 0x80


def split(frame: memoryview) -> list[bytes]:
    """A frame → the plain packets that it stands for, in order, each complete with full checksums.

    As Linux cuts: IPv4 identification and TCP sequence number count on, FIN and PSH are kept by the last segment, CWR
    by the first. A frame without offloads gives its packet as it is; one with a checksum still to be made gives the
    packet with it, whatever its protocol.

    Raises `RemoteProtocolError`: `short_frame`, and those of `virtio.validate`.
    """
    if len(frame) < VIRTIO_HEADER_SIZE:
        raise RemoteProtocolError("short_frame")
    flags, gso_type, _, _, checksum_start, checksum_offset = VIRTIO_HEADER.unpack_from(frame)
    packet = frame[VIRTIO_HEADER_SIZE:]
    if gso_type == virtio.GSO_NONE:
        if flags & virtio.NEEDS_CSUM:
            return [_complete(packet, checksum_start, checksum_offset)]
        return [bytes(packet)]
    header = bytearray(frame[:VIRTIO_HEADER_SIZE])
    virtio.validate(memoryview(header), packet)
    _, gso_type, payload, gso_size, transport, checksum_offset = VIRTIO_HEADER.unpack(header)
    if gso_type == virtio.GSO_NONE:  # so short that it was a single segment
        return [_complete(packet, transport, checksum_offset)]
    if gso_type == virtio.GSO_UDP_L4:
        return _split_udp(packet, transport, gso_size)
    return _split_tcp(packet, transport, payload, gso_size)


def _complete(packet: memoryview, start: int, offset: int) -> bytes:
    """Replace the pseudo-header's sum, which stands in the checksum field, by the checksum."""
    field = start + offset
    if field + 2 > len(packet):
        raise RemoteProtocolError("bad_offload", "checksum outside the packet")
    whole = bytearray(packet)
    total = sum16(packet[start:])
    # Only UDP has a value for "no checksum" to stay clear of, and its offset tells it from TCP.
    _u16(whole, field, complement_udp(total) if offset == virtio.UDP_CHECKSUM_OFFSET else complement(total))
    return bytes(whole)


class _Template:
    """The headers that the segments share, and the sums over what does not change from one to the next.

    `cut` fills in lengths and IPv4 identification; the transport's own fields are the caller's.
    """

    __slots__ = ("headers", "identification", "ip_sum", "pseudo_sum", "transport", "version4")

    def __init__(self, packet: memoryview, transport: int, payload: int, checksum_field: int) -> None:
        self.headers = bytearray(packet[:payload])
        self.transport = transport
        self.version4 = packet[0] >> 4 == 4
        # The kernel left the pseudo-header's sum, with the superpacket's length, in the checksum field.
        self.pseudo_sum = (packet[checksum_field] << 8 | packet[checksum_field + 1]) - (len(packet) - transport)
        _u16(self.headers, checksum_field, 0)
        self.identification = packet[4] << 8 | packet[5]
        if self.version4:
            self.headers[2:6] = bytes(4)
            self.headers[10:12] = bytes(2)
            self.ip_sum = sum16(self.headers[:transport])

    def number(self, index: int, length: int) -> None:
        """Make the IP header that of segment `index`, `length` bytes in all."""
        headers = self.headers
        if self.version4:
            identification = self.identification + index & 0xFFFF
            _u16(headers, 2, length)
            _u16(headers, 4, identification)
            _u16(headers, 10, complement(self.ip_sum + length + identification))
        else:
            _u16(headers, 4, length - 40)


def _split_tcp(packet: memoryview, transport: int, payload: int, gso_size: int) -> list[bytes]:
    field = transport + virtio.TCP_CHECKSUM_OFFSET
    template = _Template(packet, transport, payload, field)
    headers = template.headers
    sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big")
    first_flags = packet[transport + 13] & ~_TCP_FIN_PSH
    last_flags = packet[transport + 13] & ~_TCP_CWR
    middle_flags = first_flags & ~_TCP_CWR
    _u32(headers, transport + 4, 0)
    headers[transport + 13] = 0
    # What is the same in every segment: pseudo-header without length, transport header without sequence and flags.
    fixed_sum = template.pseudo_sum + sum16(headers[transport:]) - transport
    segments: list[bytes] = []
    end = len(packet)
    for index, start in enumerate(range(payload, end, gso_size)):
        data = packet[start : start + gso_size]
        length = payload + len(data)
        flags = first_flags if index == 0 else last_flags if start + gso_size >= end else middle_flags
        template.number(index, length)
        _u32(headers, transport + 4, sequence)
        headers[transport + 13] = flags
        total = fixed_sum + length + (sequence >> 16) + (sequence & 0xFFFF) + flags + sum16(data)
        _u16(headers, field, complement(total))
        segments.append(b"".join((headers, data)))
        sequence = sequence + gso_size & 0xFFFFFFFF
    return segments


def _split_udp(packet: memoryview, transport: int, gso_size: int) -> list[bytes]:
    field = transport + virtio.UDP_CHECKSUM_OFFSET
    payload = transport + 8
    template = _Template(packet, transport, payload, field)
    headers = template.headers
    _u16(headers, transport + 4, 0)
    fixed_sum = template.pseudo_sum + sum16(headers[transport:])
    segments: list[bytes] = []
    for index, start in enumerate(range(payload, len(packet), gso_size)):
        data = packet[start : start + gso_size]
        length = 8 + len(data)
        template.number(index, transport + length)
        _u16(headers, transport + 4, length)
        # The length counts twice: in the pseudo-header and in the header.
        _u16(headers, field, complement_udp(fixed_sum + 2 * length + sum16(data)))
        segments.append(b"".join((headers, data)))
    return segments


def join(packets: Iterable[Octets], *, tcp: bool = True, udp: bool = True) -> list[Octets]:
    """Plain packets, in order → frames in which neighbours of one flow are one superpacket.

    Put together are whole packets with right checksums that differ only in what `split` counts on: TCP segments with
    ACK or ACK and PSH and a payload, next to one another in sequence; UDP datagrams of one size, the last may be
    smaller. Packets of one flow never overtake one another, except TCP segments that stood in the wrong order. `tcp`,
    `udp`: what the device takes (`TUN_F_TSO*`, `TUN_F_USO*`). Never raises: what it does not know, it leaves alone.
    """
    joiner = _Joiner(tcp, udp)
    for packet in packets:
        joiner.add(memoryview(packet), None, 0, 0)
    return joiner.frames()


def join_frames(frames: Iterable[memoryview], *, tcp: bool = True, udp: bool = True) -> list[Octets]:
    """As `join`, for frames that `virtio.validate` has passed; what cannot be joined comes back as the same object.

    A checksum that is still to be made is not verified: the record that brought the frame was authenticated. Frames
    that are superpackets already grow further, if their segment sizes agree.
    """
    joiner = _Joiner(tcp, udp)
    for frame in frames:
        flags, gso_type, _, gso_size, _, _ = VIRTIO_HEADER.unpack_from(frame)
        joiner.add(frame[VIRTIO_HEADER_SIZE:], frame, flags & virtio.NEEDS_CSUM, gso_size if gso_type else 0)
    return joiner.frames()


class _Run:
    """Packets that stand, or may come to stand, under one header: that of `packet`, the first in sequence."""

    __slots__ = (
        "alike", "ended", "frame", "identification", "packet", "parts", "payload", "position", "pushed", "segments",
        "sequence", "size", "tail", "transport",
    )  # fmt: skip

    def __init__(
        self, packet: memoryview, frame: memoryview | None, transport: int, payload: int, gso_size: int, alike: bytes
    ) -> None:
        self.packet = packet
        self.frame = frame
        self.transport = transport  # offsets
        self.payload = payload
        self.alike = alike  # header bytes that all must share
        self.parts = [packet[payload:]]
        self.tail = len(packet) - payload  # bytes of payload in all
        self.size = gso_size or self.tail  # of one segment
        self.segments = -(-self.tail // self.size)
        self.identification = packet[4] << 8 | packet[5]
        self.sequence = 0
        self.pushed = False
        self.ended = self.tail < self.segments * self.size  # a smaller segment is the last one
        self.position = 0  # in the output

    def takes(self, other: "_Run") -> bool:
        """May `other`, of the same flow, follow under this header, as far as all but the sequence goes?"""
        if self.ended or self.alike != other.alike:
            return False
        if other.size > self.size or (other.size < self.size and other.segments > 1):
            return False
        if self.payload + self.tail + other.tail > MAX_SUPERPACKET:
            return False
        # RFC 6864 §4.1: the identification means something only where fragmentation may happen (DF clear).
        return (
            self.transport != 20
            or self.packet[6] & 0x40 != 0
            or self.identification + self.segments & 0xFFFF == other.identification
        )

    def append(self, other: "_Run") -> None:
        self.ended = other.ended or other.size < self.size
        self.pushed = other.pushed
        self.parts += other.parts
        self.tail += other.tail
        self.segments += other.segments

    def build(self) -> Octets:
        """The frame; the one that came, if its packet stayed alone."""
        packet = self.packet
        payload = self.payload
        transport = self.transport
        if len(self.parts) == 1:
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
        if payload - transport == 8:
            protocol, gso_type, checksum_offset = ip.UDP, virtio.GSO_UDP_L4, virtio.UDP_CHECKSUM_OFFSET
            _u16(headers, transport + 4, transport_length)
        else:
            protocol, checksum_offset = ip.TCP, virtio.TCP_CHECKSUM_OFFSET
            gso_type = virtio.GSO_TCPV4 if transport == 20 else virtio.GSO_TCPV6
            if self.pushed:
                headers[transport + 13] |= _TCP_PSH
        _u16(headers, transport + checksum_offset, pseudo_header(addresses, protocol, transport_length))
        offload = VIRTIO_HEADER.pack(virtio.NEEDS_CSUM, gso_type, payload, self.size, transport, checksum_offset)
        return b"".join((offload, headers, *self.parts))


class _Joiner:
    """The packets of one batch, in order, and the last run of each flow in it, to which more may come."""

    __slots__ = ("_last", "_output", "_protocols")

    def __init__(self, tcp: bool, udp: bool) -> None:
        self._protocols = {protocol for protocol, wanted in ((ip.TCP, tcp), (ip.UDP, udp)) if wanted}
        self._output: list[_Run | Octets] = []
        self._last: dict[bytes, _Run] = {}

    def frames(self) -> list[Octets]:
        return [entry.build() if isinstance(entry, _Run) else entry for entry in self._output]

    def add(self, packet: memoryview, frame: memoryview | None, partial: int, gso_size: int) -> None:
        """`frame`: what `packet` came in, if in one; `partial`: non-zero if its checksum is still to be made."""
        size = len(packet)
        if size >= 28 and packet[0] == 0x45 and packet[2] << 8 | packet[3] == size:
            transport = 20
            protocol = packet[9]
            flow = b"%c%b" % (protocol, packet[12:24].tobytes())
            whole = not (packet[6] & 0x3F or packet[7]) and sum16(packet[:20]) == 0
        elif size >= 48 and packet[0] >> 4 == 6 and (packet[4] << 8 | packet[5]) + 40 == size:
            transport = 40
            protocol = packet[6]
            flow = b"%c%b" % (protocol, packet[8:44].tobytes())
            whole = True
        else:
            # Options, extension headers, or nothing known: it may belong to any flow, and none may overtake it.
            self._last.clear()
            self._output.append(frame if frame is not None else b"".join((NO_OFFLOAD, packet)))
            return
        run = None
        if whole and protocol in self._protocols:
            read = _tcp_run if protocol == ip.TCP else _udp_run
            run = read(packet, frame, transport, partial, gso_size)
        if run is None:
            if not whole:
                self._last.clear()  # a fragment shows no ports
            self._last.pop(flow, None)
            self._output.append(frame if frame is not None else b"".join((NO_OFFLOAD, packet)))
            return
        last = self._last.get(flow)
        if last is not None:
            is_tcp = protocol == ip.TCP
            if (not is_tcp or last.sequence + last.tail & 0xFFFFFFFF == run.sequence) and _fits(last, run, is_tcp):
                last.append(run)
                return
            if is_tcp and run.sequence + run.tail & 0xFFFFFFFF == last.sequence and run.takes(last):
                run.append(last)
                run.position = last.position
                self._output[last.position] = run
                self._last[flow] = run
                return
        run.position = len(self._output)
        self._output.append(run)
        self._last[flow] = run


def _fits(last: _Run, run: _Run, is_tcp: bool) -> bool:
    return last.takes(run) and (is_tcp or last.segments + run.segments <= MAX_UDP_SEGMENTS)


def _tcp_run(packet: memoryview, frame: memoryview | None, transport: int, partial: int, gso_size: int) -> _Run | None:
    """A TCP segment that may be joined; None: it may not."""
    size = len(packet)
    payload = transport + (packet[transport + 12] >> 4 << 2) if size >= transport + 20 else 0
    if payload < transport + 20 or payload >= size:
        return None
    flags = packet[transport + 13]
    if flags & ~_TCP_PSH != _TCP_ACK or not (partial or _has_right_checksum(packet, transport, ip.TCP)):
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
    run = _Run(packet, frame, transport, payload, gso_size, alike)
    run.sequence = int.from_bytes(packet[transport + 4 : transport + 8], "big")
    run.pushed = flags & _TCP_PSH != 0
    # Nothing follows a push, nor may a superpacket's segments be smaller than `virtio.validate` takes.
    run.ended |= run.pushed or run.size < virtio.MIN_TCP_GSO_SIZE
    return run


def _udp_run(packet: memoryview, frame: memoryview | None, transport: int, partial: int, gso_size: int) -> _Run | None:
    """A UDP datagram that may be joined; None: it may not."""
    payload = transport + 8
    if payload >= len(packet) or packet[transport + 4] << 8 | packet[transport + 5] != len(packet) - transport:
        return None
    if not partial and (
        packet[transport + 6] | packet[transport + 7] == 0  # sent without a checksum: stays so
        or not _has_right_checksum(packet, transport, ip.UDP)
    ):
        return None
    return _Run(packet, frame, transport, payload, gso_size, _ip_alike(packet, transport))


def _ip_alike(packet: memoryview, transport: int) -> bytes:
    """What packets of one flow must share in their IP headers: traffic class, flow label, DF, hop limit."""
    if transport == 20:
        return packet[1:2].tobytes() + packet[6:9].tobytes()
    return packet[:4].tobytes() + packet[7:8].tobytes()


def _has_right_checksum(packet: memoryview, transport: int, protocol: int) -> bool:
    return is_complete(packet[12 if transport == 20 else 8 :], protocol, len(packet) - transport)
