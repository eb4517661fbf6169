"""A bulk flow over a bad path in virtual time: superpackets, cut and sealed, sent, opened, measured, reported back."""

from dataclasses import dataclass
from functools import cache

from overlay.testing.clock import VirtualClock
from overlay.testing.link import Link
from overlay.wire.record.cut import cut
from overlay.wire.record.fragments import DATAGRAM_SIZE, FRAGMENT_HEADER_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, LENGTH, frames
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.reports import LossMeter, LossReport, is_report, parse_report
from overlay.wire.record.sizing import RecordSizer
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.gaps import GapWindow
from tests.wire.packet.packets import Flow
from tests.wire.record.batches import KEY, RECEIVER, datagrams

PAYLOAD = DATAGRAM_SIZE - FRAGMENT_HEADER_SIZE
SEGMENT = 1328  # bytes: an inner packet of 1380 less IPv4 and TCP headers with time stamps
SEGMENTS = 48
HEADERS = 52
TICK = 0.005  # s between superpackets: about 9,500 datagrams or 100 Mb/s
WIRE = 42  # bytes of Ethernet, IPv4 and UDP headers per datagram


@cache
def superpacket() -> bytes:
    """A frame of 48 segments."""
    frame = Flow(tcp_options=bytes(12)).superpacket(bytes(SEGMENT * SEGMENTS), SEGMENT)
    return LENGTH.pack(len(frame) - 10) + frame


@dataclass(frozen=True)
class Totals:
    delivered: int  # bytes of inner payload
    wire: int  # bytes on the wire, headers included


class LossyPath:
    """Sender and receiver of one direction. `forth` and `back` are the links: change their faults at will."""

    def __init__(self, *, loss: float = 0.0, jitter: float = 0.0, latency: float = 0.010, seed: int = 1) -> None:
        self.clock = clock = VirtualClock()
        self.forth = Link(clock, self._arrived, latency=latency, loss=loss, jitter=jitter, seed=2 * seed)
        self.back = Link(clock, self._reported, latency=latency, loss=loss, jitter=jitter, seed=2 * seed + 1)
        self.sizer = RecordSizer(PAYLOAD)
        self.writer = RecordWriter(KEY, "aes-256-gcm", RECEIVER)
        self.window = GapWindow()
        self.reader = RecordReader(KEY, "aes-256-gcm", self.window)
        self.meter = LossMeter()
        self.meter.add(1, self.reader, self.window)
        self.reports: list[tuple[float, LossReport]] = []
        self.sizes: list[tuple[float, int]] = []  # after each report
        self.delivered = self.wire = self._counter = 0
        self._armed: float | None = None  # when the next report is looked for
        self._generation = 0

    def flow(self, seconds: float) -> Totals:
        """Send at full rate meanwhile; what that brought and cost."""
        before = self.delivered, self.wire
        self._generation += 1
        generation = self._generation
        self._tick(generation)
        self.clock.advance(seconds)
        self._generation += 1
        return Totals(self.delivered - before[0], self.wire - before[1])

    def least(self, since: float) -> int:
        """The smallest size that a report has set after that time."""
        return min(size for when, size in self.sizes if when >= since)

    def _tick(self, generation: int) -> None:
        if generation != self._generation:
            return
        plain = memoryview(bytearray(superpacket()))
        for piece in cut(plain, self.sizer.room) if len(plain) > self.sizer.room else (plain,):
            for datagram in datagrams(self.writer.write(piece, self._counter, DATAGRAM_SIZE)):
                self.wire += len(datagram) + WIRE
                self.forth.send(datagram)
            self._counter += 1
        self.clock.at(self.clock.now + TICK, lambda: self._tick(generation))

    def _arrived(self, datagram: bytes) -> None:
        now = self.clock.now
        for plain in self.reader.receive(memoryview(datagram), len(datagram), 0, now, multi=True):
            for start, end in frames(plain):
                self.delivered += end - start - FRAME_HEADER_SIZE - HEADERS
        self.meter.observe(1, 1, now)
        self._arm()

    def _arm(self) -> None:
        due = self.meter.next_timeout()
        if due is not None and (self._armed is None or due < self._armed):
            self._armed = due
            self.clock.at(due, self._report)
        expiry = self.reader.next_timeout()
        if expiry is not None and expiry <= self.clock.now:
            self.reader.expire(self.clock.now)
            self.meter.observe(1, 0, self.clock.now)

    def _report(self) -> None:
        self._armed = None
        report = self.meter.take_report(self.clock.now)
        if report is not None:
            self.reports.append((self.clock.now, report))
            self.back.send(report.encode())

    def _reported(self, plain: bytes) -> None:
        assert is_report(plain)
        report = parse_report(plain)
        assert report is not None
        self.sizer.report_received(report, self.clock.now)
        self.sizes.append((self.clock.now, self.sizer.fragments))
