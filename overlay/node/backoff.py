"""When to try again, and when a silent connection is dead. Pure: time and randomness are arguments."""

from collections.abc import Callable

FIRST = 0.25
"""Seconds: a server that restarts is back in about one, and its nodes come spread over the first moments."""
CAP = 5.0
"""Seconds at the most between two tries: a node is back soon after the server, at a cost of one SYN per try."""
STEADY = 10.0
"""Seconds that a connection must have lasted for the next loss to count as the first: a server that takes connections
and drops them at once must not be dialled in a loop."""
MISSED = 3
"""Heartbeats without a sign of life that mean death."""
SUSPICION = 3.0
"""Seconds to answer after the machine's links changed: the old connection may hang from an address that is gone."""


class Backoff:
    """Exponential backoff with full jitter: uniform from 0 to a bound that doubles up to `CAP`."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._bound = FIRST

    def next(self) -> float:
        """Seconds to wait before the next try."""
        delay = self._uniform(0.0, self._bound)
        self._bound = min(CAP, self._bound * 2)
        return delay

    def lasted(self, seconds: float) -> None:
        """The last connection worked for so long."""
        if seconds >= STEADY:
            self._bound = FIRST


class Liveness:
    """Whether the other side of a connection is alive, and when to ask."""

    def __init__(self, heartbeat: float, now: float) -> None:
        self._heartbeat = heartbeat
        self._heard = now
        self._next_ping = now  # at once: it measures the round trip
        self._deadline = now + MISSED * heartbeat

    def received(self, now: float) -> None:
        """Anything came in."""
        self._heard = now
        self._deadline = now + MISSED * self._heartbeat

    def suspect(self, now: float) -> None:
        """The links changed: ask at once, and wait for `SUSPICION` only."""
        self._next_ping = now
        self._deadline = min(self._deadline, now + SUSPICION)

    def dead(self, now: float) -> bool:
        return now >= self._deadline

    def ping_due(self, now: float) -> bool:
        """Whether to ask now; if so, the next time is one heartbeat on."""
        if now < self._next_ping:
            return False
        self._next_ping = now + self._heartbeat
        return True

    def next_timeout(self) -> float:
        return min(self._next_ping, self._deadline)
