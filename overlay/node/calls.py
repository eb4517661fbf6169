"""The node's end of dynamic tunnels: it connects where the server asks, shows the token, and waits to be used."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from overlay.carrier.carriers import CarrierStream
from overlay.carrier.port import TOKEN, TOKEN_SIZE, Stream
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_client import SharedLines
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


class Calls:
    """`run` while there are exposures to serve."""

    def __init__(self, dial: Dial, serve: Serve, drops: Counter[str]) -> None:
        self._dial = dial
        self._serve = serve
        self._drops = drops
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
        try:
            async with self._dialling:
                with anyio.fail_after(DIAL_TIMEOUT):
                    stream = await self._open(carrier, pin)
                    await stream.send(TOKEN + token)
            if isinstance(stream, QuicStream):
                stream.keep_alive()
            start = b""
            while len(start) < START_SIZE:
                start += await stream.receive(START_SIZE - len(start))
            assert isinstance(stream, Stream)
            await self._serve(f"x{int.from_bytes(start, 'big')}", stream)
        except (OSError, TimeoutError, RemoteProtocolError) as error:
            self._drops["call_failed"] += 1
            _log.debug("the server is not reached by %s for a user: %s", carrier, error)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the server did not need it
        finally:
            self._count -= 1
            if stream is not None:
                stream.close()
