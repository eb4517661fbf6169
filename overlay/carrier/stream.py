"""A TCP socket as an anyio byte stream, read and written directly.

anyio's own stream puts a transport with buffers of 256 KiB between us and the socket, starts before we know whom we
talk to, and gives no way to say what of a cancelled write has gone. Here a stranger costs a socket and no buffer, and
connecting, reading and writing are cancelled cleanly at any point.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
from anyio.abc import ByteStream, SocketAttribute

from overlay.carrier.carriers import Detached
from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.codec import Plain

_LINGER_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; close() then sends RST
KEEPALIVE_IDLE: Final = 30  # s; a dead peer is noticed after IDLE + COUNT × INTERVAL = 60 s, and NATs stay open
KEEPALIVE_INTERVAL: Final = 10  # s
KEEPALIVE_COUNT: Final = 3
GONE_AFTER: Final = 1.5  # s


class TcpStream(ByteStream):
    """Owns a connected, non-blocking socket of TCP, or a unix one. Errors as of every anyio byte stream."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._closed = False
        self._when_closed: Callable[[], None] | None = None
        connected.setblocking(False)
        set_options(connected)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte. Raises `EndOfStream` on FIN, `BrokenResourceError` on a reset."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                pass  # not to wait here: the error and its traceback would live as long as a peer is idle
            except OSError as error:
                raise anyio.BrokenResourceError(error.strerror) from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data
            await anyio.wait_readable(self._socket)

    async def send_some(self, data: bytes | memoryview) -> int:
        """Give the kernel what it takes now, waiting until it takes something. → bytes taken; cancelled: none."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                return self._socket.send(data)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError(error.strerror) from error

    def send_now(self, data: bytes | memoryview) -> int:
        """→ bytes that the kernel takes without waiting; 0: none."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            return self._socket.send(data) if data else 0
        except BlockingIOError:
            return 0
        except OSError as error:
            raise anyio.BrokenResourceError(error.strerror) from error

    async def writable(self) -> None:
        """Wait until the kernel takes something, or says what is wrong."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise anyio.ClosedResourceError
        await anyio.wait_writable(self._socket)

    async def peek(self, size: int) -> bytes:
        """The first `size` bytes, which stay where they are; fewer only at the end of the stream."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                # Without the low-water mark, the first of several bytes would wake us again and again.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
                await anyio.wait_readable(self._socket)
                data = self._socket.recv(size, socket.MSG_PEEK)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            except BlockingIOError:
                continue
            except OSError as error:
                if self._closed:
                    raise anyio.ClosedResourceError from error
                raise anyio.BrokenResourceError(error.strerror) from error
            return data

    async def send(self, item: bytes) -> None:
        """All of `item`; how much of it has gone when this is cancelled, only the peer knows."""
        view = memoryview(item)
        while view:
            view = view[await self.send_some(view) :]

    async def send_eof(self) -> None:
        """FIN. The other direction stays open."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the peer has reset it: the next read or write says so
                raise anyio.BrokenResourceError(error.strerror) from error

    async def aclose(self) -> None:
        """Close at once; the kernel still delivers what it has taken. Whoever waits in another task is woken."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._socket)
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
        self._closed = True
        anyio.notify_closing(self._socket)
        return Detached(self._socket, Plain(), b"")

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket}


def set_options(connected: socket.socket) -> None:
    """No waiting for more to send, and a peer that has silently gone is noticed. A unix socket needs nothing."""
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


async def connect_socket(connecting: socket.socket, endpoint: Endpoint) -> None:
    """Connect a socket that does not block. Raises `OSError`; closing it stays the caller's."""
    result = connecting.connect_ex(endpoint)
    if result == errno.EINPROGRESS:
        await anyio.wait_writable(connecting)
        result = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if result:
        raise OSError(result, errno_text(result))


def errno_text(number: int) -> str:
    """`connection refused`: the system's words, in the middle of a sentence."""
    words = os.strerror(number)
    return words[:1].lower() + words[1:]
