"""The replay window, asked the other way round: which counters never came? For whoever measures a path's loss.

Knows nothing of keys, packets or time. What it costs is paid when it is asked, not per packet.
"""

from struct import pack

from overlay.wire.wireguard.constants import REPLAY_WINDOW
from overlay.wire.wireguard.replay import ReplayWindow


class GapWindow(ReplayWindow):
    """A replay window that also tells what it has not seen."""

    __slots__ = ()

    @property
    def newest(self) -> int:
        """The highest counter accepted; 0 before the first."""
        return self._newest

    @property
    def oldest(self) -> int:
        """The lowest counter that the window still knows of."""
        return max(0, self._newest - REPLAY_WINDOW)

    def unseen(self, start: int, end: int) -> int:
        """Counters from `start` up to `end`, exclusive, that were never accepted: bit i stands for `start` + i.

        Both within `oldest` … `newest`, so that at most 8128 bits are looked at.
        """
        if start >= end:
            return 0
        ring = self._ring
        size = len(ring)
        words = [ring[word % size] for word in range(start >> 6, (end - 1 >> 6) + 1)]
        seen = int.from_bytes(pack(f"<{len(words)}Q", *words), "little") >> (start & 63)
        return ~seen & (1 << end - start) - 1
