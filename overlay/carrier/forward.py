"""Forwarding of users' TCP connections between two sockets, byte for byte; `flows` does the same for UDP.

Both ends of an exposure use it: the server's ingress between a user and the node's overlay address, the node between
the server and the target. Nothing here knows whom it forwards for.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.flows import UdpFlows
from overlay.carrier.quic import QuicStream
from overlay.carrier.splice import WORTHWHILE, make_pipe, splice
from overlay.carrier.stream import TcpStream, reset_on_close, set_options
from overlay.carrier.streams import CodecStream

__all__ = ["Forwarded", "Forwardable", "UdpFlows", "forward_streams"]

Forwardable = SocketStream | TcpStream | CodecStream | QuicStream

_CHUNK: Final = 64 * 1024  # bytes held per direction: what one side has sent and the other not yet taken


@dataclass(slots=True)
class Forwarded:
    """What became of a pair of streams; counts grow while it runs. `error` is None if both sides ended in order."""

    a_to_b: int = 0  # bytes
    b_to_a: int = 0
    error: str | None = None


async def forward_streams(a: Forwardable, b: Forwardable, forwarded: Forwarded | None = None) -> Forwarded:
    """Copy both ways until both have ended, and close both, whatever happens.

    The end of one direction (FIN) is passed on and leaves the other open. A reset or error on one side, or our being
    cancelled, resets both: neither must take a stream cut short for a whole one. Network errors are not raised; they
    are in the result. Memory: one chunk per direction, and none is read before the last one was taken. Between two
    plain sockets what is long goes through a pipe in the kernel.
    """
    result = Forwarded() if forwarded is None else forwarded
    whole = False
    try:
        for stream in (a, b):
            if isinstance(stream, SocketStream):  # the others are made so
                set_options(stream.extra(SocketAttribute.raw_socket))
        async with anyio.create_task_group() as tasks:

            async def copy(source: Forwardable, sink: Forwardable, count: Callable[[int], None]) -> None:
                try:
                    await _copy(source, sink, count)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                    result.error = result.error or (str(error.__cause__ or error) or "connection reset")
                    tasks.cancel_scope.cancel()

            def count_a(size: int) -> None:
                result.a_to_b += size

            def count_b(size: int) -> None:
                result.b_to_a += size

            tasks.start_soon(copy, a, b, count_a)
            tasks.start_soon(copy, b, a, count_b)
        whole = result.error is None
    except OSError as error:  # a socket that was dead before we began
        result.error = str(error)
    finally:
        for stream in (a, b):
            if not whole:
                _cut(stream)
            with anyio.CancelScope(shield=True):  # one turn of the loop each
                await stream.aclose()
    return result


def _cut(stream: Forwardable) -> None:
    if isinstance(stream, SocketStream):
        reset_on_close(stream.extra(SocketAttribute.raw_socket))
    else:
        stream.cut()


async def _copy(source: Forwardable, sink: Forwardable, count: Callable[[int], None]) -> None:
    if not (isinstance(source, TcpStream) and isinstance(sink, TcpStream)):
        await _copy_some(source, sink, count, float("inf"))
        return
    if not await _copy_some(source, sink, count, WORTHWHILE):
        return
    pipe = make_pipe()
    if pipe is None:
        await _copy_some(source, sink, count, float("inf"))
        return
    try:
        await splice(source, sink, pipe, count)
    finally:
        for end in pipe:
            os.close(end)


async def _copy_some(source: Forwardable, sink: Forwardable, count: Callable[[int], None], most: float) -> bool:
    """→ whether there may be more than `most` bytes; not: the end has been passed on"""
    copied = 0
    while copied < most:
        try:
            data = await source.receive(_CHUNK)
        except anyio.EndOfStream:
            await sink.send_eof()
            return False
        await sink.send(data)
        count(len(data))
        copied += len(data)
    return True
