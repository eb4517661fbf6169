"""Bytes between two TCP sockets, by callbacks and without a task: a few bytes by way of a buffer, and what
is long through a pipe in the kernel, none of it through Python (splice(2))."""

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Final

from overlay.carrier.watch import Watch, watch

PIPE_SIZE: Final = 1 << 20  # bytes; with the usual 64 KiB one stream was half as fast
WORTHWHILE: Final = 256 * 1024  # bytes that have gone one way, before a pipe is made for more
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_BUFFER: Final = memoryview(bytearray(64 * 1024))  # everybody's: nothing stays in it when a callback returns

Count = Callable[[int], None]
"""Is told how many bytes the other side has taken."""


async def join(a: socket.socket, b: socket.socket, count_a: Count, count_b: Count) -> None:
    """Both ways until both have ended; the end of one is passed on. Raises `OSError`. Closing stays the caller's.

    The sockets do not block, and nobody else waits for them meanwhile.
    """
    done = asyncio.get_running_loop().create_future()
    watched_by = watch()
    there, back = _Way(a, b, count_a, done, watched_by), _Way(b, a, count_b, done, watched_by)
    there.other, back.other = back, there
    try:
        there.begin()
        back.begin()
        there.read()  # who has come has mostly said something by now
        await done
    finally:
        there.stop()
        back.stop()


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


class _Way:
    """One direction. The source is watched, or the sink while that takes nothing: never more than what was read
    at once waits here."""

    __slots__ = (
        "_blocked", "_count", "_done", "_held", "_in_pipe", "_into", "_moved", "_out_of", "_pipe", "_sink",
        "_source", "_watch", "ended", "other",
    )  # fmt: skip

    other: "_Way"

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        count: Count,
        done: "asyncio.Future[None]",
        watched_by: Watch,
    ) -> None:
        self._source, self._out_of = source, source.fileno()
        self._sink, self._into = sink, sink.fileno()
        self._count = count
        self._done = done
        self._watch = watched_by
        self._moved = 0
        self._held = b""  # read, and not yet taken
        self._in_pipe = 0  # bytes; as `_held`
        self._pipe: tuple[int, int] | None = None
        self._blocked = False  # the sink is watched
        self.ended = False

    def begin(self) -> None:
        self._watch.add_reader(self._out_of, self.read)

    def stop(self) -> None:
        if self._blocked:
            self._watch.remove_writer(self._into)
        elif not self.ended:
            self._watch.remove_reader(self._out_of)
        self._close_pipe()

    def read(self) -> None:
        try:
            if self._pipe is None:
                self._copy()
            else:
                self._splice(*self._pipe)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)

    def _write(self) -> None:
        try:
            if self._held:
                self._pass_on(memoryview(self._held))
            else:
                self._empty_pipe()
        except OSError as error:
            self._fail(error)

    def _copy(self) -> None:
        size = self._source.recv_into(_BUFFER)
        if not size:
            self._end()
            return
        self._pass_on(_BUFFER[:size])
        if self._moved >= WORTHWHILE and not self._blocked:
            self._pipe = make_pipe()
            if self._pipe is None:
                self._moved = 0

    def _pass_on(self, data: memoryview) -> None:
        try:
            taken = self._sink.send(data)
        except BlockingIOError:
            taken = 0
        self._moved += taken
        self._count(taken)
        self._held = bytes(data[taken:])
        self._look_at(blocked=bool(self._held))

    def _splice(self, out: int, into: int) -> None:
        self._in_pipe = os.splice(self._out_of, into, PIPE_SIZE, flags=_FLAGS)
        if self._in_pipe:
            self._empty_pipe()
        else:
            self._end()

    def _empty_pipe(self) -> None:
        assert self._pipe is not None
        try:
            while self._in_pipe:
                taken = os.splice(self._pipe[0], self._into, self._in_pipe, flags=_FLAGS)
                self._in_pipe -= taken
                self._count(taken)
        except BlockingIOError:
            pass
        self._look_at(blocked=bool(self._in_pipe))

    def _look_at(self, *, blocked: bool) -> None:
        if blocked == self._blocked:
            return
        self._blocked = blocked
        if blocked:
            self._watch.remove_reader(self._out_of)
            self._watch.add_writer(self._into, self._write)
        else:
            self._watch.remove_writer(self._into)
            self._watch.add_reader(self._out_of, self.read)

    def _end(self) -> None:
        self.ended = True
        self._watch.remove_reader(self._out_of)
        self._close_pipe()
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the peer has reset it: the next read or write says so
                raise
        if self.other.ended and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: OSError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)
