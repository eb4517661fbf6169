"""Fragments: a record's box cut into datagrams (message type 5). Layout and constants; knows no keys.

    type u8 = 5 | fragment index u8 | fragment count u8 | 0 u8 | receiver index u32 | counter u64 | box bytes

little-endian. The box's associated data is this header with fragment index 0, its nonce 4 zero bytes ‖ counter.
"""

from struct import Struct

from overlay.wire.packet.ip import Octets

MESSAGE_TYPE = 5
FRAGMENT_HEADER = Struct("<BBBBIQ")
FRAGMENT_HEADER_SIZE = FRAGMENT_HEADER.size
TAG_SIZE = 16
"""Bytes that AES-GCM and ChaCha20-Poly1305 add to a plaintext."""

MAX_FRAGMENTS = 255
"""Fragments of one record: its count is a u8."""

DATAGRAM_SIZE = 1444
"""Bytes of UDP payload: 1492 (PPPoE) less 48 of IPv6 and UDP headers, so that it fits either family on such a path."""

INNER_MTU = 1380
"""Bytes. A packet of this size, in a record of its own, behind a relay header, still fits one datagram."""

INDICES = bytes(range(256))


def runs(batch: memoryview, segment: int, offset: int = 0) -> list[tuple[int, int, int, int]]:
    """Cut a received batch where message type or receiver index change: `(start, end, type, receiver index)`.

    `batch`, `segment`: as UDP_GRO gives them: datagrams of `segment` bytes, the last may be shorter; `offset`: bytes of
    relay header before each message. `start` and `end` are byte offsets into `batch`, so `batch[start:end]` with the
    same `segment` and `offset` is a batch again. The receiver index is -1 where a datagram has none: its type is not 5
    or 4 or it is too short; an empty datagram has type -1.

    A batch that looks uniform by its type column and its two ends is taken as one run, without a look at each datagram:
    what slips through fails its authentication.
    """
    size = len(batch)
    if not 0 < segment < size:
        return [(0, size, *_address(batch, offset, size))]
    kind, index = _address(batch, offset, segment)
    last = (size - 1) // segment * segment
    if index >= 0 and _address(batch, last + offset, size) == (kind, index):
        types = batch[offset::segment].tobytes()
        if types.count(kind) == len(types):
            return [(0, size, kind, index)]
    found: list[tuple[int, int, int, int]] = []
    start = 0
    for at in range(segment, size, segment):
        address = _address(batch, at + offset, min(at + segment, size))
        if address != (kind, index):
            found.append((start, at, kind, index))
            start = at
            kind, index = address
    found.append((start, size, kind, index))
    return found


def _address(batch: Octets, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        return -1, -1
    kind = batch[at]
    if kind == MESSAGE_TYPE or kind == 4:
        # Both types have the receiver index at offset 4; 16 bytes are the least of a header.
        index = int.from_bytes(batch[at + 4 : at + 8], "little") if end - at >= FRAGMENT_HEADER_SIZE else -1
        return kind, index
    return kind, -1
