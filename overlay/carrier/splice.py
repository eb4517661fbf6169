"""Bytes from one TCP socket to another through a pipe in the kernel, none of them through Python (splice(2))."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute

from overlay.carrier.stream import TcpStream

PIPE_SIZE: Final = 1 << 20  # bytes; with the usual 64 KiB one stream was half as fast
WORTHWHILE: Final = 256 * 1024  # bytes that have gone one way, before a pipe is made for more
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_TURN: Final = 16  # pieces before other tasks get a turn


def make_pipe() -> tuple[int, int] | None:
    """Reading and writing end; None: there are no descriptors for it."""
    try:
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return None
        raise
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # an ordinary user has pages for so many pipes only: it stays as it is
    return ends


async def splice(source: TcpStream, sink: TcpStream, pipe: tuple[int, int], count: Callable[[int], None]) -> None:
    """To the end of `source`, which is passed on. Raises as a stream's methods do. The caller closes the pipe."""
    reading, writing = _socket(source), _socket(sink)
    out, into = pipe
    pieces = 0
    while True:
        pieces += 1
        if pieces % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        moved = await _move(reading, into, reading, PIPE_SIZE)
        if not moved:
            await sink.send_eof()
            return
        left = moved
        while left:
            left -= await _move(out, writing, writing, left)
        count(moved)


async def _move(source: socket.socket | int, sink: socket.socket | int, blocking: socket.socket, size: int) -> int:
    """`blocking`: which of the two may have to be waited for."""
    wait = anyio.wait_readable if blocking is source else anyio.wait_writable
    while True:
        if blocking.fileno() < 0:
            raise anyio.ClosedResourceError
        try:
            return os.splice(_number(source), _number(sink), size, flags=_FLAGS)
        except BlockingIOError:
            pass  # not to wait here: the error would live as long as nothing moves
        except OSError as error:
            raise anyio.BrokenResourceError(error.strerror) from error
        await wait(blocking)


def _number(end: socket.socket | int) -> int:
    return end if isinstance(end, int) else end.fileno()


def _socket(stream: TcpStream) -> socket.socket:
    found: socket.socket = stream.extra(SocketAttribute.raw_socket)
    return found
