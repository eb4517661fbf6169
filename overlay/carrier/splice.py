"""Bytes between two streams over TCP, by callbacks and without a task. Between plain sockets a few bytes go by way of a
buffer, and what is long through a pipe in the kernel, none of it through Python (splice(2)); what has a codec goes
through that."""

import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import anyio

from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import OverTcp
from overlay.carrier.watch import watch

PIPE_SIZE: Final = 1 << 20  # bytes; with the usual 64 KiB one stream was half as fast
WORTHWHILE: Final = 256 * 1024  # bytes that have gone one way, before a pipe is made for more
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_BUFFER: Final = memoryview(bytearray(64 * 1024))  # everybody's: nothing stays in it when a callback returns

_MUCH: Final = 16 * 1024  # bytes: as much as a record of TLS has
_PIECES: Final = 8  # before others have their turn

Count = Callable[[int], None]
"""Is told how many bytes the other side has taken."""


Ended = Callable[[Exception | None], None]


class Joint:
    """Both ways between two streams, from `begin` until both have ended; the end of one is passed on. Nobody else reads
    or writes them meanwhile. Closing them stays the caller's, and is to follow at once: of plain sockets, that says the
    last end."""

    def __init__(self, a: OverTcp, b: OverTcp, count_a: Count, count_b: Count, ended: Ended) -> None:
        """`ended` is called once: with what went wrong (`OSError`, or an error of anyio's streams), or None. It may be
        called within `begin`. Raises `ClosedResourceError`."""
        self._ended: Ended | None = ended
        way = _PlainWay if isinstance(a, TcpStream) and isinstance(b, TcpStream) else _CodedWay
        self._there: _Way = way(self, a, b, count_a)
        self._back: _Way = way(self, b, a, count_b)
        self._there.other, self._back.other = self._back, self._there

    def begin(self) -> None:
        self._there.begin()
        self._back.begin()
        self._there.read()  # who has come has mostly said something by now
        if self._ended is not None:
            self._back.begun()

    def stop(self) -> None:
        """Nothing more goes; `ended` is not called."""
        self._ended = None
        self._there.stop()
        self._back.stop()

    def end(self, error: Exception | None) -> None:
        ended = self._ended
        if ended is not None:
            self.stop()
            ended(error)


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


class _Way(ABC):
    """One direction. The source is watched, or the sink while that takes nothing: never more than what was read
    at once waits here."""

    __slots__ = (
        "_blocked", "_count", "_ending", "_held", "_into", "_joint", "_out_of", "_sink", "_source", "_watch", "ended",
        "other",
    )  # fmt: skip

    other: "_Way"

    def __init__(self, joint: Joint, source: OverTcp, sink: OverTcp, count: Count) -> None:
        self._joint = joint
        self._source, self._out_of = source, source.unwatched().fileno()
        self._sink, self._into = sink, sink.unwatched().fileno()
        self._count = count
        self._watch = watch()
        self._held = b""  # read, and not yet taken
        self._blocked = False  # the sink is watched
        self._ending = False  # nothing more comes
        self.ended = False  # and that has been said

    def begin(self) -> None:
        self._watch.add_reader(self._out_of, self.read)

    def begun(self) -> None:  # noqa: B027 - of plain sockets nothing has
        """Something may have come before, of which the socket does not tell."""

    def stop(self) -> None:
        if self._blocked:
            self._watch.remove_writer(self._into)
        elif not self._ending:
            self._watch.remove_reader(self._out_of)

    def read(self) -> None:
        try:
            self._move()
        except BlockingIOError:
            return
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self._joint.end(error)

    def _write(self) -> None:
        try:
            self._go_on()
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self._joint.end(error)

    @abstractmethod
    def _move(self) -> None:
        """Something may be there."""

    @abstractmethod
    def _go_on(self) -> None:
        """The sink takes something again."""

    def _look_at(self, *, blocked: bool) -> None:
        if blocked == self._blocked:
            return
        self._blocked = blocked
        if blocked:
            if not self._ending:
                self._watch.remove_reader(self._out_of)
            self._watch.add_writer(self._into, self._write)
        else:
            self._watch.remove_writer(self._into)
            if not self._ending:
                self._watch.add_reader(self._out_of, self.read)

    def _has_ended(self) -> None:
        self.ended = True
        if self.other.ended:
            self._joint.end(None)


class _PlainWay(_Way):
    __slots__ = ("_from", "_in_pipe", "_moved", "_pipe", "_to")

    def __init__(self, joint: Joint, source: OverTcp, sink: OverTcp, count: Count) -> None:
        super().__init__(joint, source, sink, count)
        self._from, self._to = source.unwatched(), sink.unwatched()
        self._moved = 0
        self._in_pipe = 0  # bytes; as `_held`
        self._pipe: tuple[int, int] | None = None

    def stop(self) -> None:
        super().stop()
        self._close_pipe()

    def _move(self) -> None:
        if self._pipe is None:
            self._copy()
        else:
            self._splice(*self._pipe)

    def _go_on(self) -> None:
        if self._held:
            self._pass_on(memoryview(self._held))
        else:
            self._empty_pipe()

    def _copy(self) -> None:
        size = self._from.recv_into(_BUFFER)
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
            taken = self._to.send(data)
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

    def _end(self) -> None:
        self._ending = True
        self._watch.remove_reader(self._out_of)
        self._close_pipe()
        if not self.other.ended:  # else closing says so
            self._sink.end_now()
        self._has_ended()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)


class _CodedWay(_Way):
    """Where one of the two has a codec, or both."""

    __slots__ = ()

    def begun(self) -> None:
        self.read()

    def _move(self) -> None:
        pieces = 0
        while True:
            try:
                data = self._source.receive_now()
            except anyio.EndOfStream:
                self._ending = True
                self._watch.remove_reader(self._out_of)
                self._say_end()
                return
            if data is None:
                return
            self._held = data
            self._pass_on()
            pieces += 1
            # After less than it could have been there is hardly more: then being told again is cheaper than a look.
            if self._blocked or not (self._source.holds_more or (len(data) >= _MUCH and pieces < _PIECES)):
                return

    def _go_on(self) -> None:
        if self._held:
            self._pass_on()
        elif self._ending:
            self._say_end()
        if not self._blocked and not self._ending:
            self._move()

    def _pass_on(self) -> None:
        while self._held and (taken := self._sink.send_now(self._held)):
            self._count(taken)
            self._held = self._held[taken:]
        self._look_at(blocked=bool(self._held))

    def _say_end(self) -> None:
        said = self._sink.end_now()
        self._look_at(blocked=not said)
        if said:
            self._has_ended()
