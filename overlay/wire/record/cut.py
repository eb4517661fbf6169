"""Cutting a superpacket into smaller ones, so that a lost datagram costs less: frames in, frames of fewer segments out.

Knows neither keys nor datagrams. Of what a frame's piece needs, only its headers are made: length, IPv4 identification
and checksum, sequence number, flags, and the length in the checksum that is still to be made (the pseudo-header's sum
stands there, so no payload is ever summed). The pieces' payloads stay where they are: each piece's headers are written
over the end of the piece before it, which by then was sealed.
"""

from collections.abc import Iterator
from struct import Struct

from overlay.wire.packet import virtio
from overlay.wire.packet.checksum import complement, sum16
from overlay.wire.packet.virtio import VIRTIO_HEADER
from overlay.wire.record.frames import FRAME_HEADER, FRAME_HEADER_SIZE, LENGTH, LENGTH_SIZE

_u16 = Struct(">H").pack_into
_two_u16 = Struct(">HH").pack_into
_u32 = Struct(">I").pack_into
_read_u16 = Struct(">H").unpack_from
_read_u32 = Struct(">I").unpack_from

_TCP_FIN_PSH = 0x09
_TCP_CWR = 0x80


def cut(plain: memoryview, room: int) -> Iterator[memoryview]:
    """The frames of one record → plaintexts of several, in order, each of at most `room` bytes where that can be.

    `plain`: one or more frames as our own TUN device gave them, writable. A frame that is larger than `room` and no
    superpacket, and a single segment, stay whole. What the pieces stand for is what the frame stood for: the kernel at
    the other end cuts them to the same packets.

    **Each plaintext is valid until the next one is asked for, and `plain` is used up by it**: seal one, then go on.
    """
    size = len(plain)
    group = start = 0
    while start < size:
        end = start + FRAME_HEADER_SIZE + LENGTH.unpack_from(plain, start)[0]
        if end - group > room:
            if start > group:
                yield plain[group:start]
                group = start
            if end - start > room:
                yield from _pieces(plain[start:end], room)
                group = end
        start = end
    if group < size:
        yield plain[group:]


def _pieces(frame: memoryview, room: int) -> Iterator[memoryview]:
    """One frame → superpackets of as many segments as fit into `room`, at least one."""
    flags, gso_type, _, gso_size, transport, checksum_offset = VIRTIO_HEADER.unpack_from(frame, LENGTH_SIZE)
    kind = gso_type & ~virtio.GSO_ECN
    is_tcp = kind == virtio.GSO_TCPV4 or kind == virtio.GSO_TCPV6
    at_transport = FRAME_HEADER_SIZE + transport
    if not gso_size or not (is_tcp or kind == virtio.GSO_UDP_L4):
        yield frame
        return
    # A forwarding kernel reports any header length, so it is read from the packet.
    payload = transport + (frame[at_transport + 12] >> 4 << 2 if is_tcp else 8)
    head = FRAME_HEADER_SIZE + payload
    size = len(frame)
    step = max(1, (room - head) // gso_size) * gso_size
    if size - head <= step:
        yield frame
        return
    headers = bytearray(frame[:head])
    version4 = headers[FRAME_HEADER_SIZE] >> 4 == 4
    identification = ip_sum = sequence = tcp_flags = 0
    if version4:
        (identification,) = _read_u16(headers, FRAME_HEADER_SIZE + 4)
        headers[FRAME_HEADER_SIZE + 2 : FRAME_HEADER_SIZE + 6] = bytes(4)
        headers[FRAME_HEADER_SIZE + 10 : FRAME_HEADER_SIZE + 12] = bytes(2)
        ip_sum = sum16(headers[FRAME_HEADER_SIZE:at_transport])
    if is_tcp:
        (sequence,) = _read_u32(headers, at_transport + 4)
        tcp_flags = headers[at_transport + 13]
    checksum = at_transport + checksum_offset
    pseudo_sum = _read_u16(headers, checksum)[0] - (size - at_transport)
    for start in range(head, size, step):
        end = min(start + step, size)
        length = payload + end - start
        segment = (start - head) // gso_size
        single = end - start <= gso_size  # nothing to cut: `virtio.validate` would make it so
        kept = kind if start > head else gso_type  # the ECN bit is about CWR, which the first segment keeps
        FRAME_HEADER.pack_into(
            headers, 0, length, flags, 0 if single else kept, payload, 0 if single else gso_size, transport,
            checksum_offset,
        )  # fmt: skip
        if version4:
            number = identification + segment & 0xFFFF
            _two_u16(headers, FRAME_HEADER_SIZE + 2, length, number)
            _u16(headers, FRAME_HEADER_SIZE + 10, complement(ip_sum + length + number))
        else:
            _u16(headers, FRAME_HEADER_SIZE + 4, length - 40)
        if is_tcp:
            _u32(headers, at_transport + 4, sequence + segment * gso_size & 0xFFFFFFFF)
            present = tcp_flags if start == head else tcp_flags & ~_TCP_CWR
            headers[at_transport + 13] = present if end == size else present & ~_TCP_FIN_PSH
        else:
            _u16(headers, at_transport + 4, length - transport)
        _u16(headers, checksum, (pseudo_sum + length - transport) % 0xFFFF)
        frame[start - head : start] = headers
        yield frame[start - head : end]
