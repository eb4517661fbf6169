"""Type 4, WireGuard transport data: header and padding (paper §5.4.6). Sealing and opening are the engine's.

     0       1                       4                       8
    +-------+-----------------------+-----------------------+-----------------------------------------------+
    | type 4| 0 0 0                 | receiver index u32    | counter u64                                   |
    +-------+-----------------------+-----------------------+-----------------------------------------------+
    | ChaCha20-Poly1305(inner packet, zero-padded to 16) …                                       all little-endian

The nonce is 4 zero bytes ‖ counter; there is no associated data. An empty box is a keepalive.
"""

import struct

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard.constants import PADDING, TAG_SIZE

TYPE = 4
HEADER_SIZE = 16
MINIMUM_SIZE = HEADER_SIZE + TAG_SIZE
OVERHEAD = HEADER_SIZE + TAG_SIZE

HEADER = struct.Struct("<IIQ")
"""`TYPE`, receiver index, counter."""


def pack_header_into(buffer: bytearray | memoryview, offset: int, receiver_index: int, counter: int) -> None:
    """Write the header of 16 bytes at `offset`."""
    HEADER.pack_into(buffer, offset, TYPE, receiver_index, counter)


def parse_header(datagram: bytes | bytearray | memoryview) -> tuple[int, int]:
    """`(receiver index, counter)`. Raises `RemoteProtocolError`: `short_header`, `unknown_type`, `bad_length`.

    The box is a multiple of 16 bytes from those who pad, but one who does not is within the paper's letter for a packet
    that fills the MTU; so its length is not judged here beyond holding a tag.
    """
    if len(datagram) < HEADER_SIZE:
        raise RemoteProtocolError("short_header")
    type_, receiver_index, counter = HEADER.unpack_from(datagram)
    if type_ != TYPE:
        raise RemoteProtocolError("unknown_type")
    if len(datagram) < MINIMUM_SIZE:
        raise RemoteProtocolError("bad_length")
    return receiver_index, counter


def padding(length: int, mtu: int) -> int:
    """How many zero bytes follow an inner packet of `length` bytes: up to a multiple of 16, but not past `mtu`.

    A packet larger than the MTU (a kernel may hand one over) is padded by what its last piece of `mtu` bytes needs.
    """
    if mtu == 0:
        return -length % PADDING
    last = length if length <= mtu else length % mtu
    return min(-(-last // PADDING) * PADDING, mtu) - last
