"""How often the paths in use are asked whether they still carry: together no more than so often. No I/O, no clock.

Each path asks four times a second while data goes out. With a thousand peers that talk now and then, that is a ping and
a pong for every other packet, and costs more than the packets.
"""

from overlay.path import timing


class Pace:
    """One for all selectors of a node. `interval`: s between pings on a path in use while data goes out."""

    __slots__ = ("_count", "_since", "interval")

    def __init__(self) -> None:
        self.interval = timing.LIVENESS
        self._count = 0  # of pings since
        self._since = float("-inf")

    def pinged(self, now: float) -> None:
        """A path in use was asked because data went out."""
        self._count += 1
        elapsed = now - self._since
        if elapsed < self.interval:
            return
        # So many paths are asked each `interval`.
        paths = self._count * self.interval / elapsed
        self.interval = min(timing.HEARTBEAT, max(timing.LIVENESS, paths / timing.LIVENESS_RATE))
        self._count = 0
        self._since = now
