"""Neighbouring UDP datagrams of a record → one superpacket: the quick way for many small ones.

`superpacket.join` does this for packets of any kind and order, a dozen of Python steps for each. A record of small
datagrams has many of one flow and one size in a row, as one sender wrote them: here each costs one step of an unpacking
iterator and a few comparisons. Knows no records: a run of frames is bytes, and how long each one is.
"""

from struct import Struct, iter_unpack

from overlay.wire.packet import ip, virtio
from overlay.wire.packet.checksum import complement, pseudo_header, sum16
from overlay.wire.packet.superpacket import MAX_SUPERPACKET, MAX_UDP_SEGMENTS

_FRAME_HEADER_SIZE = 4 + virtio.VIRTIO_HEADER_SIZE
_HEADERS4, _HEADERS6 = 28, 48  # IP without options or extension headers, and UDP
_DONT_FRAGMENT = 0x40

_u16 = Struct(">H").pack_into


def merge(frames: memoryview, size: int) -> tuple[bytes, int] | None:
    """One superpacket frame for the datagrams at the front of `frames`, and how many they are; None: nothing to merge.

    `frames`: a record's frames, each `length u32 | virtio-net header | packet`; the first is `size` bytes long and has
    passed `virtio.validate`. Merged are those after it with the same headers, less IPv4's identification (only where it
    means nothing: DF set, RFC 6864 §4.1) and checksum, and a payload as long. `split` would give them back.
    """
    if len(frames) < 2 * size or frames[4] != virtio.NEEDS_CSUM or frames[5] != virtio.GSO_NONE:
        return None
    packet = frames[_FRAME_HEADER_SIZE:size]
    if packet[0] == 0x45 and packet[9] == ip.UDP and packet[6] & _DONT_FRAGMENT and sum16(packet[:20]) == 0:
        headers_size = _HEADERS4
    elif packet[0] >> 4 == 6 and packet[6] == ip.UDP:
        headers_size = _HEADERS6
    else:
        return None
    payload_size = len(packet) - headers_size
    if payload_size <= 0:
        return None
    limit = min(len(frames) // size, MAX_UDP_SEGMENTS, (MAX_SUPERPACKET - headers_size) // payload_size)
    payloads = (_payloads4 if headers_size == _HEADERS4 else _payloads6)(frames[: limit * size], payload_size)
    count = len(payloads)
    if count < 2:
        return None
    headers = bytearray(packet[:headers_size])
    length = 8 + count * payload_size
    transport = headers_size - 8
    if transport == 20:
        addresses = packet[12:20]
        _u16(headers, 2, transport + length)
        _u16(headers, 10, 0)
        _u16(headers, 10, complement(sum16(headers[:20])))
    else:
        addresses = packet[8:40]
        _u16(headers, 4, length)
    _u16(headers, transport + 4, length)
    _u16(headers, transport + virtio.UDP_CHECKSUM_OFFSET, pseudo_header(addresses, ip.UDP, length))
    offload = virtio.VIRTIO_HEADER.pack(
        virtio.NEEDS_CSUM, virtio.GSO_UDP_L4, headers_size, payload_size, transport, virtio.UDP_CHECKSUM_OFFSET
    )
    return b"".join((offload, headers, *payloads)), count


# The fields below: length, flags and gso type; header length, which `validate` made exact in the first frame alone, is
# left out; the other offload fields; then the packet.


def _payloads4(frames: memoryview, size: int) -> list[bytes]:
    """Payloads of the frames from the first on that are like it."""
    found: list[bytes] = []
    rows = iter_unpack(f">6s2x6s4sH4sH16s{size}s", frames)
    offload, fields, before, number, between, checksum, after, payload = next(rows)
    total = (number + checksum) % 0xFFFF  # all else being equal, the checksum is right if this sum is the same
    found.append(payload)
    for its_offload, its_fields, its_before, its_number, its_between, its_checksum, its_after, payload in rows:
        if (
            its_offload != offload
            or its_before != before
            or its_after != after
            or its_between != between
            or its_fields != fields
            or (its_number + its_checksum) % 0xFFFF != total
        ):
            break
        found.append(payload)
    return found


def _payloads6(frames: memoryview, size: int) -> list[bytes]:
    found: list[bytes] = []
    rows = iter_unpack(f">6s2x6s48s{size}s", frames)
    *first, payload = next(rows)
    found.append(payload)
    for *fields, payload in rows:
        if fields != first:
            break
        found.append(payload)
    return found
