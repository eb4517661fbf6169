"""Captures of one engine: taps and the streams that they become. Knows the local API's stream; looks into no packet.

The engine's tap is bounded, and so is what is taken of it at a time: who reads slowly loses packets, counted, and
costs neither the engine nor this daemon's memory more than that.
"""

import asyncio
import math
import secrets
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

import anyio

from overlay.daemon.capture import CaptureWish, Counts, Host, Inner, Outer, Started, encode
from overlay.daemon.localapi import Write
from overlay.engine.api import Command, StartTap, StopTap
from overlay.engine.tap import MAX_BYTES, InnerPacket, OuterRun, Tap
from overlay.errors import UserError
from overlay.wire.control.messages import MapNode
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import blank_tickets

MAX_CAPTURES: Final = 4
"""At once: each holds some MiB when its reader is slow, and costs the engine a copy of each packet."""

CHUNK: Final = 1 << 17
"""Bytes taken and written at a time: some 0.1 ms of the interpreter, which the engine may have to wait for."""

PAUSE: Final = 0.05
"""s at least from one look at a tap to the next: a look costs half a millisecond, and ten packets cost little more."""

SHARE: Final = 0.1
"""Of one processor: what one capture may cost this thread, since the engine has to share the interpreter with it. That
is enough for some 60 MB/s of superpackets, or 20,000 small packets a second; the tap drops the rest."""

ENGINE_TIMEOUT: Final = 1.0
"""s that the engine may take to start or stop a tap; its loop turns in milliseconds."""

ADDRESS_LIFE: Final = 1.0
"""s that our own address towards another is taken as known: routes change, and asking costs 15 µs."""


class Captures:
    """The captures that run. For the event loop's thread."""

    def __init__(self, post: Callable[..., None]) -> None:
        """`post`: commands to the engine."""
        self._post: Callable[[Command], None] = post
        self._running: dict[str, Capture] = {}

    def new(self, wish: CaptureWish, interface: str | None, port: int, nodes: Collection[MapNode]) -> "Capture":
        """One to run. `nodes`: those whose names are known. Raises `UserError`: "no-interface", "too-many-captures"."""
        if interface is None and not wish.outer:
            raise UserError(
                "no-interface",
                "This daemon has no network interface, so that it has no inner packets.",
                "With --outer the messages on the wire are shown.",
            )
        if len(self._running) >= MAX_CAPTURES:
            raise UserError(
                "too-many-captures",
                f"{MAX_CAPTURES} captures are running already, which is as many as may.",
                "End one of them first.",
            )
        started = Started(
            id=secrets.token_hex(8),
            interface=interface,
            port=port,
            names={address: node.name for node in nodes for address in node.addresses},
            numbers={node.number: node.name for node in nodes},
        )
        return Capture(wish, started, self._post, self._running)

    def stop(self, id: str) -> None:
        """Have it end in order; one that has ended has."""
        capture = self._running.get(id)
        if capture is not None:
            capture.stop()

    async def close(self) -> None:
        """The engine is about to end: have all end in order, as far as their readers let them."""
        running = list(self._running.values())
        for capture in running:
            capture.stop()
        with anyio.move_on_after(ENGINE_TIMEOUT):
            for capture in running:
                await capture.ended.wait()


class Capture:
    """One capture; `run` it once."""

    def __init__(
        self, wish: CaptureWish, started: Started, post: Callable[[Command], None], running: "dict[str, Capture]"
    ) -> None:
        self.ended = anyio.Event()
        self._wish = wish
        self._started = started
        self._post = post
        self._running = running
        self._waiting = anyio.Event()
        self._stopping = anyio.Event()
        self._addresses: dict[str, str] = {}  # other end's → our own
        self._addresses_until = -math.inf

    def stop(self) -> None:
        self._stopping.set()
        self._waiting.set()

    async def run(self, write: Write) -> None:
        """Write the stream until `stop`, or until cancelled."""
        loop = asyncio.get_running_loop()

        def hand_over(function: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(function)

        wish = self._wish
        # Looked up at each call: `_waiting` is a new event each time.
        tap = Tap(
            lambda: hand_over(self._wake),
            number=wish.peer,
            inner=self._started.interface is not None,
            outer=wish.outer,
            snaplen=wish.snaplen,
        )
        self._running[self._started.id] = self
        try:
            started = anyio.Event()
            self._post(StartTap(tap, lambda: hand_over(started.set)))
            with anyio.move_on_after(ENGINE_TIMEOUT):
                await started.wait()
            await write(encode([self._started]))
            while not self._stopping.is_set():
                await self._waiting.wait()
                self._waiting = anyio.Event()
                before = time.thread_time()
                if await self._pass_on(tap, write):
                    self._waiting.set()
                # The work of others between our writes counts as ours: then the daemon is busy enough.
                spent = time.thread_time() - before
                with anyio.move_on_after(max(PAUSE, spent / SHARE - spent)):
                    await self._stopping.wait()
            stopped = anyio.Event()
            self._post(StopTap(tap, lambda: hand_over(stopped.set)))
            with anyio.move_on_after(ENGINE_TIMEOUT):
                await stopped.wait()
            while await self._pass_on(tap, write):
                pass
        finally:
            del self._running[self._started.id]
            self._post(StopTap(tap))
            self.ended.set()

    def _wake(self) -> None:
        self._waiting.set()

    async def _pass_on(self, tap: Tap, write: Write) -> bool:
        """Write what waits, a full tap's worth at most, and the counts. Returns whether there was more."""
        if time.monotonic() >= self._addresses_until:
            self._addresses.clear()
            self._addresses_until = time.monotonic() + ADDRESS_LIFE
        passed = 0
        while True:
            items = tap.take(CHUNK)
            chunk = encode([*map(self._message, items), Counts(*tap.counts)])
            await write(chunk)
            passed += len(chunk)
            if not tap.waiting or passed >= MAX_BYTES:
                return tap.waiting

    def _message(self, item: InnerPacket | OuterRun) -> Inner | Outer:
        if isinstance(item, InnerPacket):
            return Inner(*item)
        data = blank_tickets(item.data, item.segment)
        return Outer(item.time, item.outbound, self._local(item), item.endpoint, item.segment, data)

    def _local(self, item: OuterRun) -> Host:
        """Where our datagrams come from. The engine's sockets are bound to no address: the routes say."""
        host = item.endpoint[0]
        address = self._addresses.get(host)
        if address is None:
            address = self._addresses[host] = _own_address(item.endpoint)
        return address, item.port


def _own_address(remote: Endpoint) -> str:
    """By asking the kernel's routes; nothing is sent."""
    ipv6 = ":" in remote[0]
    try:
        with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(remote)
            return str(probe.getsockname()[0])
    except OSError:
        return "::" if ipv6 else "0.0.0.0"
