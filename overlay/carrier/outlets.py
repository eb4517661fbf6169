"""Where the datagrams of one user's flow leave, and where answers to them come in: a UDP socket, or a byte stream that
carries them in frames (a dynamic tunnel). What cannot be taken at once is dropped and counted, as a network does it.
"""

import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio

from overlay.carrier.port import Stream
from overlay.carrier.quic import QuicStream
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.framing import FrameReader, frames

LARGEST_DATAGRAM: Final = 65535
BATCH: Final = 64  # datagrams taken from one socket before others get a turn
MOST_WAITING: Final = 32  # datagrams that wait for a tunnel to be opened
_READ_SIZE: Final = 64 * 1024
_ENDS: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
_buffer: Final = bytearray(LARGEST_DATAGRAM)  # all sockets': never held across an await

Deliver = Callable[[memoryview], object]


class Outlet(Protocol):
    """One flow's."""

    @property
    def stale(self) -> bool:
        """It leads to where nobody should be led any more: the flow is to begin anew."""

    def send(self, datagram: memoryview) -> bool:
        """→ whether it is on its way; not: it is dropped, and counted."""

    async def run(self, deliver: Deliver) -> None:
        """Deliver answers, until it is closed or can do nothing more."""

    def close(self) -> None: ...


OpenOutlet = Callable[[Endpoint, Endpoint], Outlet | None]
"""For a user's new flow, by its two ends: source, and where it came to. None: there is none now, and that is counted.
Raises `OSError` when there is no socket for it."""


class SocketOutlet:
    """A UDP socket of its own, which is connected. Owns it."""

    def __init__(
        self,
        connected: socket.socket,
        target: Endpoint,
        where: Callable[[], Endpoint | None],
        drops: Counter[str],
    ) -> None:
        """`where`: where the target is now; None: nowhere, for a while perhaps."""
        self._socket = connected
        self._target = target
        self._where = where
        self._drops = drops

    @classmethod
    def open(cls, where: Callable[[], Endpoint | None], drops: Counter[str]) -> "SocketOutlet | None":
        """As an `OpenOutlet`."""
        target = where()
        if target is None:
            drops["target_offline"] += 1
            return None
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        connecting = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connecting.connect(target)
        except OSError:
            connecting.close()
            drops["target_failed"] += 1
            return None
        return cls(connecting, target, where, drops)

    @property
    def stale(self) -> bool:
        return self._where() not in (None, self._target)

    def send(self, datagram: memoryview) -> bool:
        if self._where() is None:
            self._drops["target_offline"] += 1
            return False
        try:
            try:
                self._socket.send(datagram)
            except ConnectionRefusedError:
                self._socket.send(datagram)  # what was refused was an earlier one: the kernel tells it once
        except BlockingIOError:
            self._drops["target_full"] += 1
        except ConnectionRefusedError:
            self._drops["target_refused"] += 1
        except OSError:
            self._drops["target_failed"] += 1
        else:
            return True
        return False

    async def run(self, deliver: Deliver) -> None:
        while self._socket.fileno() >= 0:
            try:
                await anyio.wait_readable(self._socket)
            except anyio.ClosedResourceError:
                return
            if self._socket.fileno() < 0:
                return
            for _ in range(BATCH):
                try:
                    size = self._socket.recv_into(_buffer)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    self._drops["target_refused"] += 1
                    break
                except OSError:
                    self._drops["target_failed"] += 1
                    break
                deliver(memoryview(_buffer)[:size])

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


class HeadedOutlet:
    """Another outlet, which gets each datagram with a header before it."""

    def __init__(self, inner: Outlet, header: bytes, drops: Counter[str]) -> None:
        self._inner = inner
        self._header = header
        self._drops = drops
        self.run = inner.run
        self.close = inner.close

    @property
    def stale(self) -> bool:
        return self._inner.stale

    def send(self, datagram: memoryview) -> bool:
        if len(self._header) + len(datagram) > LARGEST_DATAGRAM:
            self._drops["datagram_too_large"] += 1
            return False
        return self._inner.send(memoryview(self._header + datagram))


class StreamOutlet:
    """A stream with a datagram in each frame. Over QUIC they go by datagrams of its own where they fit, so that none
    waits for another one that was lost."""

    stale = False

    def __init__(self, open_stream: Callable[[], Awaitable[Stream]], drops: Counter[str]) -> None:
        """`open_stream`: called when this is run; what it raises, `run` raises."""
        self._open_stream = open_stream
        self._drops = drops
        self._stream: Stream | None = None
        self._waiting: deque[bytes] = deque()
        self._unsent = b""  # the rest of a frame that has been begun
        self._work = anyio.Event()
        self._scope = anyio.CancelScope()

    def send(self, datagram: memoryview) -> bool:
        if not datagram:
            self._drops["datagram_empty"] += 1  # a frame without anything means something else
            return False
        stream = self._stream
        if stream is None:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(bytes(datagram))
                return True
        elif not self._unsent:
            try:
                self._write(stream, bytes(datagram))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._drops["tunnel_broken"] += 1
                return False
            return True
        self._drops["tunnel_full"] += 1
        return False

    async def run(self, deliver: Deliver) -> None:
        """Raises what opening the stream raises."""
        try:
            with self._scope:
                stream = await self._open_stream()
                try:
                    await self._carry(stream, deliver)
                finally:
                    self._stream = None
                    stream.close()
        except _ENDS:
            return
        except RemoteProtocolError as error:
            self._drops[error.reason] += 1

    def close(self) -> None:
        self._scope.cancel()

    async def _carry(self, stream: Stream, deliver: Deliver) -> None:
        if isinstance(stream, QuicStream):
            stream.take_datagrams(lambda datagram: deliver(memoryview(datagram)))
        self._stream = stream
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_rest, stream)
            try:
                await self._read(stream, deliver)
            except (*_ENDS, RemoteProtocolError) as end:
                error = end  # out of the group as it is
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _read(self, stream: Stream, deliver: Deliver) -> None:
        reader = FrameReader()
        while True:
            for run, segment in reader.receive(await stream.receive(_READ_SIZE)):
                for at in range(0, len(run), segment):
                    deliver(run[at : at + segment])

    async def _write_rest(self, stream: Stream) -> None:
        """What a stream does not take at once; it comes in turn, as nothing is sent meanwhile."""
        try:
            while True:
                while self._unsent or self._waiting:
                    if self._unsent:
                        rest = self._unsent
                        await stream.send(rest)
                        self._unsent = b""
                    if self._waiting:
                        self._write(stream, self._waiting.popleft())
                await self._work.wait()
                self._work = anyio.Event()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # whoever reads is told

    def _write(self, stream: Stream, datagram: bytes) -> None:
        if isinstance(stream, QuicStream) and stream.send_datagram(datagram):
            return
        frame = b"".join(frames(datagram, 0))
        if (taken := stream.send_now(frame)) < len(frame):
            self._unsent = frame[taken:]
            self._work.set()


async def join(one: Outlet, other: Outlet) -> None:
    """Carry datagrams between the two until either has ended; closes both."""

    async def run(source: Outlet, sink: Outlet) -> None:
        await source.run(sink.send)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, one, other)
            tasks.start_soon(run, other, one)
    finally:
        one.close()
        other.close()
