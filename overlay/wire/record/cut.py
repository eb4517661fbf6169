"""Cutting a superpacket into smaller ones, so that a lost datagram costs less: frames in, frames of fewer segments out.

Knows neither keys nor datagrams. Of what a frame's piece needs, only its headers are made: length, IPv4 identification
and checksum, sequence number, flags, and the length in the checksum that is still to be made (the pseudo-header's sum
stands there, so no payload is ever summed). The pieces' payloads stay where they are: each piece's headers are written
over the end of the piece before it, which by then was sealed.
"""

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct

from overlay.wire.packet import virtio
from overlay.wire.packet.checksum import sum16
from overlay.wire.packet.virtio import VIRTIO_HEADER
from overlay.wire.record.frames import FRAME_HEADER, FRAME_HEADER_SIZE, LENGTH, LENGTH_SIZE

_TCP_FIN_PSH = 0x09
_TCP_CWR = 0x80
_IPV6_SIZE = 40


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
                cutting = cutting_of(plain[start:end], room)
                if cutting is None:
                    yield plain[start:end]
                else:
                    yield from cutting.pieces()
                group = end
        start = end
    if group < size:
        yield plain[group:]


def cutting_of(plain: memoryview, room: int) -> "Cutting | None":
    """How a superpacket that is alone in its record is cut, so that a piece has at most `room` bytes, or one segment.
    None: there is nothing to cut, or `plain` is something else.

    `plain`: as `cut` takes it.
    """
    length, flags, gso_type, _, gso_size, transport, checksum_offset = FRAME_HEADER.unpack_from(plain)
    size = len(plain)
    kind = gso_type & ~virtio.GSO_ECN
    is_tcp = kind == virtio.GSO_TCPV4 or kind == virtio.GSO_TCPV6
    if not gso_size or not (is_tcp or kind == virtio.GSO_UDP_L4) or length + FRAME_HEADER_SIZE != size:
        return None
    # A forwarding kernel reports any header length, so it is read from the packet.
    head = FRAME_HEADER_SIZE + transport + (plain[FRAME_HEADER_SIZE + transport + 12] >> 4 << 2 if is_tcp else 8)
    step = max(1, (room - head) // gso_size) * gso_size
    if size - head <= step:
        return None
    return Cutting(plain, head, gso_size, step, is_tcp=is_tcp)


class Cutting:
    """A superpacket that is to be cut into `count` pieces of `size` bytes each, the last one of `last` bytes.

    `head`: bytes of each piece that are headers, the frame's included; so many go before `step` bytes of payload.
    """

    __slots__ = ("_frame", "_gso_size", "_is_tcp", "_step", "count", "head", "last", "size")

    def __init__(self, frame: memoryview, head: int, gso_size: int, step: int, *, is_tcp: bool) -> None:
        payload = len(frame) - head
        self._frame = frame
        self._gso_size = gso_size
        self._is_tcp = is_tcp
        self._step = step
        self.head = head
        self.count = -(-payload // step)
        self.size = head + step
        self.last = head + payload - (self.count - 1) * step

    def pieces(self, padding: int = 0) -> Iterator[memoryview]:
        """The pieces in order; all but the last have `padding` zeros behind them, at most as many as the last one has
        payload. **Each is valid until the next one is asked for, and the frame is used up.**"""
        frame, head, step, gso_size = self._frame, self.head, self._step, self._gso_size
        offload, gso_type, _, _, transport, checksum_offset = VIRTIO_HEADER.unpack_from(frame, LENGTH_SIZE)
        kind = gso_type & ~virtio.GSO_ECN
        pack_into = (fields := _fields(transport, head - FRAME_HEADER_SIZE, is_tcp=self._is_tcp)).pack_into
        _, front, second, third, middle, ip_sum, addresses, sequence, fixed, flags, window, pseudo, rest = (
            fields.unpack_from(frame)
        )
        version4 = front[0] >> 4 == 4
        ip_total = sum16(frame[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + transport]) - second - third - ip_sum
        headers = head - FRAME_HEADER_SIZE  # of the packet
        pseudo -= len(frame) - FRAME_HEADER_SIZE - transport

        def frame_header(length: int, its_type: int) -> bytes:
            if length - headers <= gso_size:  # nothing to cut: `virtio.validate` would make it so
                return FRAME_HEADER.pack(length, offload, 0, headers, 0, transport, checksum_offset)
            return FRAME_HEADER.pack(length, offload, its_type, headers, gso_size, transport, checksum_offset)

        length = headers + step
        frame_head = frame_header(length, gso_type)  # the ECN bit is about CWR, which the first segment keeps
        kept_flags = _without(flags, _TCP_FIN_PSH)
        checksum = (pseudo + length - transport) % 0xFFFF
        if not self._is_tcp:
            sequence = length - transport
        counted, final = step // gso_size, self.count - 1
        at = 0
        for index in range(self.count):
            if index == final:
                length = headers + self.last - head
                frame_head = frame_header(length, kind)
                kept_flags = _without(flags, _TCP_CWR)
                checksum = (pseudo + length - transport) % 0xFFFF
                if not self._is_tcp:
                    sequence = length - transport
            elif index == 1:
                frame_head = frame_header(length, kind)
                kept_flags = _without(flags, _TCP_FIN_PSH | _TCP_CWR)
            if version4:
                pack_into(
                    frame, at, frame_head, front, length, third, middle, -(ip_total + length + third) % 0xFFFF,
                    addresses, sequence, fixed, kept_flags, window, checksum, rest,
                )  # fmt: skip
                third = third + counted & 0xFFFF
            else:
                pack_into(
                    frame, at, frame_head, front, second, length - _IPV6_SIZE, middle, ip_sum, addresses,
                    sequence, fixed, kept_flags, window, checksum, rest,
                )  # fmt: skip
            if self._is_tcp:
                sequence = sequence + step & 0xFFFFFFFF
            end = at + FRAME_HEADER_SIZE + length
            if padding and index != final:
                covered = bytes(frame[end : end + padding])
                frame[end : end + padding] = bytes(padding)
                yield frame[at : end + padding]
                frame[end : end + padding] = covered
            else:
                yield frame[at:end]
            at += step


def _without(flags: bytes, bits: int) -> bytes:
    """TCP's flags less some; UDP has none."""
    return bytes([flags[0] & ~bits]) if flags else b""


@lru_cache(maxsize=32)
def _fields(transport: int, payload: int, *, is_tcp: bool) -> Struct:
    """A frame's header | version, traffic class | total length | identification | flags, time to live, protocol |
    checksum | addresses, options, ports | sequence number | acknowledgement, data offset | flags | window | checksum |
    urgent pointer, options.

    IPv6 has its payload length where IPv4 has the identification, UDP its length in place of a sequence number.
    """
    transport_fields = f"I5s1s2sH{payload - transport - 18}s" if is_tcp else "H0s0s0sH0s"
    return Struct(f">{FRAME_HEADER_SIZE}s2sHH4sH{transport - 8}s{transport_fields}")
