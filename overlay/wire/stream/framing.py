"""Runs of datagrams in a byte stream: what a data link carries behind its handshake. Sans-I/O; knows no message type.

    length u32 | segment u16 | 0 u16 | run, `length` bytes

Little-endian. A run is what `UDP_SEGMENT` takes and `UDP_GRO` gives: datagrams of `segment` bytes side by side, the
last maybe shorter; segment 0, or one not below the length: one datagram. A frame of length 0 says that its sender is
there.
A run is bounded as the kernel bounds it, so that what a stream brings can go on over UDP in one call.
"""

import struct
from typing import Final, NamedTuple

from overlay.errors import RemoteProtocolError

FRAME_HEADER: Final = struct.Struct("<IHH")
FRAME_HEADER_SIZE: Final = FRAME_HEADER.size  # bytes

MAX_RUN: Final = 65536
"""Bytes of a run: what `UDP_GRO` joins at most."""

MAX_DATAGRAMS: Final = 64
"""Datagrams in a run: `UDP_MAX_SEGMENTS` before Linux 6.9. Each costs whoever takes it some work."""

ALIVE: Final = FRAME_HEADER.pack(0, 0, 0)
"""A frame that only says that its sender is there."""


class Frame(NamedTuple):
    """A run as `UdpSocket.receive` would give it: not empty, writable, `segment` ≥ 1."""

    run: memoryview
    segment: int


def frames(run: bytes, segment: int) -> list[bytes]:
    """What to write for a run of 1 … `MAX_RUN` bytes, joined: header and run in turn. `segment` 0: one datagram. More
    than one frame if it has more than `MAX_DATAGRAMS`."""
    size = len(run)
    if not 0 < segment < size:
        return [FRAME_HEADER.pack(size, 0, 0), run]
    step = segment * MAX_DATAGRAMS
    if size <= step:
        return [FRAME_HEADER.pack(size, segment, 0), run]
    return [part for at in range(0, size, step) for part in frames(run[at : at + step], segment)]


class FrameReader:
    """Cuts a stream into frames. Keeps at most the one that is not whole yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)

    def receive(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data`, the next bytes of the stream, makes whole; empty ones are left out.

        Raises `RemoteProtocolError` (frame_too_long, frame_too_many, frame_bad_reserved): nothing behind it means
        anything, and what came with it before is lost with it.
        """
        buffer = self._buffer
        buffer += data
        size, at = len(buffer), 0
        found: list[Frame] = []
        view = memoryview(buffer)
        while size - at >= FRAME_HEADER_SIZE:
            length, segment, reserved = FRAME_HEADER.unpack_from(buffer, at)
            if length > MAX_RUN:
                raise RemoteProtocolError("frame_too_long", f"{length} bytes")
            if reserved:
                raise RemoteProtocolError("frame_bad_reserved")
            if not segment or segment > length:
                segment = length
            if length > segment * MAX_DATAGRAMS:
                raise RemoteProtocolError("frame_too_many", f"{length} bytes in datagrams of {segment}")
            start = at + FRAME_HEADER_SIZE
            if size - start < length:
                break
            at = start + length
            if length:
                found.append(Frame(view[start:at], segment))
        if at:
            # The frames keep the old buffer alive; another one begins with what is left.
            self._buffer = bytearray(view[at:])
        return found
