"""Congestion marks of a record's datagrams, brought to the packets inside it. Knows no keys and no sockets.

A record's fragments left with the ECN field of its packets, which all had the same (the engine gathers only such). What
arrives is one field for the whole record (`packet.ecn.joined`), so a mark on one datagram marks each packet and, of a
superpacket, each segment: as RFC 3168 §5.3 has it for a packet put together from fragments.
"""

from overlay.wire.packet import ecn
from overlay.wire.record.frames import FRAME_HEADER_SIZE, frames


def decapsulate(plain: memoryview, outer: int) -> tuple[list[memoryview], int]:
    """Bring an outer ECN field (0 … 3) into each packet of an opened record, in place.

    Returns the stretches of `plain` that go on, each of whole frames, and how many frames must be dropped instead.
    Raises `RemoteProtocolError` as `frames` does.
    """
    stretches: list[memoryview] = []
    dropped = start = 0
    for begin, end in frames(plain):
        if not ecn.decapsulate(plain[begin + FRAME_HEADER_SIZE : end], outer):
            dropped += 1
            if begin > start:
                stretches.append(plain[start:begin])
            start = end
    if start < len(plain):
        stretches.append(plain[start:])
    return stretches, dropped
