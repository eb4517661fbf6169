"""Superpackets: many TCP segments or UDP datagrams of one flow under one header, as TUN devices trade them.

`split` does in Python what a kernel or a NIC does for a superpacket (TSO, USO, and checksum completion): for peers that
take one packet at a time, and for devices without offloads. Its inverse (GRO) is in `join`. A **frame** here is a
virtio-net header and its packet, side by side. Nothing here knows records, devices or sessions.

A superpacket is cut column by column: all sums, all lengths, all sequence numbers; then each segment costs one `pack`
for each of its headers, and one `join`.
"""

from functools import lru_cache
from struct import Struct

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.checksum import complement, complement_udp, sum16, sums
from overlay.wire.packet.virtio import VIRTIO_HEADER, VIRTIO_HEADER_SIZE

MAX_SUPERPACKET = 65535
"""Bytes, headers included: what an IPv4 total length can say."""

MAX_UDP_SEGMENTS = 64
"""Datagrams that `join` puts under one header: `UDP_MAX_SEGMENTS` of older kernels; newer ones take 128."""

_PORTS = 4
"""Bytes, at the front of both transport headers."""

_TCP_FIN_PSH = 0x09
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
    total = sum16(packet[start:])
    # Only UDP has a value for "no checksum" to stay clear of, and its offset tells it from TCP.
    checksum = complement_udp(total) if offset == virtio.UDP_CHECKSUM_OFFSET else complement(total)
    return b"".join((packet[:field], checksum.to_bytes(2, "big"), packet[field + 2 :]))


def _split_tcp(packet: memoryview, transport: int, payload: int, gso_size: int) -> list[bytes]:
    fields = _tcp_fields(payload - transport)
    sequence, acknowledgement, flags, window, _, rest = fields.unpack_from(packet, transport + _PORTS)
    data = packet[payload:]
    lengths = _lengths(payload, len(data), gso_size)
    count = len(lengths)
    sequences = [number & 0xFFFFFFFF for number in range(sequence, sequence + len(data), gso_size)]
    kept = [flags & ~(_TCP_FIN_PSH | _TCP_CWR)] * count
    kept[0] |= flags & _TCP_CWR
    kept[-1] |= flags & _TCP_FIN_PSH
    # The sum over what is the same in all segments. The kernel left that over the pseudo-header, with the superpacket's
    # length, in the checksum field.
    same = sum16(packet[transport:payload]) - (len(packet) - transport) - sequence - flags - transport
    pack = fields.pack
    return [
        b"".join(
            (
                front,
                pack(number, acknowledgement, bits, window, (-same - length - number - bits - total) % 0xFFFF, rest),
                piece,
            )
        )
        for front, length, number, bits, total, piece in zip(
            _fronts(packet, transport, lengths), lengths, sequences, kept, sums(data, gso_size),
            _pieces(data, gso_size), strict=True,
        )
    ]  # fmt: skip


def _split_udp(packet: memoryview, transport: int, gso_size: int) -> list[bytes]:
    payload = transport + 8
    data = packet[payload:]
    lengths = _lengths(payload, len(data), gso_size)
    # The length counts twice: in the pseudo-header and in the header.
    same = sum16(packet[transport:payload]) - 2 * (len(packet) - transport) - 2 * transport
    pack = _UDP_FIELDS.pack
    return [
        b"".join((front, pack(length - transport, complement_udp(same + 2 * length + total)), piece))
        for front, length, total, piece in zip(
            _fronts(packet, transport, lengths), lengths, sums(data, gso_size), _pieces(data, gso_size), strict=True
        )
    ]


_UDP_FIELDS = Struct(">HH")  # length, checksum


@lru_cache(maxsize=16)
def _tcp_fields(size: int) -> Struct:
    """What follows the ports in a TCP header of `size` bytes: sequence number | acknowledgement, data offset | flags |
    window | checksum | urgent pointer, options."""
    return Struct(f">I5sBHH{size - 18}s")


def _lengths(headers: int, size: int, gso_size: int) -> list[int]:
    """Bytes of each segment's packet, for `size` bytes of payload."""
    lengths = [headers + gso_size] * -(-size // gso_size)
    lengths[-1] = headers + (size % gso_size or gso_size)
    return lengths


def _pieces(data: memoryview, size: int) -> list[bytes]:
    whole = len(data) // size * size
    pieces = [piece for (piece,) in _one_piece(size).iter_unpack(data[:whole])]
    if whole < len(data):
        pieces.append(bytes(data[whole:]))
    return pieces


@lru_cache(maxsize=64)
def _one_piece(size: int) -> Struct:
    return Struct(f"{size}s")


def _fronts(packet: memoryview, transport: int, lengths: list[int]) -> list[bytes]:
    """Each segment's IP header, and the ports."""
    end = transport + _PORTS
    if packet[0] >> 4 == 6:
        before, after = bytes(packet[:4]), bytes(packet[6:end])
        all_but_last = b"".join((before, (lengths[0] - 40).to_bytes(2, "big"), after))
        last = b"".join((before, (lengths[-1] - 40).to_bytes(2, "big"), after))
        return [*[all_but_last] * (len(lengths) - 1), last]
    fields = _ipv4_fields(end)
    first, length, identification, middle, checksum, rest = fields.unpack_from(packet)
    same = sum16(packet[:transport]) - length - identification - checksum
    pack = fields.pack
    return [
        pack(first, length, number & 0xFFFF, middle, (-same - length - (number & 0xFFFF)) % 0xFFFF, rest)
        for number, length in enumerate(lengths, identification)
    ]


@lru_cache(maxsize=16)
def _ipv4_fields(end: int) -> Struct:
    """An IPv4 header and what follows it up to `end`: version, traffic class | total length | identification | flags,
    time to live, protocol | checksum | addresses, options, ports."""
    return Struct(f">2sHH4sH{end - 12}s")
