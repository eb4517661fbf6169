"""A TCP socket as an anyio byte stream, read and written directly.

anyio's own stream puts a transport with buffers of 256 KiB between us and the socket, starts before we know whom we
talk to, and gives no way to say what of a cancelled write has gone. Here a stranger costs a socket and no buffer, and
connecting, reading and writing are cancelled cleanly at any point.
"""

import asyncio
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import ByteStream, SocketAttribute

from overlay.carrier.carriers import Detached
from overlay.carrier.watch import watch
from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.codec import Plain

_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; close() then sends RST
KEEPALIVE_IDLE: Final = 30  # s; a dead peer is noticed after IDLE + COUNT × INTERVAL = 60 s, and NATs stay open
KEEPALIVE_INTERVAL: Final = 10  # s
KEEPALIVE_COUNT: Final = 3
GONE_AFTER: Final = 1.5  # s


class TcpStream(ByteStream):
    """Owns a connected, non-blocking socket of TCP, or a unix one. Errors as of every anyio byte stream.

    One task at a time reads, and one writes; either is cancelled where it waits. Whoever reads again and
    again is watched for all the time: beginning and ending that for each read, and a scope for a time limit, cost three
    times what reading does.
    """

    def __init__(self, connected: socket.socket, *, has_options: bool = False) -> None:
        """`has_options`: those of `set_options` are set, or of no use."""
        self._socket = connected
        self._closed = False
        self._when_closed: Callable[[], None] | None = None
        self._reader: Reader | None = None  # from the first wait on
        self._writing: asyncio.Future[None] | None = None
        if connected.gettimeout() != 0.0:
            connected.setblocking(False)
        if not has_options:
            set_options(connected)

    async def receive(self, max_bytes: int = 65536, within: float | None = None) -> bytes:
        """At least one byte. Raises `EndOfStream` on FIN, `BrokenResourceError` on a reset, `TimeoutError` if nothing
        comes `within` so many seconds."""
        while (data := self.receive_now(max_bytes)) is None:
            await self._readable(within)
        return data

    def receive_now(self, max_bytes: int = 65536) -> bytes | None:
        """What is there; None: nothing at this moment. Raises as `receive`."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            data = self._socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise anyio.BrokenResourceError(error.strerror) from error
        if not data:
            raise anyio.EndOfStream
        return data

    holds_more: Final = False  # as `CodecStream.holds_more`

    async def send_some(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes now, waiting until it takes something. → bytes taken; cancelled: none."""
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                return self._socket.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                raise anyio.BrokenResourceError(error.strerror) from error
            await self.writable()

    def send_now(self, data: bytes | memoryview, *, more: bool = False) -> int:
        """→ bytes that the kernel takes without waiting; 0: none. `more` is sent at once: it goes in one packet."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            return self._socket.send(data, socket.MSG_MORE if more else 0) if data else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError(error.strerror) from error

    async def writable(self) -> None:
        """Wait until the kernel takes something, or says what is wrong."""
        if self._closed:
            raise anyio.ClosedResourceError
        if self._writing is not None:
            raise anyio.BusyResourceError("writing to")
        waiting = self._writing = asyncio.get_running_loop().create_future()
        watched_by = watch()
        watched_by.add_writer(self._socket.fileno(), partial(_done, waiting))
        try:
            await waiting
        finally:
            self._writing = None
            if not self._closed:
                watched_by.remove_writer(self._socket.fileno())

    async def peek(self, size: int, most: int = 0) -> bytes:
        """The first `size` bytes, and up to `most` if they are there, all of which stay where they are; fewer than
        `size` only at the end of the stream."""
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                data = self._socket.recv(max(size, most), socket.MSG_PEEK)
                if len(data) >= size or _has_ended(self._socket):
                    return data
            except BlockingIOError:
                pass
            except OSError as error:
                raise anyio.BrokenResourceError(error.strerror) from error
            # Without the low-water mark, the first of several bytes would wake us again and again.
            set_low_water(self._socket, size)
            try:
                await self._readable(None)
            finally:
                if not self._closed:
                    set_low_water(self._socket, 1)

    async def send(self, item: bytes) -> None:
        """All of `item`; how much of it has gone when this is cancelled, only the peer knows."""
        view = memoryview(item)
        while view:
            view = view[await self.send_some(view) :]

    async def send_eof(self) -> None:
        """FIN. The other direction stays open."""
        self.end_now()

    def end_now(self) -> bool:
        """As `send_eof`. → True: the kernel has taken it."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the peer has reset it: the next read or write says so
                raise anyio.BrokenResourceError(error.strerror) from error
        return True

    async def aclose(self) -> None:
        """Close at once; the kernel still delivers what it has taken. Whoever waits in another task is woken."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._closed:
            self._leave()
            self._socket.close()
            if self._when_closed is not None:
                self._when_closed()

    def watch(self, *, closely: bool) -> None:
        """Whether the other machine is probed each second from now on: one that does not answer for `GONE_AFTER` is
        gone then."""
        _set(
            self._socket,
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(GONE_AFTER * 1000) if closely else 0),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1 if closely else KEEPALIVE_INTERVAL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1 if closely else KEEPALIVE_IDLE),
        )

    def when_closed(self, call: Callable[[], None]) -> None:
        """Have this called once, when it is closed from this side."""
        self._when_closed = call

    def cut(self) -> None:
        """Have `close` tell the peer that this is not all: it must not take a stream cut short for a whole one."""
        reset_on_close(self._socket)

    def is_quiet(self) -> bool:
        """Whether nothing has come, and the peer has not gone."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def detach(self) -> Detached:
        """Give the socket away. This stream is closed then; whoever waits in another task is woken."""
        if self._closed:
            raise anyio.ClosedResourceError
        self._leave()
        return Detached(self._socket, Plain(), b"")

    def unwatched(self) -> socket.socket:
        """The socket, for somebody who has it watched himself from now on, until he stops that."""
        if self._closed:
            raise anyio.ClosedResourceError
        if self._reader is not None:
            self._reader.stop()
        return self._socket

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket}

    # inside ----------------------------------------------------------------------------------------------------------

    async def _readable(self, within: float | None) -> None:
        if self._reader is None:
            self._reader = Reader(self._socket)
        await self._reader.wait(within)

    def _leave(self) -> None:
        self._closed = True
        if self._reader is not None:
            self._reader.stop()
            self._reader.fail(anyio.ClosedResourceError())
        if self._writing is not None and not self._writing.done():
            watch().remove_writer(self._socket.fileno())
            self._writing.set_exception(anyio.ClosedResourceError())


class Reader:
    """Waits for a socket to have something to read, or somebody to accept. It is watched until there is something that
    nobody wants, or `stop`, which is due before it is closed."""

    __slots__ = ("_number", "_waiting", "_watch", "_watched")

    def __init__(self, watched: socket.socket) -> None:
        self._watch = watch()
        self._number = watched.fileno()
        self._watched = False
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self, within: float | None = None) -> None:
        """Raises `TimeoutError`, `BusyResourceError`, and what `fail` was given."""
        if self._waiting is not None:
            raise anyio.BusyResourceError("reading from")
        if not self._watched:
            self._watch.add_reader(self._number, self._ready)
            self._watched = True
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        timer = None if within is None else loop.call_later(within, _too_late, waiting)
        try:
            await waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def stop(self) -> None:
        if self._watched:
            self._watched = False
            self._watch.remove_reader(self._number)

    def _ready(self) -> None:
        if self._waiting is not None:
            _done(self._waiting)
        else:
            self.stop()


def _done(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


def _too_late(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())


def _has_ended(connected: socket.socket) -> bool:
    """Whether nothing more comes behind what is there."""
    poll = select.poll()
    poll.register(connected, select.POLLRDHUP)
    return bool(poll.poll(0))


def set_options(connected: socket.socket) -> None:
    """No waiting for more to send, and a peer that has silently gone is noticed. A unix socket needs nothing. What is
    accepted has the options that its listener had when it came."""
    if connected.family == socket.AF_UNIX:
        return
    _set(
        connected,
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT),
    )


def _set(connected: socket.socket, *options: tuple[int, int, int]) -> None:
    try:
        for option in options:
            connected.setsockopt(*option)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # reset already: the first read says so
            raise


def set_low_water(connected: socket.socket, size: int) -> None:
    """Of how many bytes it takes to be told that there is something to read (or an end, or an error)."""
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
    except OSError as error:
        raise anyio.BrokenResourceError(error.strerror) from error


def reset_on_close(connected: socket.socket) -> None:
    """Make the coming close() send RST instead of FIN: the peer must not take a stream cut short for a whole one."""
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # gone already
            raise


async def connect(endpoint: Endpoint) -> TcpStream:
    """Connect to a numeric endpoint. Raises `OSError`; cancelled at any point, it leaves no socket."""
    connecting = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await connect_socket(connecting, endpoint)
        return TcpStream(connecting)
    except BaseException:
        connecting.close()
        raise


def connect_now(endpoint: Endpoint) -> TcpStream | None:
    """To an endpoint of this host's loopback, where a connection is made at once; None: it is not, for whatever reason,
    and nothing is left of it. A peer there cannot go silently."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        connecting = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    try:
        result = connecting.connect_ex(endpoint)
        if result == errno.EINPROGRESS:
            result = connecting.connect_ex(endpoint)
        if not result:
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return TcpStream(connecting, has_options=True)
    except OSError:
        pass
    except BaseException:
        connecting.close()
        raise
    connecting.close()
    return None


async def connect_socket(connecting: socket.socket, endpoint: Endpoint) -> None:
    """Connect a socket that does not block. Raises `OSError`; closing it stays the caller's."""
    result = connecting.connect_ex(endpoint)
    if result == errno.EINPROGRESS:
        result = connecting.connect_ex(endpoint)  # what is near has answered already
    if result == errno.EALREADY:
        await anyio.wait_writable(connecting)
        result = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if result:
        raise OSError(result, errno_text(result))


def errno_text(number: int) -> str:
    """`connection refused`: the system's words, in the middle of a sentence."""
    words = os.strerror(number)
    return words[:1].lower() + words[1:]
