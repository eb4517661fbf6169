"""A link: a byte stream to a relay, client or peer that stands where a UDP socket does, with one endpoint. Linux only.

It is handed over set up (`api.AddLink`): a connected socket, and the codec of its carrier. Runs of datagrams go in and
out as frames (`overlay.wire.stream.framing`). Sending never waits: while the kernel takes no more, one batch of frames
is half-written here, further ones are refused (`drops.SEND_BLOCKED`) and wait where those for a UDP socket do. There
they are dropped by age, as a router with a short queue does: what the stream delivers late is worth less than nothing
to the flows inside, which have their own idea of what to send again.
"""

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from overlay.engine import drops
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.record.buffers import Layout
from overlay.wire.stream.codec import Codec
from overlay.wire.stream.framing import ALIVE, FRAME_HEADER, Frame, FrameReader, frames

logger = logging.getLogger(__name__)

LINK_HOST: Final = "@link"
"""Stands for the address in a link's endpoint; the link's number stands for the port. No address looks like it."""

MAX_AGE: Final = 0.05
"""s that a run waits for a link at most: what a link of 20 Mb/s sends of two superpackets. Longer, and TCP inside takes
the queue for the path; much shorter, and it never fills one of 50 ms."""

MAX_UNSENT: Final = 128 << 10
"""Bytes that the kernel holds and has not sent yet (`TCP_NOTSENT_LOWAT`): two superpackets. What is in flight is not
among them, so that a long path is filled all the same, but what waits, waits here and grows old here."""

MAX_HELD: Final = 512 << 10
"""Bytes of own traffic that wait behind a link, and that others' may fill: 2000 stalled clients take 1 GB at the very
most, and each for no longer than `PATIENCE`."""

GATHERED: Final = 16 << 10
"""Bytes of small frames that are written in one call (and are one TLS record) rather than each by itself; no later than
at the end of the turn."""

DATAGRAM_SIZE: Final = 16_000
"""Bytes of a datagram that goes to a peer by a link. A stream takes any size. This one makes four of a superpacket:
large enough that headers and calls are no matter, small enough that a slow link's drops need not be superpackets."""

PROOF: Final = 5.0
"""s in which a peer has to answer a ping on its link: two of TCP's retransmissions, beginning with 1 s."""

LOOK: Final = 60.0
IDLE: Final = 300.0
"""s between looks at a peer's link, and of a pair without data until it is given up: what it costs to keep is more than
what it costs to make anew."""

PATIENCE: Final = 10.0
"""s after which a peer that takes nothing is gone: the kernel's (`TCP_USER_TIMEOUT`) for what is not acknowledged, ours
for what its reader does not take."""

ALIVE_INTERVAL: Final = 20.0
"""s without a frame out after which an empty one goes: proxies close what is silent for 60 s, NATs forget TCP later."""

SILENCE: Final = 90.0
"""s without a byte in after which the peer is gone: four of its empty frames."""

_READ_SIZE: Final = 1 << 17
_SMALL_READ: Final = 1 << 12
"""Bytes asked for while little comes: so many are there without a call to the kernel for memory."""
_MAX_PENDING: Final = 1 << 20
"""Bytes that are to be written and are not ours to refuse (a codec's answers): who asks for more and reads nothing is
cut off."""

_BLOCKED: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)

Octets = bytes | bytearray | memoryview


class Handed(Protocol):
    """What a carrier gives away: `overlay.carrier.carriers.Detached`."""

    @property
    def socket(self) -> socket.socket: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def received(self) -> bytes: ...


def link_endpoint(number: int) -> Endpoint:
    """What stands for the endpoint of link `number`."""
    return LINK_HOST, number


def is_link(endpoint: Endpoint) -> bool:
    return endpoint[0] == LINK_HOST


class Link:
    """One connection. Compared by identity. `lost` says why it is of no use any more; "": it is."""

    ordered = True
    """What waits for it must not be overtaken, even if others do not wait (`Outbox`)."""

    def __init__(
        self,
        number: int,
        handed: Handed,
        client: int | None,
        peer: int | None,
        carrier: str,
        clock: Callable[[], float],
        lively: "set[Link]",
    ) -> None:
        """Takes the socket over. `client`: the node that is proven to be there; `peer`: the one that should be there,
        as a peer; both None: it leads to our home relay. `clock`: for the age of what waits. `lively`: where to say
        that something happened, to be looked at before the turn ends."""
        self.number = number
        self.endpoint = link_endpoint(number)
        self.client = client
        self.peer = peer
        self.look_due = float("inf") if peer is None else clock() + PROOF
        """When to look whether the peer is still worth the link."""
        self.carrier = carrier
        self.lost = ""
        self.clock = clock
        self.armed: float | None = None  # for `Timers`
        self.watched_out = False  # does epoll look out for room?
        self.drained = False
        """Did the last read show that nothing more waits? False: that is not known."""
        self._read_size = _SMALL_READ
        self.descriptor = handed.socket.fileno()
        self._lively = lively
        self._socket = handed.socket
        self._codec = handed.codec
        self._reader = FrameReader()
        self._received = handed.received  # decoded already; to be read before the socket
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._pending: memoryview = memoryview(b"")  # encoded, and not taken by the kernel yet
        self._blocked_since: float | None = None
        self._heard = self._told = clock()
        self._socket.setblocking(False)
        self._tune()

    def __repr__(self) -> str:
        return f"<Link {self.number}>"

    def fileno(self) -> int:
        return self._socket.fileno()

    def ends(self) -> tuple[int, Endpoint] | None:
        """Our port and the other end, of the connection; None: it is over, or none of TCP."""
        try:
            port, there = self._socket.getsockname()[1], self._socket.getpeername()
            return int(port), canonical_endpoint(there[0], there[1])
        except (OSError, IndexError, ValueError):
            return None

    # --- in -----------------------------------------------------------------------------------------------------------

    @property
    def has_received(self) -> bool:
        """Call `receive` though the socket may have nothing."""
        return bool(self._received)

    def receive(self, now: float) -> list[Frame] | None:
        """Frames that came, none if what came is not one yet; None: nothing waits, or the link is lost."""
        if self.lost:
            return None
        self.drained = False
        if self._received:
            data, self._received = self._received, b""
            return self._taken(data, now)
        try:
            data = self._socket.recv(self._read_size)
        except OSError as error:
            if error.errno not in _BLOCKED:
                self.lose(_reason(error))
            return None
        if not data:
            self.lose("link_closed")
            return None
        self.drained = len(data) < self._read_size
        self._read_size = _SMALL_READ if len(data) < _SMALL_READ else _READ_SIZE
        try:
            data = self._codec.decode(data)
        except RemoteProtocolError as error:
            self.lose(error.reason)
            return None
        answers = self._codec.answers()
        if answers:
            self._write(answers)
        found = self._taken(data, now)
        if self._codec.ended:
            self.lose("link_closed")
        return found

    def _taken(self, data: bytes, now: float) -> list[Frame] | None:
        self._heard = now
        try:
            return self._reader.receive(data)
        except RemoteProtocolError as error:
            self.lose(error.reason)
            return None

    # --- out ----------------------------------------------------------------------------------------------------------

    def record_limit(self, layout: Layout) -> int:
        """Bytes of a box that goes out past `send`: none does."""
        return 0

    def message(self, layout: Layout) -> None:
        return None

    def name(self, endpoint: Endpoint) -> None:
        return None

    def plain_sender(self, *, nobody_waits: bool = False) -> Callable[[Octets, Endpoint], None] | None:
        """As `UdpSocket`'s. None where others' traffic may wait for the link, too, unless the caller knows better."""
        return self.send_alone if nobody_waits or self.client is None else None

    def send_alone(self, datagram: Octets, endpoint: Endpoint) -> None:
        """Write one datagram at once. Raises `BlockingIOError` where it would overtake what this link has to write, or
        go nowhere."""
        if self.lost or self._pending or self._gathered:
            raise BlockingIOError(errno.EAGAIN, "the link has other things to write first")
        self._told = self.clock()
        self._write(self._codec.encode(b"".join((FRAME_HEADER.pack(len(datagram), 0, 0), datagram))))

    def forwards(self, send_buffer: int) -> None:
        """As `UdpSocket`'s: `MAX_UNSENT` bounds what the kernel holds already."""

    @property
    def blocked(self) -> bool:
        """The kernel takes no more: wait until it does."""
        return bool(self._pending)

    def send(self, buffers: Sequence[Octets], segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """Send a run, as `UdpSocket.send`. A stream shows no traffic class. Returns "" or the reason of a drop."""
        if self.lost:
            return drops.LINK_GONE
        if self._pending:
            return drops.SEND_BLOCKED
        run = b"".join(buffers)
        if not run:
            return ""
        self._gathered += frames(run, segment)
        self._lively.add(self)
        self._gathered_size += len(run)
        if self._gathered_size >= GATHERED:
            self.write()
        return ""

    send_fragmented = send

    def write(self) -> None:
        """Hand what was gathered to the kernel, or keep what it does not take."""
        if self.lost or not self._gathered or self._pending:
            return
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_size = 0
        self._told = self.clock()
        self._write(self._codec.encode(data))

    def flush(self) -> bool:
        """There may be room: write what is pending. False: it takes no more, or it is lost."""
        if self._pending:
            self._push()
            self._lively.add(self)
        return not self._pending and not self.lost

    def end(self) -> None:
        """Say goodbye, as far as it can be said at once. Close after."""
        if not self.lost and not self._pending:
            self.write()
            if not self._pending:
                self._write(self._codec.end())
        self.lost = self.lost or "link_removed"

    def close(self) -> None:
        self._socket.close()
        self._pending = memoryview(b"")
        self._gathered.clear()

    # --- timers -------------------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`. Early calls are harmless."""
        if now >= self._heard + SILENCE:
            self.lose("link_silent")
        elif self._blocked_since is not None and now >= self._blocked_since + PATIENCE:
            self.lose("link_stalled")
        elif now >= self._told + ALIVE_INTERVAL:
            self._told = now
            if not self._pending:
                self._gathered.append(ALIVE)
                self._lively.add(self)

    def next_timeout(self) -> float:
        nearest = min(self._heard + SILENCE, self._told + ALIVE_INTERVAL, self.look_due)
        return nearest if self._blocked_since is None else min(nearest, self._blocked_since + PATIENCE)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _write(self, data: Octets) -> None:
        """Write encoded bytes, behind those that are pending."""
        if self._pending:
            if len(self._pending) + len(data) > _MAX_PENDING:
                self.lose("link_stalled")
                return
            self._pending = memoryview(bytes(self._pending) + data)
            return
        self._pending = memoryview(data)
        self._lively.add(self)
        self._push()
        if self._pending:
            self._pending = memoryview(bytes(self._pending))  # the codec's own buffer is its own again

    def _push(self) -> None:
        try:
            sent = self._socket.send(self._pending)
        except OSError as error:
            if error.errno not in _BLOCKED:
                self.lose(_reason(error))
                return
            sent = 0
        self._pending = self._pending[sent:]
        if not self._pending:
            self._blocked_since = None
        elif sent or self._blocked_since is None:
            self._blocked_since = self.clock()  # it moves: a slow peer is none that is gone

    def lose(self, reason: str) -> None:
        """It is of no use any more."""
        self.lost = self.lost or reason
        self._lively.add(self)
        self._pending = memoryview(b"")
        self._gathered.clear()

    def _tune(self) -> None:
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (getattr(socket, "TCP_NOTSENT_LOWAT", 25), MAX_UNSENT),
            (socket.TCP_USER_TIMEOUT, int(PATIENCE * 1000)),
        ):
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            except OSError as error:  # not TCP: a test's socket pair
                logger.debug("link %d: option %d refused (%s)", self.number, option, error.strerror)


def _reason(error: OSError) -> str:
    if error.errno == errno.ETIMEDOUT:
        return "link_timed_out"
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return "link_reset"
    return "link_failed"
