"""Answers of upstreams, kept for as long as they say. RFC 1035, 2308 (negative answers), 8767 (stale ones). No I/O.

A whole message is kept under the question that it answers, and given for that question alone: what a message has in its
additional section is never an answer to something else. Kept is what is whole, not truncated, and either has records or
says, with the zone's SOA, that there are none. SERVFAIL, REFUSED and answers without SOA are not kept.
"""

import struct
from typing import Final, NamedTuple

from overlay_dns.message import HEADER_SIZE, is_truncated
from overlay_dns.records import ANY, CNAME, OPT, SOA, Message, parse

LONGEST: Final = 86_400
"""Seconds that a positive answer is kept at most (RFC 8767 section 4: cap at days; names that move heal within one)."""
LONGEST_NEGATIVE: Final = 3_600
"""RFC 2308 section 5: one to three hours work well."""
STALE: Final = 86_400
"""Seconds past its time that an answer may still serve, when no upstream answers (RFC 8767 section 5: 1 to 3 days)."""
STALE_TTL: Final = 30
"""TTL of a stale answer (RFC 8767 section 4)."""
RETRY: Final = 30.0
"""Seconds after a failed refresh in which the stale answer is given at once (RFC 8767 section 5, "failure recheck")."""
MOST: Final = 4_096
MOST_BYTES: Final = 8 << 20

_NOERROR, _NXDOMAIN = 0, 3
_TTL: Final = struct.Struct(">I")


class Kept(NamedTuple):
    """One answer: its bytes, where its TTLs stand, when it came (seconds) and until when it is fresh."""

    reply: bytes
    question_end: int
    ttls: tuple[tuple[int, int], ...]  # offset, seconds
    stored: float
    expires: float
    negative: bool

    def render(self, query: bytes, now: float) -> bytes:
        """The reply to `query`: its identifier and the case of its name (0x20), TTLs counted down."""
        reply = bytearray(self.reply)
        reply[:2] = query[:2]
        reply[HEADER_SIZE : self.question_end] = query[HEADER_SIZE : self.question_end]
        age = max(0, int(now - self.stored))
        fresh = now < self.expires
        for offset, ttl in self.ttls:
            _TTL.pack_into(reply, offset, max(ttl - age, 0) if fresh else STALE_TTL)
        return bytes(reply)


class Cache:
    """By `records.outgoing`: what is asked, without identifier and case."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Kept] = {}
        self._retry_at: dict[bytes, float] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def fresh(self, key: bytes, now: float) -> Kept | None:
        kept = self._kept.get(key)
        return kept if kept is not None and now < kept.expires else None

    def stale(self, key: bytes, now: float) -> Kept | None:
        """The last good answer, whatever its age up to `STALE`."""
        kept = self._kept.get(key)
        if kept is None or now < kept.expires + STALE:
            return kept
        self._drop(key)
        return None

    def waits(self, key: bytes, now: float) -> bool:
        """Whether asking for this failed a moment ago, and its stale answer is to be given meanwhile."""
        return now < self._retry_at.get(key, 0.0)

    def failed(self, key: bytes, now: float) -> None:
        """No upstream gave a good answer for a question that has a stale one."""
        if key in self._kept:
            self._retry_at[key] = now + RETRY

    def keep(self, key: bytes, reply: bytes, now: float) -> Kept | None:
        """Keep `reply`, which was checked to answer `key`; None if it may not be kept."""
        message = parse(reply)
        if message is None or is_truncated(reply):
            return None
        lifetime, negative = _lifetime(message, reply)
        if lifetime <= 0:
            return None
        ttls = tuple((record.ttl_at, _seconds(record.ttl)) for record in message.records if record.rtype != OPT)
        kept = Kept(reply, message.question_end, ttls, now, now + lifetime, negative)
        self._drop(key)
        self._kept[key] = kept
        self._bytes += len(reply)
        while len(self._kept) > MOST or self._bytes > MOST_BYTES:
            self._drop(next(iter(self._kept)))  # the one that was renewed longest ago
        return kept

    def clear(self) -> None:
        self._kept.clear()
        self._retry_at.clear()
        self._bytes = 0

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        self._retry_at.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.reply)


def _seconds(ttl: int) -> int:
    """RFC 2181 section 8: with the highest bit set it is zero."""
    return 0 if ttl & 0x8000_0000 else min(ttl, LONGEST)


def _lifetime(message: Message, reply: bytes) -> tuple[int, bool]:
    """Seconds that a message may be kept (0: not at all), and whether it says that there is nothing."""
    if message.rcode not in (_NOERROR, _NXDOMAIN):
        return 0, False
    answers = [record for record in message.records if record.section == 0]
    ttls = [_seconds(record.ttl) for record in answers]
    wanted = (CNAME, message.qtype)
    if message.rcode == _NOERROR and any(record.rtype == message.qtype or message.qtype == ANY for record in answers):
        return min(ttls), False
    if any(record.rtype not in wanted and record.rtype < 46 for record in answers):  # from 46 on: signatures beside it
        return 0, False
    for record in message.records:
        if record.section == 1 and record.rtype == SOA and record.length >= 22:
            minimum = _TTL.unpack_from(reply, record.data_at + record.length - 4)[0]
            return min(*ttls, _seconds(record.ttl), _seconds(minimum), LONGEST_NEGATIVE), True
    return 0, True
