"""Packets that wait for a key or a path: few, and the oldest go first when there are too many (as WireGuard does). And
those that went by a path in doubt.

Knows no peer; holds frames (length, offload fields, packet) as bytes, because the buffer they were read into is used
again at once.
"""

from collections import deque
from typing import Final

MAX_PACKETS: Final = 128
"""As the kernel's WireGuard stages (MAX_STAGED_PACKETS)."""

MAX_BYTES: Final = 1 << 20
"""A superpacket counts as one above; sixteen of them are more than any handshake's wait should hold back."""

MAX_IN_DOUBT: Final = 1 << 16
"""Bytes that went by a path in doubt and go again by the next: room for the one packet that each of some forty flows
sends again when it hears nothing. Of what sends on regardless these are the last ones."""


class Staging:
    """One peer's frames, at most `most` bytes."""

    __slots__ = ("_frames", "_most", "_size", "since")

    def __init__(self, most: int = MAX_BYTES) -> None:
        self._most = most
        self.since: float | None = None
        """When the wait began; None: nothing waits."""
        self._frames: deque[bytearray] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: bytearray, now: float) -> int:
        """Keep a frame; returns how many older ones had to go for it."""
        if self.since is None:
            self.since = now
        self._frames.append(frame)
        self._size += len(frame)
        dropped = 0
        while len(self._frames) > MAX_PACKETS or self._size > self._most:
            self._size -= len(self._frames.popleft())
            dropped += 1
        return dropped

    def take(self) -> list[bytearray]:
        """All, oldest first; nothing is left."""
        taken = list(self._frames)
        self._frames.clear()
        self._size = 0
        self.since = None
        return taken
