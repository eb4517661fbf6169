"""A process that opens one target for the daemon, with the rights of the person who exposed it (see `rights`).

The daemon sends a number over a socket pair, and the path under which a folder is published; the deputy answers with
that number, an error number, and, if that is 0, the descriptor of a connection to the target. A folder it serves
itself (`folder`). It ends when the daemon closes the pair, or ends.
"""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from overlay.carrier.stream import errno_text
from overlay.node.rights import become
from overlay.node.targets import Kind

_NUMBER: Final = struct.Struct("<I")
_LARGEST_REQUEST: Final = 4096
_ANSWER: Final = struct.Struct("<II")  # number, errno
MOST_STUCK: Final = 4  # processes that hang in a file system which does not answer, and cannot be ended
PATIENCE: Final = 5.0  # s for an answer, and for a process to end by itself


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a deputy is for."""

    kind: Kind
    path: str
    owner: int  # uid
    listing: bool = False


class Deputy:
    """Starts its process when it is needed first, and anew if it has ended. Needs `run` to be running."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._number = 0
        self._lock = anyio.Lock()
        self._pair: socket.socket | None = None
        self._ended: list[subprocess.Popen[bytes]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = anyio.Event()

    async def run(self) -> None:
        """Until `close`, or cancelled; then no process is left."""
        try:
            await self._closed.wait()
        finally:
            self.close()
            with anyio.CancelScope(shield=True):
                async with self._lock:  # who is just starting one
                    self._let_go()
                await anyio.to_thread.run_sync(self._see_them_end)

    def close(self) -> None:
        self._closed.set()
        self._let_go()

    async def connect(self, prefix: str = "/") -> socket.socket:
        """A connection to the target, which does not block. `prefix`: of a folder, as in `Folder`. Raises `OSError`."""
        async with self._lock:
            found = self._pair is not None
            try:
                opened = await self._ask_one(prefix)
            except (OSError, anyio.ClosedResourceError) as error:  # TimeoutError is one
                if not found:
                    raise OSError(errno.EIO, "the process that opens it does not answer") from error
                opened = await self._ask_one(prefix)  # it may have been killed since the last time
        if isinstance(opened, OSError):
            raise opened
        return opened

    async def _ask_one(self, prefix: str) -> socket.socket | OSError:
        if self._closed.is_set():
            raise OSError(errno.ESHUTDOWN, "it is no longer published")
        if self._pair is None:
            await anyio.to_thread.run_sync(self._start)
        try:
            with anyio.fail_after(PATIENCE):
                return await self._ask(prefix)
        except (OSError, anyio.ClosedResourceError):
            if self._process is not None:
                self._process.kill()
            self._let_go()
            raise

    async def _ask(self, prefix: str) -> socket.socket | OSError:
        """What the deputy answers. Raises `OSError` if it does not."""
        assert self._pair is not None
        self._number = (self._number + 1) % 2**32
        self._pair.send(_NUMBER.pack(self._number) + prefix.encode())
        while True:
            await anyio.wait_readable(self._pair)
            data, descriptors, _, _ = socket.recv_fds(self._pair, _ANSWER.size, 1)
            if len(data) < _ANSWER.size:
                raise ConnectionResetError
            connected = socket.socket(fileno=descriptors[0]) if descriptors else None
            number, failure = _ANSWER.unpack(data)
            if number != self._number:  # of somebody who no longer waited
                if connected is not None:
                    connected.close()
                continue
            if connected is None:
                return OSError(failure, errno_text(failure))
            connected.setblocking(False)
            return connected

    def _start(self) -> None:
        if len(self._ended) >= MOST_STUCK:
            raise OSError(errno.EAGAIN, "nothing answers there")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pair = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "overlay.node.deputy", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={name: value for name, value in os.environ.items() if not name.startswith("OVERLAY_")},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # if it has died, it does not answer
            pipe.write(msgspec.json.encode(self._order))
        ours.setblocking(False)

    def _let_go(self) -> None:
        pair, self._pair = self._pair, None
        if pair is not None:
            anyio.notify_closing(pair)
            pair.close()
        process, self._process = self._process, None
        if process is not None:
            self._ended.append(process)
        self._ended = [each for each in self._ended if each.poll() is None]

    def _see_them_end(self) -> None:
        for process in self._ended:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answer(pair: socket.socket, number: int, opened: socket.socket | OSError) -> None:
    """The deputy's answer; closes what was opened, which the daemon has then."""
    if isinstance(opened, OSError):
        pair.send(_ANSWER.pack(number, opened.errno or errno.EIO))
        return
    with opened:
        socket.send_fds(pair, [_ANSWER.pack(number, 0)], [opened.fileno()])


def connect_unix(path: str) -> socket.socket:
    """Does not wait: a service whose queue is full is `BlockingIOError`. Raises `OSError`."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connecting.connect(path)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _open_sockets(pair: socket.socket, path: str) -> None:
    while request := pair.recv(_LARGEST_REQUEST):
        opened: socket.socket | OSError
        try:
            opened = connect_unix(path)
        except OSError as error:
            opened = error
        _answer(pair, _NUMBER.unpack_from(request)[0], opened)


async def _serve_folder(pair: socket.socket, order: Order) -> None:
    from overlay.node.folder import FolderServer

    server = FolderServer(order.path, listing=order.listing)
    become(order.owner)  # all is loaded: our own files may be closed to this user
    pair.setblocking(False)
    while True:
        await anyio.wait_readable(pair)
        request = pair.recv(_LARGEST_REQUEST)
        if not request:
            return
        opened: socket.socket | OSError
        try:
            opened = await server.connect(request[_NUMBER.size :].decode())
        except OSError as error:
            opened = error
        _answer(pair, _NUMBER.unpack_from(request)[0], opened)


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon's end is ours, and no other
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    with socket.socket(fileno=descriptor) as pair:
        if order.kind == "folder":
            anyio.run(_serve_folder, pair, order)
        else:
            become(order.owner)
            _open_sockets(pair, order.path)


if __name__ == "__main__":
    main(int(sys.argv[1]))
