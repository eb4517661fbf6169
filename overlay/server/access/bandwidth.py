"""So many bytes per second, shared by all who use them. No clock; `now` in seconds, monotonic."""

from collections.abc import Sequence
from typing import Final

import anyio

BURST: Final = 0.1  # s worth that may go at once
_PIECE: Final = 0.05  # s worth that one may take before the others have their turn
_SMALLEST_PIECE: Final = 2048  # bytes
_LARGEST_PIECE: Final = 64 * 1024


class Bandwidth:
    """Of one direction. Generic cell rate algorithm: by when what has gone would have gone at the rate."""

    def __init__(self, rate: float) -> None:
        """Bytes per second."""
        self.rate = rate
        self._done_at = float("-inf")

    def wait(self, now: float) -> float:
        """→ seconds until more may go."""
        return max(0.0, self._done_at - now - BURST)

    def passed(self, size: int, now: float) -> None:
        self._done_at = max(self._done_at, now) + size / self.rate


class Pace:
    """`overlay.carrier.forward.Pace` by one or several bandwidths, all of which have to do."""

    def __init__(self, bandwidths: Sequence[Bandwidth]) -> None:
        self._bandwidths = bandwidths
        least = min(each.rate for each in bandwidths)
        self.piece = int(min(max(least * _PIECE, _SMALLEST_PIECE), _LARGEST_PIECE))

    async def passed(self, size: int) -> None:
        now = anyio.current_time()
        for each in self._bandwidths:
            each.passed(size, now)
        if (wait := max(each.wait(now) for each in self._bandwidths)) > 0.0:
            await anyio.sleep(wait)

    def take(self, size: int) -> bool:
        """Of a datagram: whether it may go. What may not is dropped, as a line does it."""
        now = anyio.current_time()
        if any(each.wait(now) > 0.0 for each in self._bandwidths):
            return False
        for each in self._bandwidths:
            each.passed(size, now)
        return True
