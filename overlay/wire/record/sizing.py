"""How large a record may be on a path that loses datagrams. Per peer, fed by the receiver's loss reports.

One lost datagram loses its whole record, so a record of n datagrams is lost n times as often as one datagram. One
datagram per record, on the other hand, pays headers and a system call for each. With λ loss events per datagram, h the
bytes that a record costs beyond its payload and m the payload of a datagram, the share of a path that is given away is

    W(n) = a λ n  +  h / (m n)          the first for what is lost with a record, the second for its headers

which is least, 2 √(a λ c) with c = h / m, at n = √(c / a λ). It is flat there, and larger records save processor time,
which W knows nothing of; so the largest n is taken that costs `SLACK` more than the least. For 1428-byte payloads that
is about 50 and more (whole superpackets) up to λ = 0.01 %, 11 at 0.1 %, 2 at 1 %, and 1, a datagram that stands alone,
from 2 % on.

λ is an average over recent events and datagrams. Where it does not depend on n, as with random loss, the size of a
steady path is steady: nothing is probed. Where it does (bursts, or more reordering than the receiver's reassembly
holds), growth that is punished is tried again ever more slowly. A loss halves the size at the most, growth doubles it
in a second at the most. Knows no clock, no frames and no keys.
"""

from math import exp, exp2, sqrt
from typing import Final

from overlay.wire.record.fragments import MAX_FRAGMENTS, TAG_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, MAX_RECORD
from overlay.wire.record.reports import LossReport

RECORD_COST: Final = FRAME_HEADER_SIZE + 52 + TAG_SIZE
"""h, bytes: frame header, IPv4 and TCP headers with time stamps, tag."""

LOSS_WEIGHT: Final = 1.2
"""a: what TCP inside loses by each segment lost, in segments. Measured over 1 Gb/s and 20 ms with bbr: 4.7 % of records
lost made 5.5 % less goodput."""

SLACK: Final = 0.002
"""Share of the path: at 0.1 % of loss it buys records of 11 datagrams instead of 7."""

MEMORY_EVENTS: Final = 32.0
"""Loss events after which older ones have faded to 1/e: their number is then known to 12 %, the size to 6 %."""

MEMORY: Final = 8.0
"""s after which they have faded to 1/e on a path with few of them …"""

MEMORY_DATAGRAMS: Final = 1 << 16
"""… that has carried as many datagrams: what can tell 0.01 % of loss from none."""

GROWTH_TIME: Final = 1.0
MAX_GROWTH_TIME: Final = 16.0
"""s in which the size doubles at the most: from one datagram to a whole superpacket in six. Twice as many each time
that growth ended in a loss of half the size, up to the second: at the worst, 0.2 s in 16 are spent at a bad size."""

FORGIVENESS: Final = 60.0
"""s after which such failures have faded to 1/e."""

MAX_CREDIT: Final = 2.0
"""s of clean path at the most that one report proves: they come every second while data flows."""

HYSTERESIS: Final = 1.25
"""Factor by which the best size must differ from the present one before that is changed: three standard errors."""

SETTLING: Final = 0.3
"""s after a change of path in which reports still tell of the old one: a round trip, and the receiver's patience."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31


def best_size(event_rate: float, payload: int) -> float:
    """Datagrams per record, at least 1, for λ = `event_rate` and `payload` bytes of box in a datagram. No loss: inf."""
    if event_rate <= 0.0:
        return float("inf")
    weight = LOSS_WEIGHT * event_rate
    cost = RECORD_COST / payload
    # weight · n + cost / n = 2 √(weight · cost) + SLACK, the larger solution
    bound = 2.0 * sqrt(weight * cost) + SLACK
    return max(1.0, (bound + sqrt(bound * bound - 4.0 * weight * cost)) / (2.0 * weight))


class RecordSizer:
    """The size of the records to one peer on its present path.

    `room`: bytes of plaintext that a record may hold now; `MAX_RECORD` while whole superpackets may travel. A single
    segment that is larger travels all the same.
    """

    __slots__ = (
        "_broken", "_datagrams", "_gaps", "_grown", "_growth_time", "_largest", "_last", "_payload", "_records",
        "_reported_at", "_settled", "_size", "room",
    )  # fmt: skip

    def __init__(self, payload: int) -> None:
        """`payload`: bytes of box that a datagram of the path holds."""
        self.room = MAX_RECORD
        self._last: LossReport | None = None
        self._reported_at = float("-inf")
        self._settled = float("-inf")
        self._datagrams = self._records = self._broken = self._gaps = 0.0  # fading sums of what reports told
        self._growth_time = GROWTH_TIME
        self._grown = False  # since it last shrank
        self._payload = payload
        self._largest = _largest(payload)
        self._size = self._largest

    @property
    def fragments(self) -> int:
        """Datagrams that a record may fill now, at least 1."""
        return int(self._size)

    @property
    def whole(self) -> bool:
        """May superpackets travel uncut?"""
        return self._size >= self._largest

    @property
    def event_rate(self) -> float:
        """λ: loss events per datagram, 0 … 1, as far as the reports tell."""
        if not self._datagrams:
            return 0.0
        return min(1.0, max(self._broken, self._gaps / self._fragmentation()) / self._datagrams)

    def path_changed(self, payload: int, now: float) -> None:
        """Datagrams take another way from now on: what was learnt says nothing about it."""
        self._datagrams = self._records = self._broken = self._gaps = 0.0
        self._growth_time = GROWTH_TIME
        self._grown = False
        self._settled = now + SETTLING
        self._payload = payload
        self._largest = _largest(payload)
        self._resize_to(self._largest)

    def payload_changed(self, payload: int) -> None:
        """The same path takes datagrams of another size."""
        if payload != self._payload:
            whole = self.whole
            self._payload = payload
            self._largest = _largest(payload)
            self._resize_to(self._largest if whole else min(self._size, self._largest))

    def report_received(self, report: LossReport, now: float) -> None:
        """Take the receiver's totals. Old, repeated and reordered reports change nothing; nor can any do harm but to
        the peer that sent it."""
        last = self._last
        if last is None or last.epoch != report.epoch:
            # Where to count from: what these totals hold may be older than our path.
            self._last = report
            self._reported_at = now
            return
        datagrams = report.datagrams - last.datagrams & _MASK
        if not 0 < datagrams < _HALF:
            return
        records = report.records - last.records & _MASK
        broken = report.broken - last.broken & _MASK
        gaps = report.gaps - last.gaps & _MASK
        if max(records, broken, gaps) >= _HALF:
            return
        elapsed = min(max(0.0, now - self._reported_at), MAX_CREDIT)
        self._last = report
        self._reported_at = now
        if now < self._settled:
            return
        events = max(broken, gaps / max(1.0, datagrams / max(1, records + broken)))
        self._remember(datagrams, records, broken, gaps, events, elapsed)
        self._resize(events, elapsed)

    def _remember(self, datagrams: int, records: int, broken: int, gaps: int, events: float, elapsed: float) -> None:
        """Let older events and datagrams fade, and add these."""
        kept = exp(-events / MEMORY_EVENTS)
        if self._datagrams > MEMORY_DATAGRAMS:
            kept *= exp(-elapsed / MEMORY)
        self._datagrams = self._datagrams * kept + datagrams
        self._records = self._records * kept + records
        self._broken = self._broken * kept + broken
        self._gaps = self._gaps * kept + gaps

    def _resize(self, events: float, elapsed: float) -> None:
        best = min(best_size(self.event_rate, self._payload), self._largest)
        size = self._size
        if best * HYSTERESIS < size:
            # A few events are little evidence: each may halve the size, no more.
            self._resize_to(max(best, size * exp2(-events)))
            if self._grown and self._size * 2.0 <= size:
                self._growth_time = min(MAX_GROWTH_TIME, self._growth_time * 2.0)
                self._grown = False
            return
        self._growth_time = max(GROWTH_TIME, self._growth_time * exp(-elapsed / FORGIVENESS))
        if best > size * HYSTERESIS or best >= self._largest:
            self._resize_to(min(best, size * exp2(elapsed / self._growth_time)))
            self._grown |= self._size > size

    def _fragmentation(self) -> float:
        """Datagrams per record, on average, of what came.

        It tells what a gap is worth. Of single-datagram records a gap is a loss event; of larger ones it is one that
        `broken` counts too, or a whole record's loss, as full socket buffers make it, which no smaller size prevents.
        """
        return max(1.0, self._datagrams / max(1.0, self._records + self._broken))

    def _resize_to(self, size: float) -> None:
        self._size = size
        self.room = MAX_RECORD if self.whole else int(size) * self._payload - TAG_SIZE


def _largest(payload: int) -> float:
    """Datagrams that the largest record fills."""
    return float(min(MAX_FRAGMENTS, -(-(MAX_RECORD + TAG_SIZE) // payload)))
