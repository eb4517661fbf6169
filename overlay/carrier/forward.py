"""Forwarding of users' TCP connections between two sockets, byte for byte; `flows` does the same for UDP.

Both ends of an exposure use it: the server's ingress between a user and the node's overlay address, the node between
the server and the target. Nothing here knows whom it forwards for.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.flows import UdpFlows
from overlay.carrier.splice import Count, Joint
from overlay.carrier.stream import reset_on_close, set_options
from overlay.carrier.streams import OverTcp

__all__ = ["Forwardable", "Forwarded", "Forwarding", "UdpFlows", "forward_streams"]


class OwnStream(Protocol):
    """The verbs that our own streams have."""

    async def receive(self, max_bytes: int = 65536) -> bytes: ...
    async def send(self, item: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    def cut(self) -> None: ...
    def close(self) -> None: ...


Forwardable = SocketStream | OwnStream

_TURN: Final = 16  # pieces before other tasks get a turn
_CHUNK: Final = 64 * 1024  # bytes held per direction: what one side has sent and the other not yet taken


class Pace(Protocol):
    """How fast bytes may go in one direction."""

    piece: int
    """The most bytes that go at once."""

    async def passed(self, size: int) -> None:
        """So many have gone: wait until the next ones may."""


@dataclass(slots=True)
class Forwarded:
    """What became of a pair of streams; counts grow while it runs. `error` is None if both sides ended in order."""

    a_to_b: int = 0  # bytes
    b_to_a: int = 0
    error: str | None = None

    def passed(self) -> int:
        """Bytes, both ways together."""
        return self.a_to_b + self.b_to_a


class Forwarding:
    """Two streams of TCP, forwarded as `forward_streams` has it, by callbacks and without a task; at once."""

    def __init__(self, a: OverTcp, b: OverTcp, forwarded: Forwarded, ended: Callable[[], None]) -> None:
        """`ended` is called once when both are closed, whatever happened; maybe before this returns."""
        self._streams = a, b
        self._forwarded = forwarded
        self._ended: Callable[[], None] | None = ended
        self._joint: Joint | None = None
        try:
            self._joint = Joint(a, b, self._count_a, self._count_b, self._end)
            self._joint.begin()
        except (OSError, anyio.ClosedResourceError) as error:  # a socket that was dead before we began
            self._end(error)

    @property
    def over(self) -> bool:
        """Both are closed."""
        return self._ended is None

    def cancel(self) -> None:
        """End it; both are reset."""
        self._end(anyio.ClosedResourceError())

    def _count_a(self, size: int) -> None:
        self._forwarded.a_to_b += size

    def _count_b(self, size: int) -> None:
        self._forwarded.b_to_a += size

    def _end(self, error: Exception | None) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        if self._joint is not None:
            self._joint.stop()
        self._forwarded.error = None if error is None else _words(error)
        for stream in self._streams:
            if error is not None:
                stream.cut()
            stream.close()
        ended()


async def forward_streams(
    a: Forwardable,
    b: Forwardable,
    forwarded: Forwarded | None = None,
    paces: tuple[Pace, Pace] | None = None,
) -> Forwarded:
    """Copy both ways until both have ended, and close both, whatever happens.

    The end of one direction (FIN) is passed on and leaves the other open. A reset or error on one side, or our being
    cancelled, resets both: neither must take a stream cut short for a whole one. Network errors are not raised; they
    are in the result. Memory: one chunk per direction, and none is read before the last one was taken. Between two
    plain sockets what is long goes through a pipe in the kernel, unless `paces` (of a to b, and of b to a) are kept to.
    """
    result = Forwarded() if forwarded is None else forwarded
    if paces is None and isinstance(a, OverTcp) and isinstance(b, OverTcp):
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended() -> None:
            if not done.done():
                done.set_result(None)

        forwarding = Forwarding(a, b, result, ended)
        try:
            await done
        finally:
            forwarding.cancel()
        return result
    whole = False

    def count_a(size: int) -> None:
        result.a_to_b += size

    def count_b(size: int) -> None:
        result.b_to_a += size

    try:
        await _copy_both(a, b, count_a, count_b, result, paces)
        whole = result.error is None
    finally:
        for stream in (a, b):
            if not whole:
                _cut(stream)
            if not isinstance(stream, SocketStream):
                stream.close()
                continue
            with anyio.CancelScope(shield=True):  # one turn of the loop
                await stream.aclose()
    return result


def _words(error: Exception) -> str:
    if isinstance(error, anyio.ClosedResourceError):
        return "closed"
    if isinstance(error, OSError):
        return error.strerror or "connection reset"
    return str(error.__cause__ or error) or "connection reset"


async def _copy_both(
    a: Forwardable,
    b: Forwardable,
    count_a: Count,
    count_b: Count,
    result: Forwarded,
    paces: tuple[Pace, Pace] | None,
) -> None:
    for stream in (a, b):
        if isinstance(stream, SocketStream):  # the others are made so
            set_options(stream.extra(SocketAttribute.raw_socket))
    async with anyio.create_task_group() as tasks:

        async def copy(source: Forwardable, sink: Forwardable, count: Count, pace: Pace | None) -> None:
            try:
                await _copy(source, sink, count, pace)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                result.error = result.error or _words(error)
                tasks.cancel_scope.cancel()

        there, back = paces or (None, None)
        tasks.start_soon(copy, a, b, count_a, there)
        tasks.start_soon(copy, b, a, count_b, back)


def _cut(stream: Forwardable) -> None:
    if isinstance(stream, SocketStream):
        reset_on_close(stream.extra(SocketAttribute.raw_socket))
    else:
        stream.cut()


async def _copy(source: Forwardable, sink: Forwardable, count: Count, pace: Pace | None) -> None:
    piece = _CHUNK if pace is None else pace.piece
    pieces = 0
    while True:
        pieces += 1
        if pieces % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        try:
            data = await source.receive(piece)
        except anyio.EndOfStream:
            await sink.send_eof()
            return
        await sink.send(data)
        count(len(data))
        if pace is not None:
            await pace.passed(len(data))
