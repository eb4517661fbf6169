"""Pure TCP acknowledgements that a later one makes needless, when both wait at the same place. Knows no peers.

A receiver acknowledges every superpacket, and all that it says is in its last acknowledgement: cumulative number,
window, time stamp (RFC 9293 §3.4, RFC 7323). Of several that wait for one record only the last goes on, as in RFC 3449
§5.2.3. None is taken away that says something of its own: with data, SACK blocks, any flag but ACK, or the same number
as the one before (a duplicate, by which loss is found).
"""

from struct import Struct
from typing import Final

from overlay.wire.packet.ip import TCP
from overlay.wire.record.frames import FRAME_HEADER_SIZE

ACK_SIZES: Final = frozenset({54, 66, 74, 86})
"""Bytes of the frame of a pure acknowledgement: IPv4 or IPv6 header, TCP header, time stamps or not."""

_ACK: Final = 0x10
_TIMESTAMPS: Final = b"\1\1\10\12"  # NOP, NOP, kind 8, 10 bytes (RFC 7323 appendix A)
_MOVED_BACK: Final = 1 << 31

_numbers = Struct(">II").unpack_from  # sequence and acknowledgement number


def ack_flow(buffer: bytearray, start: int, size: int) -> bytes | None:
    """What acknowledgements of one flow share, if the frame of `size` bytes at `start` is a pure one; else None."""
    at = start + FRAME_HEADER_SIZE
    packet = size - FRAME_HEADER_SIZE
    version = buffer[at]
    if version == 0x45:
        if buffer[at + 9] != TCP or buffer[at + 2] << 8 | buffer[at + 3] != packet:
            return None
        if buffer[at + 6] & 0x3F or buffer[at + 7]:
            return None  # a fragment
        tcp = at + 20
        key = buffer[at + 12 : at + 24] + buffer[at + 1 : at + 2]
    elif version >> 4 == 6:
        if buffer[at + 6] != TCP or buffer[at + 4] << 8 | buffer[at + 5] != packet - 40:
            return None
        tcp = at + 40
        key = buffer[at + 8 : at + 44] + buffer[at : at + 4]
    else:
        return None
    options = start + size - tcp - 20
    if buffer[tcp + 12] != (20 + options) << 2 or buffer[tcp + 13] != _ACK:
        return None
    if options and (options != 12 or buffer[tcp + 20 : tcp + 24] != _TIMESTAMPS):
        return None
    return bytes(key)


def supersedes(buffer: bytearray, later: int, earlier: int, size: int) -> bool:
    """Does the frame at `later` say all that the one at `earlier` does, and more? Both of `size` bytes and of one
    `ack_flow`."""
    at = FRAME_HEADER_SIZE + (20 if buffer[later + FRAME_HEADER_SIZE] == 0x45 else 40)
    sequence, number = _numbers(buffer, later + at + 4)
    before, number_before = _numbers(buffer, earlier + at + 4)
    advance: int = number - number_before & 0xFFFFFFFF
    return bool(sequence == before and 0 < advance < _MOVED_BACK)
