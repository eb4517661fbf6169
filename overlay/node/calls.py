"""The node's end of dynamic tunnels: it connects where the server asks, shows the token, and waits to be used."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.carrier.carriers import CarrierStream
from overlay.carrier.port import TOKEN, TOKEN_SIZE, Stream
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_client import SharedLines
from overlay.carrier.streams import OverTcp
from overlay.carrier.watch import watch
from overlay.errors import RemoteProtocolError
from overlay.wire.control.messages import Supply, TunnelCarrier

START_SIZE: Final = 8  # bytes: the exposure's number, big-endian
DIAL_TIMEOUT: Final = 5.0  # s; half of what a user waits
MOST_CALLS: Final = 2048  # at once, used or not
MOST_DIALLING: Final = 64  # that have not shown their token yet: the server turns a crowd of one address away

_log = logging.getLogger(__name__)

Dial = Callable[[TunnelCarrier, bytes], Awaitable[CarrierStream]]
"""Connects to the server by a carrier whose certificate has this pin. Raises `OSError`, `RemoteProtocolError`."""
Serve = Callable[[str, Stream], Awaitable[None]]
"""Serves a user of the exposure of this id, and closes the stream."""


ServeNow = Callable[[str, OverTcp, Callable[[], object]], bool]
"""The same at once, if nothing has to be waited for; calls the function when the stream is closed. → whether so"""


class Calls:
    """`run` while there are exposures to serve."""

    def __init__(
        self, dial: Dial, serve: Serve, drops: Counter[str], serve_now: ServeNow = lambda name, stream, ended: False
    ) -> None:
        self._dial = dial
        self._serve = serve
        self._serve_now = serve_now
        self._drops = drops
        self._waiting: set[_Waiting] = set()
        self._tasks: TaskGroup | None = None
        self._count = 0
        self._dialling = anyio.Semaphore(MOST_DIALLING)
        self._lines = SharedLines()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Signals `started` once calls can be made."""
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._tasks = None
            self._lines.close()
            for waiting in tuple(self._waiting):
                waiting.stop()
                self._end(waiting.stream)

    def supply(self, wish: Supply) -> None:
        """The server wants connections."""
        for token in wish.tokens:
            if self._tasks is None or self._count >= MOST_CALLS or len(token) != TOKEN_SIZE:
                self._drops["call_refused"] += 1
                continue
            self._count += 1
            self._tasks.start_soon(self._call, wish.carrier, token, wish.pin)

    async def _open(self, carrier: TunnelCarrier, pin: bytes) -> CarrierStream:
        if carrier == "udp":
            return await self._lines.open(pin, lambda: self._dial(carrier, pin))
        return await self._dial(carrier, pin)

    async def _call(self, carrier: TunnelCarrier, token: bytes, pin: bytes) -> None:
        stream: CarrierStream | None = None
        waits = False
        try:
            async with self._dialling:
                with anyio.fail_after(DIAL_TIMEOUT):
                    stream = await self._open(carrier, pin)
                    await stream.send(TOKEN + token)
            if isinstance(stream, OverTcp):
                self._waiting.add(_Waiting(stream, self._begun))
                waits = True
            elif isinstance(stream, QuicStream):
                stream.keep_alive()
                await self._use(stream, b"")
        except (OSError, TimeoutError, RemoteProtocolError) as error:
            self._drops["call_failed"] += 1
            _log.debug("the server is not reached by %s for a user: %s", carrier, error)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the server did not need it
        finally:
            if not waits:
                self._end(stream)

    def _end(self, stream: CarrierStream | None) -> None:
        self._count -= 1
        if stream is not None:
            stream.close()

    def _begun(self, waiting: "_Waiting", start: bytes | None) -> None:
        """The server says which exposure it is for: `start`, or a part of that; None: it does not need it."""
        stream = waiting.stream
        self._waiting.discard(waiting)
        if start is None or self._tasks is None:
            self._end(stream)
        elif len(start) < START_SIZE or not self._serve_now(_exposure(start), stream, partial(self._end, None)):
            self._tasks.start_soon(self._use_and_close, stream, start)

    async def _use_and_close(self, stream: OverTcp, start: bytes) -> None:
        try:
            await self._use(stream, start)
        except (OSError, RemoteProtocolError) as error:  # one user's trouble
            self._drops["call_failed"] += 1
            _log.debug("a user is not served: %s", error)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        finally:
            self._end(stream)

    async def _use(self, stream: Stream, start: bytes) -> None:
        while len(start) < START_SIZE:
            start += await stream.receive(START_SIZE - len(start))
        await self._serve(_exposure(start), stream)


def _exposure(start: bytes) -> str:
    return f"x{int.from_bytes(start, 'big')}"


class _Waiting:
    """A connection that waits to be used: a descriptor and a callback, no task."""

    __slots__ = ("_begun", "_number", "_watch", "stream")

    def __init__(self, stream: OverTcp, begun: Callable[["_Waiting", bytes | None], None]) -> None:
        """`begun` is called once, with what has come, or None: the end of it."""
        self.stream = stream
        self._begun = begun
        self._number = stream.unwatched().fileno()
        self._watch = watch()
        self._watch.add_reader(self._number, self._heard)

    def stop(self) -> None:
        self._watch.remove_reader(self._number)

    def _heard(self) -> None:
        start: bytes | None = None
        try:
            start = self.stream.receive_now(START_SIZE)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        else:
            if start is None:
                return
        self.stop()
        self._begun(self, start)
