"""A token bucket: so many at once, so many per second after. No clock; `now` in seconds, monotonic."""


class Budget:
    """`burst` tokens at first, filled at `rate` tokens per second."""

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = float("-inf")

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = max(self._filled, now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def available_at(self, now: float) -> float:
        """When `take` will succeed: `now` or later."""
        missing = 1.0 - (self._tokens + max(0.0, now - self._filled) * self._rate)
        # A hair later than computed: a caller that wakes exactly then must find the token, whatever the rounding.
        return now if missing <= 0.0 else now + missing / self._rate + 1e-6
