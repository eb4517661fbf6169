"""Loss reports: what the receiver of records tells their sender about the path, and how it finds that out.

A report travels as the only frame of a record, so it is authenticated like any other. Its frame has a gso type that no
kernel uses, and its body starts with a byte that no IP packet starts with: a node that knows no reports drops it.

    length u32 = 24 | flags u8 = 0 | gso type u8 = 0xFF | 0 u64 |
    kind u8 = 1 | 0 u8 | 0 u16 | epoch u32 | datagrams u32 | records u32 | broken u32 | gaps u32

little-endian. The last four are totals since `epoch` began, modulo 2**32: a lost report costs nothing but time. Knows
no sockets and no sizes; what to make of a report is `sizing`'s.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Protocol

from overlay.errors import RemoteProtocolError
from overlay.wire.packet.ip import Octets
from overlay.wire.record.frames import FRAME_HEADER, FRAME_HEADER_SIZE, GSO_TYPE_AT, REPORT_GSO_TYPE
from overlay.wire.wireguard.gaps import GapWindow

KIND_LOSS = 1
_BODY = Struct("<BBHIIIII")
_MASK = 0xFFFFFFFF

MIN_INTERVAL = 0.1
"""s between reports while records get lost: a few round trips of most paths; 800 bytes per second at the most."""

INTERVAL = 1.0
"""s between reports of a clean path."""

MIN_DATAGRAMS = 32
"""Datagrams within a second and without loss that are worth a report: keepalives, pings and reports are not, so that
idle pairs stay silent and reports do not answer each other."""

REORDERING = 0.1
"""s that a counter may come late before it counts as missing: more than RACK (RFC 8985 §6.2) grants on most paths."""

JUDGE_BACKLOG = 7168
JUDGE_BEHIND = 6144
"""Records. With a backlog of the first, the window (8128) is a few batches from passing counters unjudged: those more
than the second behind are judged then, however young."""


@dataclass(frozen=True, slots=True)
class LossReport:
    """Totals of one direction between two nodes, each modulo 2**32."""

    epoch: int  # another one: the totals began anew
    datagrams: int  # received
    records: int  # completed
    broken: int  # records of which some fragments came, and others never
    gaps: int  # runs of neighbouring counters of which no record was completed

    def encode(self) -> bytes:
        """The plaintext of the record that carries it."""
        header = FRAME_HEADER.pack(_BODY.size, 0, REPORT_GSO_TYPE, 0, 0, 0, 0)
        return header + _BODY.pack(KIND_LOSS, 0, 0, self.epoch, self.datagrams, self.records, self.broken, self.gaps)


def is_report(plain: Octets) -> bool:
    """Does this opened record carry a report instead of packets?"""
    return len(plain) > GSO_TYPE_AT and plain[GSO_TYPE_AT] == REPORT_GSO_TYPE


def parse_report(plain: Octets) -> LossReport | None:
    """An opened record that `is_report` → the report; None: a kind that is not known here. Longer ones are read as far
    as they are known.

    Raises `RemoteProtocolError`: `bad_report`.
    """
    if len(plain) <= FRAME_HEADER_SIZE:
        raise RemoteProtocolError("bad_report", "no body")
    length, _, gso_type, _, _, _, _ = FRAME_HEADER.unpack_from(plain)
    if gso_type != REPORT_GSO_TYPE or length != len(plain) - FRAME_HEADER_SIZE:
        raise RemoteProtocolError("bad_report", "not alone in its record")
    if plain[FRAME_HEADER_SIZE] != KIND_LOSS:
        return None
    if length < _BODY.size:
        raise RemoteProtocolError("bad_report", "too short")
    _, _, _, epoch, datagrams, records, broken, gaps = _BODY.unpack_from(plain, FRAME_HEADER_SIZE)
    return LossReport(epoch, datagrams, records, broken, gaps)


class Reassembly(Protocol):
    """What the meter reads of a `RecordReader`."""

    completed: int
    lost: int


class _Feed:
    """One key pair's part: what was read of its totals, and up to where its counters were judged."""

    __slots__ = ("completed", "judged", "last_missed", "lost", "mark", "marked", "reader", "window")

    def __init__(self, reader: Reassembly, window: GapWindow) -> None:
        self.reader = reader
        self.window = window
        self.completed = reader.completed
        self.lost = reader.lost
        self.judged = window.newest
        self.last_missed = False  # was the counter before `judged` missing? Then a run may go on.
        self.mark = window.newest  # the newest counter at `marked`
        self.marked = float("-inf")

    def gaps(self, now: float) -> int:
        """Judge the counters that can be; return how many runs of missing ones have begun."""
        window = self.window
        newest = window.newest
        end = newest - JUDGE_BEHIND if newest - self.judged > JUDGE_BACKLOG else self.judged
        if now - self.marked >= REORDERING:
            end = max(end, self.mark)
            self.mark = newest
            self.marked = now
        start = max(self.judged, window.oldest)
        if start >= end:
            return 0
        if start > self.judged:
            self.last_missed = False  # the window was passed by: nothing is known of what lies between
        missing = window.unseen(start, end)
        self.judged = end
        runs = (missing & ~(missing << 1 | self.last_missed)).bit_count()
        self.last_missed = bool(missing >> end - start - 1)
        return runs


class LossMeter:
    """Counts, for one peer and over all its key pairs, what came and what did not; says when to report it."""

    __slots__ = (
        "_broken", "_counted", "_counted_since", "_datagrams", "_due", "_epoch", "_feeds", "_gaps", "_records",
        "_reported_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self._feeds: dict[int, _Feed] = {}  # by local index
        self._epoch: int | None = None
        self._datagrams = self._records = self._broken = self._gaps = 0
        self._counted = 0  # datagrams up to the second that is looked at for MIN_DATAGRAMS
        self._counted_since = float("-inf")
        self._reported_at = float("-inf")
        self._due: float | None = None

    def add(self, index: int, reader: Reassembly, window: GapWindow) -> None:
        """A key pair came to be; `index` is our receiver index for it (random, so it names the epoch, too)."""
        if self._epoch is None:
            self._epoch = index & _MASK
        self._feeds[index] = _Feed(reader, window)

    def remove(self, index: int, now: float) -> None:
        """The key pair is dead; what it counted stays counted."""
        if index in self._feeds:
            self.observe(index, 0, now)
            self._take_records(self._feeds.pop(index))

    def observe(self, index: int, datagrams: int, now: float) -> None:
        """`datagrams` were given to the key pair's reader, or its reassembly expired (0). Call after either."""
        feed = self._feeds[index]
        if now - self._counted_since > INTERVAL:
            self._counted = self._datagrams
            self._counted_since = now
        self._datagrams += datagrams
        if feed.reader.lost != feed.lost:
            self._broken += feed.reader.lost - feed.lost
            feed.lost = feed.reader.lost
            self._lossy(now)
        if now - feed.marked >= REORDERING or feed.window.newest - feed.judged > JUDGE_BACKLOG:
            runs = feed.gaps(now)
            if runs:
                self._gaps += runs
                self._lossy(now)
        if self._due is None and self._datagrams - self._counted >= MIN_DATAGRAMS:
            self._due = now + INTERVAL

    def next_timeout(self) -> float | None:
        """When to call `take_report`; None: there is nothing to report."""
        return self._due

    def take_report(self, now: float) -> LossReport | None:
        """The report that is due, to be sent at once; None: none is."""
        if self._due is None or now < self._due or self._epoch is None:
            return None
        for feed in self._feeds.values():
            self._take_records(feed)
            self._gaps += feed.gaps(now)
        self._due = None
        self._reported_at = now
        return LossReport(
            self._epoch, self._datagrams & _MASK, self._records & _MASK, self._broken & _MASK, self._gaps & _MASK
        )

    def _take_records(self, feed: _Feed) -> None:
        self._records += feed.reader.completed - feed.completed
        feed.completed = feed.reader.completed

    def _lossy(self, now: float) -> None:
        due = max(now, self._reported_at + MIN_INTERVAL)
        self._due = due if self._due is None else min(self._due, due)
