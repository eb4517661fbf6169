"""Frames: what a record's plaintext is made of. Knows no keys and no datagrams.

    length u32 | flags u8 | gso type u8 | header length u16 | gso size u16
    | checksum start u16 | checksum offset u16 | packet

little-endian; `length` counts the packet's bytes. From `flags` on, a frame is byte for byte what a TUN device opened
with `IFF_VNET_HDR` reads and writes: `plain[start + 4 : end]`. An empty record is a keepalive.
"""

from struct import Struct

from overlay.errors import RemoteProtocolError

FRAME_HEADER = Struct("<IBBHHHH")
FRAME_HEADER_SIZE = FRAME_HEADER.size
LENGTH = Struct("<I")
LENGTH_SIZE = LENGTH.size
"""The virtio-net header starts here."""

MIN_PACKET = 20
"""Bytes. An IPv4 header; bounds how many frames a record can hold."""

MAX_PACKET = 65535
"""Bytes. What an IPv4 total length can say, and the largest superpacket of a TUN device."""

MAX_RECORD = FRAME_HEADER_SIZE + MAX_PACKET
"""Bytes of plaintext. One largest superpacket; gathered small packets stay far below."""

_length_at = LENGTH.unpack_from


def frames(plain: memoryview) -> list[tuple[int, int]]:
    """Cut an opened record: `(start, end)` of each frame, header included, in order. A keepalive gives [].

    The virtio-net header and packet of a frame are `plain[start + 4 : end]`, the packet `plain[start + 14 : end]`.
    Raises `RemoteProtocolError`: `short_frame`, `bad_frame_length`.
    """
    size = len(plain)
    found: list[tuple[int, int]] = []
    start = 0
    while start < size:
        if size - start < FRAME_HEADER_SIZE:
            raise RemoteProtocolError("short_frame")
        (length,) = _length_at(plain, start)
        end = start + FRAME_HEADER_SIZE + length
        if not MIN_PACKET <= length <= MAX_PACKET or end > size:
            raise RemoteProtocolError("bad_frame_length")
        found.append((start, end))
        start = end
    return found
