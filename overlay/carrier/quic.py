"""A stream of QUIC: a byte stream as any other carrier's, and the datagrams that go beside it.

What the peer sends ahead is bounded by its window, what it does not take by `UNSENT`. The connection is in `quic_line`.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from overlay.carrier.limits import KIB

if TYPE_CHECKING:  # each knows the other
    from overlay.carrier.quic_line import QuicLine

UNSENT: Final = 256 * KIB  # bytes of a stream that are taken before the peer has acknowledged them
LARGEST_DATAGRAM: Final = 1100  # bytes that fit a datagram of the connection, whatever the path
EARLY_DATAGRAMS: Final = 16  # that are kept until somebody takes them
_PIECE: Final = 16 * KIB  # room that is waited for, so that writes do not become crumbs


class QuicStream:
    """A `CarrierStream`."""

    __slots__ = (
        "_broken",
        "_closed",
        "_cut",
        "_datagrams",
        "_ended",
        "_eof_sent",
        "_on_datagram",
        "_opened",
        "_readable",
        "_received",
        "_refused",
        "_when_closed",
        "_writable",
        "line",
        "stream_id",
    )

    def __init__(self, line: "QuicLine", stream_id: int, *, opened: bool) -> None:
        self.line = line
        self.stream_id = stream_id
        self._received = bytearray()
        self._datagrams: deque[bytes] | None = None  # that came early
        self._on_datagram: Callable[[bytes], object] | None = None
        self._opened = opened  # the stream exists: a server learns that from its first byte
        self._ended = False  # in order, by the peer
        self._broken: str | None = None
        self._refused: str | None = None  # the peer takes nothing more
        self._closed = False
        self._eof_sent = False
        self._cut = False
        self._when_closed: Callable[[], None] | None = None
        self._readable: anyio.Event | None = None  # while somebody waits
        self._writable: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<QuicStream {self.stream_id}, {'over' if self.line.over else 'open'}>"

    async def receive(self, max_bytes: int = 65536, within: float | None = None) -> bytes:
        """At least one byte. Raises `EndOfStream` when the peer has closed in order, `TimeoutError` if nothing comes
        `within` so many seconds, `BrokenResourceError` else."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            if self._received:
                data = bytes(self._received[:max_bytes])
                del self._received[:max_bytes]
                self.line.taken(self.stream_id, len(data))
                return data
            if self._broken is not None:
                raise anyio.BrokenResourceError(self._broken)
            if self._ended:
                raise anyio.EndOfStream
            self._readable = self._readable or anyio.Event()
            with anyio.fail_after(within):
                await self._readable.wait()

    async def send_some(self, data: bytes | memoryview) -> int:
        """Take what there is room for, waiting until there is some. → bytes taken; cancelled: none."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            taken = self.send_now(data)
            if taken or (self._opened and not data):
                return taken
            self._writable = self._writable or anyio.Event()
            self.line.blocked.add(self)
            await self._writable.wait()

    def send_now(self, data: bytes | memoryview) -> int:
        """→ bytes taken: what there is room for, if it is worth a packet."""
        self._raise_if_over()
        room = self._room
        if not self._opened or room < min(len(data), _PIECE):
            return 0
        piece = bytes(data[:room])
        self._write(piece)
        return len(piece)

    async def send(self, item: bytes) -> None:
        """All of `item`; how much of it has gone when this is cancelled, only the peer knows."""
        view = memoryview(item)
        while view:
            view = view[await self.send_some(view) :]

    async def send_eof(self) -> None:
        """The other direction stays open."""
        self._raise_if_over()
        if self._opened:
            self._write(b"", end=True)
            self._eof_sent = True
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """At once; but what was sent before `send_eof` is brought to its end, without anybody waiting for it. Whoever
        waits in another task is woken."""
        if self._closed:
            return
        self._closed = True
        if self._when_closed is not None:
            self._when_closed()
        self._received.clear()
        self.line.leave(self, in_order=self._eof_sent and not self._cut, cut=self._cut)
        self.wake()

    def detach(self) -> None:
        """There is no socket to give away."""

    def unread(self, data: bytes) -> None:
        """Put back what was received last."""
        self._received[:0] = data

    def cut(self) -> None:
        """Have `close` tell the peer that this is not all."""
        self._cut = True

    def is_quiet(self) -> bool:
        """Whether nothing has come, and the peer has not gone."""
        return not (self._received or self._ended or self._broken or self._refused or self.line.over)

    def admit(self) -> None:
        """For who has seen that the peer is a node of ours: more streams and many datagrams may come from it."""
        self.line.admit()

    def send_datagram(self, datagram: bytes) -> bool:
        """By a datagram of the connection (RFC 9221). → whether it fits one."""
        if len(datagram) > LARGEST_DATAGRAM or self._closed or not self.line.takes_datagrams:
            return False
        self.line.send_datagram(self.stream_id, datagram)
        return True

    def take_datagrams(self, take: Callable[[bytes], object]) -> None:
        """Have `take` called with what comes by datagrams of the connection, and has come."""
        self._on_datagram = take
        early, self._datagrams = self._datagrams, None
        for datagram in early or ():
            take(datagram)

    def keep_alive(self) -> None:
        """From now on the connection does not end by silence: neither end has a heartbeat of its own."""
        self.line.keep_alive()

    def when_closed(self, call: Callable[[], None]) -> None:
        """As `TcpStream.when_closed`."""
        self._when_closed = call

    def watch(self, *, closely: bool) -> None:
        """As `TcpStream.watch`: of the whole connection."""
        self.line.watch(closely=closely)

    # its line --------------------------------------------------------------------------------------------------------

    def take(self, data: bytes, *, end: bool) -> None:
        """Of the peer."""
        if not self._closed:
            self._opened = True
            self._received += data
            self._ended = self._ended or end
            self.wake()

    def take_datagram(self, datagram: bytes) -> None:
        if self._on_datagram is not None and not self._closed:
            self._on_datagram(datagram)
        elif not self._closed:
            self._datagrams = self._datagrams if self._datagrams is not None else deque(maxlen=EARLY_DATAGRAMS)
            self._datagrams.append(datagram)

    def end(self, reason: str | None) -> None:
        """Nothing more comes. None: in order."""
        if reason is None:
            self._ended = True
        elif not (self._ended and self.line.shared):
            self._broken = self._broken or reason
        self.wake()

    def refuse(self, reason: str) -> None:
        """Nothing more is taken."""
        self._refused = self._refused or reason
        self.wake()

    def open(self) -> None:
        self._opened = True

    def wake(self) -> None:
        """Whoever waits."""
        readable, self._readable = self._readable, None
        if readable is not None:
            readable.set()
        self._wake_writer()

    def wake_if_room(self) -> None:
        """Whoever waits to write."""
        if self._opened and self._room >= _PIECE:
            self._wake_writer()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def lingers(self) -> bool:
        """Closed, and what was sent is to arrive."""
        return self._closed and self._eof_sent

    # inside ----------------------------------------------------------------------------------------------------------

    def _wake_writer(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            self.line.blocked.discard(self)
            writable.set()

    @property
    def _room(self) -> int:
        return UNSENT - self.line.connection.unacknowledged(self.stream_id)

    def _raise_if_over(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self.line.over or self._broken is not None or self._refused is not None:
            raise anyio.BrokenResourceError(self._broken or self._refused or "closed by the peer")

    def _write(self, data: bytes, *, end: bool = False) -> None:
        try:
            self.line.connection.send_stream_data(self.stream_id, data, end_stream=end)
        except (RuntimeError, ValueError) as error:  # ended already, or the peer has asked us to stop
            raise anyio.BrokenResourceError(str(error)) from error
        self.line.flush()
