"""Forwarding of users' TCP connections between two sockets, byte for byte; `flows` does the same for UDP.

Both ends of an exposure use it: the server's ingress between a user and the node's overlay address, the node between
the server and the target. Nothing here knows whom it forwards for.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.flows import UdpFlows
from overlay.carrier.quic import QuicStream
from overlay.carrier.splice import Count, join
from overlay.carrier.stream import TcpStream, reset_on_close, set_options
from overlay.carrier.streams import CodecStream
from overlay.carrier.tapped import TappedStream

__all__ = ["Forwarded", "Forwardable", "UdpFlows", "forward_streams"]


class OtherStream(Protocol):
    """What has the verbs of our own streams."""

    async def receive(self, max_bytes: int = 65536) -> bytes: ...
    async def send(self, item: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    def cut(self) -> None: ...
    def close(self) -> None: ...


Forwardable = SocketStream | TcpStream | CodecStream | QuicStream | TappedStream | OtherStream

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
    whole = False

    def count_a(size: int) -> None:
        result.a_to_b += size

    def count_b(size: int) -> None:
        result.b_to_a += size

    try:
        if paces is None and isinstance(a, TcpStream) and isinstance(b, TcpStream):
            await join(a.unwatched(), b.unwatched(), count_a, count_b)
        else:
            await _copy_both(a, b, count_a, count_b, result, paces)
        whole = result.error is None
    except OSError as error:  # also a socket that was dead before we began
        result.error = error.strerror or "connection reset"
    except anyio.ClosedResourceError:
        result.error = "closed"
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
                result.error = result.error or (str(error.__cause__ or error) or "connection reset")
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
