"""Replies that are ready to be sent, by the bytes of the question: a name is worked out once per network map.

The key is all of the query but its identifier: flags, question with the case that it came in, EDNS. So a reply that is
found is, byte for byte, the one that would be built.
"""

from typing import Final

from overlay_dns.cache import Kept

LONGEST_QUERY: Final = 128
"""Bytes of a query that is kept; ordinary ones have 30 to 80."""

MOST: Final = 4096
"""Replies kept; at 1,232 bytes at the most (4 KiB over TCP) that is 5 to 16 MB if somebody wants it so."""

LARGEST_REPLY: Final = 4096


class Answers:
    """`ready`: queries to replies, both without their first two bytes. The loop that reads UDP looks there itself."""

    __slots__ = ("ready",)

    def __init__(self) -> None:
        self.ready: dict[bytes, bytes] = {}

    def get(self, query: bytes) -> bytes | None:
        """The reply to `query`, with the query's identifier."""
        kept = self.ready.get(query[2:])
        return None if kept is None else query[:2] + kept

    def keep(self, query: bytes, reply: bytes) -> None:
        if len(query) > LONGEST_QUERY or len(reply) > LARGEST_REPLY:
            return
        if len(self.ready) >= MOST:
            self.ready.clear()  # names in use are back within a question each; whoever filled it has gained nothing
        self.ready[query[2:]] = reply[2:]

    def clear(self) -> None:
        self.ready.clear()


class Forwarded:
    """Replies of upstreams that are ready, for the second that it is now: their TTLs count down.

    `ready` is as in `Answers`. What is kept is known, by the question's bytes, to be no question for the zones.
    """

    __slots__ = ("_kept", "_second", "ready")

    def __init__(self) -> None:
        self.ready: dict[bytes, bytes] = {}
        self._kept: dict[bytes, tuple[Kept, int]] = {}
        self._second = 0

    def tick(self, now: float) -> None:
        """It is `now`: replies of a second ago are ready no more."""
        if int(now) != self._second:
            self._second = int(now)
            self.ready.clear()

    def get(self, query: bytes, now: float) -> bytes | None:
        """The reply to `query`, and it is ready from now on."""
        kept, limit = self._kept.get(query[2:], (None, 0))
        if kept is None:
            return None
        if now >= kept.expires:
            del self._kept[query[2:]]
            return None
        reply = kept.render(query, now)
        if len(reply) > limit:
            return None
        self.ready[query[2:]] = reply[2:]
        return reply

    def keep(self, query: bytes, kept: Kept, limit: int) -> None:
        """`limit`: bytes that the client takes in one datagram."""
        if len(query) > LONGEST_QUERY or len(kept.reply) > limit:
            return
        if len(self._kept) >= MOST:
            self.clear()
        self._kept[query[2:]] = (kept, limit)

    def clear(self) -> None:
        self.ready.clear()
        self._kept.clear()
