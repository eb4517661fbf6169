"""How often endpoints that never answered are pinged: a few times, whoever names them, and however often. Sans-I/O.

A peer, or who replays what it said, can name anybody's endpoint. What we send there must be no weapon.
"""

from overlay.path import timing
from overlay.wire.endpoint import Endpoint


class Strangers:
    """Remembers endpoints longer than candidates live, so that offering one again and again gains nothing."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked: dict[Endpoint, tuple[int, float, float]] = {}  # pings, first and last of them; least recent first

    def next_ping(self, endpoint: Endpoint, now: float) -> float:
        """From when on it may be pinged; not later than `now`: it may."""
        count, first, last = self._asked.get(endpoint, (0, now, now))
        if count < timing.UNPROVEN_PINGS or now - first >= timing.UNPROVEN_SPAN:
            return now
        return last + timing.UNPROVEN_PAUSE

    def pinged(self, endpoint: Endpoint, now: float) -> None:
        count, first, _ = self._asked.pop(endpoint, (0, now, now))
        if now - first >= timing.UNPROVEN_SPAN:
            count, first = 0, now
        if len(self._asked) >= timing.MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[endpoint] = (count + 1, first, now)
