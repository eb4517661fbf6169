"""A token bucket: so many at once, so many per second after. No clock; `now` in seconds, monotonic."""


class Budget:
    """`burst` tokens at first, filled at `rate` tokens per second."""

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = float("-inf")

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens, at most `burst`, if there are so many."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = max(self._filled, now)
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True

    def put_back(self, cost: float = 1.0) -> None:
        """What was taken was not used."""
        self._tokens = min(self._burst, self._tokens + cost)

    def available_at(self, now: float, cost: float = 1.0) -> float:
        """When `take` of `cost` tokens, at most `burst`, will succeed: `now` or later."""
        missing = cost - (self._tokens + max(0.0, now - self._filled) * self._rate)
        # A hair later than computed: a caller that wakes exactly then must find the tokens, whatever the rounding.
        return now if missing <= 0.0 else now + (missing + 1e-9 * self._burst) / self._rate + 1e-6
