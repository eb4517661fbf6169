"""Frames: what a record's plaintext is made of. Knows no keys and no datagrams.

    length u32 | flags u8 | gso type u8 | header length u16 | gso size u16
    | checksum start u16 | checksum offset u16 | packet

little-endian; `length` counts the packet's bytes. From `flags` on, a frame is byte for byte what a TUN device opened
with `IFF_VNET_HDR` reads and writes: `plain[start + 4 : end]`. An empty record is a keepalive. Behind the last frame
may be zeros, fewer than a frame header has bytes: with them a record fills its datagrams, and many go out in one call.
"""

from collections.abc import Sequence
from struct import Struct

from overlay.errors import RemoteProtocolError

FRAME_HEADER = Struct("<IBBHHHH")
FRAME_HEADER_SIZE = FRAME_HEADER.size
LENGTH = Struct("<I")
LENGTH_SIZE = LENGTH.size
"""The virtio-net header starts here."""

MAX_PADDING = FRAME_HEADER_SIZE - 1
"""Bytes."""

MIN_PACKET = 20
"""Bytes. An IPv4 header; bounds how many frames a record can hold."""

MAX_PACKET = 65535
"""Bytes. What an IPv4 total length can say, and the largest superpacket of a TUN device."""

MAX_RECORD = FRAME_HEADER_SIZE + MAX_PACKET
"""Bytes of plaintext. One largest superpacket; gathered small packets stay far below."""

REPORT_GSO_TYPE = 0xFF
"""No kernel's: such a frame is a loss report (`reports`)."""

GSO_TYPE_AT = 5

_PADDING = bytes(MAX_PADDING)

_length_at = LENGTH.unpack_from


def frames(plain: memoryview) -> list[tuple[int, int]]:
    """Cut an opened record: `(start, end)` of each frame, header included, in order. A keepalive gives [].

    The virtio-net header and packet of a frame are `plain[start + 4 : end]`, the packet `plain[start + 14 : end]`.
    Padding belongs to none.
    Raises `RemoteProtocolError`: `short_frame`, `bad_frame_length`.
    """
    size = len(plain)
    found: list[tuple[int, int]] = []
    start = 0
    while start < size:
        if size - start < FRAME_HEADER_SIZE:
            if plain[start:] != _PADDING[: size - start]:
                raise RemoteProtocolError("short_frame")
            break
        (length,) = _length_at(plain, start)
        end = start + FRAME_HEADER_SIZE + length
        if not MIN_PACKET <= length <= MAX_PACKET or end > size:
            raise RemoteProtocolError("bad_frame_length")
        found.append((start, end))
        start = end
    return found


def single_frames(plains: Sequence[memoryview]) -> list[memoryview] | None:
    """The virtio-net header and packet of each of several records that hold one frame each, as the pieces of a
    superpacket do. None: some hold another number, or a report, or what `frames` refuses."""
    found = []
    for plain in plains:
        size = len(plain)
        if size < FRAME_HEADER_SIZE + MIN_PACKET or plain[GSO_TYPE_AT] == REPORT_GSO_TYPE:
            return None
        end = FRAME_HEADER_SIZE + _length_at(plain)[0]
        if (
            end < FRAME_HEADER_SIZE + MIN_PACKET
            or end != size
            and (not 0 < size - end <= MAX_PADDING or plain[end:] != _PADDING[: size - end])
        ):
            return None
        found.append(plain[LENGTH_SIZE:end])
    return found
