"""TAI64N timestamps of initiations: 12 bytes, big-endian, that only ever grow. Knows no clock: it is injected.

    seconds u64 = 2**62 + 10 + Unix seconds | nanoseconds u32

The low 24 bits of the nanoseconds are cleared, so that a timestamp tells a passive observer who can read it (a peer)
nothing finer than 16.8 ms. Bytes compare as times do. The constant 10 ignores leap seconds, as every WireGuard does:
only order counts.
"""

import struct
from collections.abc import Callable

from overlay.errors import LocalProtocolError

SIZE = 12
ZERO = bytes(SIZE)
"""Smaller than every timestamp: the value before the first one."""

_TAI_BASE = 2**62 + 10
_LAYOUT = struct.Struct(">QI")
_SECOND = 1_000_000_000
_GRAIN = 1 << 24
_LIMIT = 2**62 * _SECOND  # ns; 146 thousand million years: whatever is past it is no time


def whiten(unix_ns: int) -> int:
    """Round ns since the epoch down to what a timestamp can say."""
    seconds, nanoseconds = divmod(unix_ns, _SECOND)
    return seconds * _SECOND + (nanoseconds & -_GRAIN)


def encode(unix_ns: int) -> bytes:
    """ns since the epoch -> 12 bytes. Raises `LocalProtocolError` outside [0, 2**62 s)."""
    if not 0 <= unix_ns < _LIMIT:
        raise LocalProtocolError(f"{unix_ns} ns is not a time that TAI64N can carry")
    seconds, nanoseconds = divmod(unix_ns, _SECOND)
    return _LAYOUT.pack(_TAI_BASE + seconds, nanoseconds & -_GRAIN)


class Timestamper:
    """Gives out timestamps, each greater than all before and than `floor`, however the wall clock jumps.

    `wall_ns` reads ns since the epoch. `floor` is `highest` of the last run: peers refuse what is not newer than what
    they saw, so a machine whose clock starts in 1970 could not talk to them otherwise.
    """

    def __init__(self, wall_ns: Callable[[], int], floor: int = 0) -> None:
        if not 0 <= floor < _LIMIT:
            raise LocalProtocolError(f"{floor} ns is not a time that TAI64N can carry")
        self._wall_ns = wall_ns
        self._highest = floor

    @property
    def highest(self) -> int:
        """The last timestamp given out, ns since the epoch; `floor` before the first."""
        return self._highest

    def __call__(self) -> bytes:
        stamp = whiten(self._wall_ns())
        base = whiten(self._highest)
        if stamp <= base:
            stamp = base + _GRAIN
            if stamp % _SECOND < base % _SECOND:  # the grain does not divide a second: start the next one
                stamp -= stamp % _SECOND
        self._highest = stamp
        return encode(stamp)
