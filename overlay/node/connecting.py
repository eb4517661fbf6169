"""A local port that leads to a peer's private exposure, through the overlay, or through the server where one of the two
machines is not in it. Runs in the process of who asked for it.

The server has the exposing node let this one in for a while, and is asked again before that ends. What cannot be
reached is asked for anew at once: the exposing node may have got another port, or have forgotten us.
"""

import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from overlay.carrier.flows import UdpFlows
from overlay.carrier.forward import forward_streams
from overlay.carrier.outlets import Outlet, SocketOutlet, StreamOutlet
from overlay.carrier.port import Stream
from overlay.carrier.reached import wait_reached
from overlay.carrier.stream import TcpStream, connect, reset_on_close
from overlay.carrier.streams import OverTcp
from overlay.errors import Exit, UserError
from overlay.node.by_server import open_by_server
from overlay.wire.control.messages import ByServer, Connected
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

CONNECT_TIMEOUT: Final = 10.0  # s; three SYNs
MOST_CONNECTIONS: Final = 1024
RENEWAL: Final = (
    60.0  # s between two times that the server is asked: an exposing node that started anew has forgotten us
)
RETRY: Final = 5.0  # s until the server is asked again that was not reached
_BACKLOG: Final = 128
_ACCEPT_PAUSE: Final = 0.1  # s, when the system has no descriptor left
_FINAL: Final = frozenset(("private-unknown", "no-permission"))
_log = logging.getLogger(__name__)

Ask = Callable[[], Awaitable[Connected]]
"""Has this node let in. Raises `UserError`."""


def bind_local(endpoint: Endpoint, *, datagrams: bool) -> socket.socket:
    """Port 0 picks one. Raises `UserError` ("port-taken", "port-permission", "listen-failed")."""
    where = format_endpoint(endpoint)
    bound = socket.socket(
        socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET,
        (socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        if not datagrams:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        bound.bind(endpoint)
        if not datagrams:
            bound.listen(_BACKLOG)
    except PermissionError as error:
        bound.close()
        raise UserError(
            "port-permission", f"You may not listen at {where}.", "Choose a port from 1024 on.", Exit.REFUSED
        ) from error
    except OSError as error:
        bound.close()
        raise UserError(
            "listen-failed", f"Cannot listen at {where}: {error.strerror}.", "Name another place with --listen."
        ) from error
    return bound


def parse_listen(text: str) -> Endpoint:
    """`5432`, `127.0.0.1:5432`, `localhost:5432`; "": any port of this machine. Raises `UserError`
    ("listen-invalid")."""
    if not text:
        return "127.0.0.1", 0
    if text.isascii() and text.isdigit():
        text = f"127.0.0.1:{text}"
    try:
        return parse_endpoint(text.replace("localhost:", "127.0.0.1:"))
    except ValueError as error:
        raise UserError(
            "listen-invalid", f"--listen: {error}.", "Write a port, or as in 127.0.0.1:5432.", Exit.USAGE
        ) from error


@dataclass(frozen=True, slots=True)
class Opened:
    """A local port that leads there, once `run` is called."""

    listen: str  # where
    node: str  # to whose exposure
    protocol: Literal["tcp", "udp"]
    run: Callable[[], Coroutine[Any, Any, None]]


def open_local(listen: Endpoint, ask: Callable[[], dict[str, Any]]) -> Opened:
    """`ask`: has this node let in, by the local API, and blocks meanwhile. Raises `UserError`."""
    first = msgspec.convert(ask(), Connected)
    bound = bind_local(listen, datagrams=first.datagrams)

    async def ask_again() -> Connected:
        return msgspec.convert(await anyio.to_thread.run_sync(ask), Connected)

    where = format_endpoint(bound.getsockname()[:2])
    protocol: Literal["tcp", "udp"] = "udp" if first.datagrams else "tcp"
    return Opened(where, first.node, protocol, Connecting(bound, first, ask_again).run)


class Connecting:
    """Owns `bound`, as `bind_local` makes it."""

    def __init__(self, bound: socket.socket, first: Connected, ask: Ask) -> None:
        self.drops: Counter[str] = Counter()
        self.trouble = ""  # why it was not reached the last time; "": it was
        self._bound = bound
        self._now = first
        self._ask = ask
        self._connections = 0
        self._flows: UdpFlows | None = None
        self._asked = 0  # so many times
        self._asking = anyio.Lock()

    @property
    def connections(self) -> int:
        """Open now; of datagrams: flows."""
        return self._connections if self._flows is None else self._flows.count

    async def run(self) -> None:
        """Forward until cancelled. Raises `UserError` when this node may not reach it any more."""
        failure: UserError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forward_all, tasks)
                try:
                    await self._stay_let_in()
                except UserError as error:
                    failure = error  # out of the group as it is
                tasks.cancel_scope.cancel()
        finally:
            self.close()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Where it does not run."""
        self._bound.close()

    async def _stay_let_in(self) -> None:
        pause = RENEWAL
        while True:
            await anyio.sleep(pause)
            pause = RENEWAL
            try:
                async with self._asking:
                    await self._ask_now()
            except UserError as error:
                if error.code in _FINAL:
                    raise
                _log.info("%s", error)
                pause = RETRY

    async def _ask_anew(self, times: int) -> bool:
        """`times`: as often the server had been asked when it failed. → whether it has let this node in since."""
        async with self._asking:
            if self._asked == times:
                try:
                    await self._ask_now()
                except UserError as error:
                    _log.warning("%s", error)
                    return False
            return True

    async def _ask_now(self) -> None:
        self._now = await self._ask()
        self._asked += 1

    @property
    def _endpoint(self) -> Endpoint:
        return (self._now.address, self._now.port)

    def _outlet(self) -> Outlet | None:
        way = self._now.by_server
        if way is None:
            return SocketOutlet.open(lambda: self._endpoint, self.drops)
        return StreamOutlet(partial(self._open_for_datagrams, way), self.drops)

    async def _open_for_datagrams(self, way: ByServer) -> Stream:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                return await open_by_server(way)
        except OSError as error:
            self.drops["not_reached"] += 1
            raise anyio.BrokenResourceError(str(error)) from error

    async def _forward_all(self, tasks: TaskGroup) -> None:
        if self._now.datagrams:
            self._flows = UdpFlows(
                self._bound,
                lambda source, local: self._outlet(),
                drops=self.drops,
            )
            await self._flows.run()
            return
        while True:
            try:
                accepted, _ = self._bound.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._bound)
                continue
            except OSError as error:
                _log.debug("cannot accept a connection: %s", error)
                await anyio.sleep(_ACCEPT_PAUSE)
                continue
            if self._connections >= MOST_CONNECTIONS:
                self.drops["too_many_users"] += 1
                reset_on_close(accepted)
                accepted.close()
                await anyio.lowlevel.checkpoint()
                continue
            self._connections += 1
            tasks.start_soon(self._forward, accepted)

    async def _forward(self, accepted: socket.socket) -> None:
        try:
            with accepted:
                inside = await self._open()
                if inside is None:
                    reset_on_close(accepted)
                    return
                await forward_streams(TcpStream(accepted), inside)
        finally:
            self._connections -= 1

    async def _open(self) -> OverTcp | None:
        times = self._asked
        stream = await self._try()
        if stream is None and await self._ask_anew(times):
            stream = await self._try()
        return stream

    async def _try(self) -> OverTcp | None:
        stream: OverTcp | None = None
        way = self._now.by_server
        reached = False
        problem = "no answer"
        try:
            with anyio.move_on_after(CONNECT_TIMEOUT):
                stream = await (connect(self._endpoint) if way is None else open_by_server(way))
                reached = await wait_reached(stream)
                problem = "it does not let this machine in, or its target is away"
        except OSError as error:
            problem = str(error)
        finally:
            if stream is not None and not reached:
                stream.close()
        if reached:
            self.trouble = ""
            return stream
        self.drops["not_reached"] += 1
        place = "what is exposed" if way is not None else format_endpoint(self._endpoint)
        trouble = f"{place} on {self._now.node} is not reached: {problem}"
        if trouble != self.trouble:  # programs that go on trying fill no log
            self.trouble = trouble
            _log.warning("%s", trouble)
        return None
