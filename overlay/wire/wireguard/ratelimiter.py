"""What keeps handshakes affordable under attack: a measure of load, and a budget per source (paper §5.3).

Both know only numbers and times. Memory is bounded whatever arrives.
"""

from overlay.wire.wireguard.constants import LOAD_HANDSHAKES, LOAD_WINDOW, RATE_BURST, RATE_PER_SOURCE, RATE_TABLE_SIZE

_IPV4_SOURCE = 6  # address and port
_IPV6_SOURCE = 18
_FULL_AFTER = RATE_BURST / RATE_PER_SOURCE  # s of silence after which a bucket is full, that is: need not be kept


class LoadMeter:
    """Are so many handshakes coming in that each must show a cookie first?"""

    def __init__(self) -> None:
        self._window_end = float("-inf")
        self._count = 0
        self._loaded_until = float("-inf")

    def observe(self, now: float) -> bool:
        """Count one handshake message with a right mac1; is there load? It stays for a second after it was last seen,
        so that peers that just got a cookie find it asked for."""
        if now >= self._window_end:
            self._window_end = now + LOAD_WINDOW
            self._count = 0
        self._count += 1
        if self._count >= LOAD_HANDSHAKES:
            self._loaded_until = now + LOAD_WINDOW
        return now < self._loaded_until


class RateLimiter:
    """Token buckets, one per source address: 20 handshakes per second, 5 at once."""

    def __init__(self, table_size: int = RATE_TABLE_SIZE) -> None:
        self._table_size = table_size
        self._buckets: dict[bytes, tuple[float, float]] = {}  # source -> (tokens, as of); oldest change first

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, source: bytes, now: float) -> bool:
        """May this source (address and port as bytes) have a handshake worked on? Takes a token if so."""
        key = _budget_key(source)
        self._forget_full(now)
        tokens, since = self._buckets.pop(key, (float(RATE_BURST), now))
        if len(self._buckets) >= self._table_size:
            # Every source in the table is active right now: a stranger waits, those inside are not pushed out.
            return False
        tokens = min(float(RATE_BURST), tokens + (now - since) * RATE_PER_SOURCE)
        allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def _forget_full(self, now: float) -> None:
        while self._buckets:
            oldest = next(iter(self._buckets))
            if now - self._buckets[oldest][1] < _FULL_AFTER:
                return
            del self._buckets[oldest]


def _budget_key(source: bytes) -> bytes:
    # Ports are free for the asking, and so is all of an IPv6 /64: neither buys a second budget.
    if len(source) == _IPV4_SOURCE:
        return source[:4]
    if len(source) == _IPV6_SOURCE:
        return source[:8]
    return source
