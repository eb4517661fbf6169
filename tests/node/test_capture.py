"""Captures over an engine that a test plays: what is streamed, when it ends, what a slow reader costs, and secrets."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from overlay.daemon.capture import CaptureMessage, CaptureReader, CaptureWish, Counts, Inner, Outer, Started
from overlay.engine.api import Command, StartTap, StopTap
from overlay.engine.tap import MAX_PACKETS, Tap
from overlay.errors import UserError
from overlay.node.capture import MAX_CAPTURES, Capture, Captures
from overlay.wire.control.messages import MapNode
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.relay import pack_header

NODES = (
    MapNode(number=1, name="server", key=bytes(32), addresses=("10.77.0.1",)),
    MapNode(number=3, name="b", key=bytes(32), addresses=("10.77.0.3", "fd12::3")),
)
LOOPBACK = ("127.0.0.1", 41641)


class PlayedEngine:
    """Keeps the taps that are on."""

    def __init__(self) -> None:
        self.taps: list[Tap] = []

    def post(self, *commands: Command) -> None:
        for command in commands:
            if isinstance(command, StartTap):
                self.taps.append(command.tap)
                command.started()
            elif isinstance(command, StopTap):
                self.taps = [tap for tap in self.taps if tap is not command.tap]
                command.stopped()


class Reader:
    """Who reads a capture; takes nothing while `blocked`."""

    def __init__(self) -> None:
        self.messages: list[CaptureMessage] = []
        self.may_read = anyio.Event()
        self.may_read.set()
        self._reader = CaptureReader()
        self._changed = anyio.Event()

    async def write(self, data: bytes | bytearray) -> None:
        await self.may_read.wait()
        self.messages += self._reader.feed(data)
        self._changed.set()

    async def until(self, kind: type[Any], count: int = 1) -> list[Any]:
        with anyio.fail_after(10):
            while len(found := [each for each in self.messages if isinstance(each, kind)]) < count:
                self._changed = anyio.Event()
                await self._changed.wait()
        return found


class Setup:
    def __init__(self) -> None:
        self.engine = PlayedEngine()
        self.captures = Captures(self.engine.post)
        self.reader = Reader()

    def new(self, interface: str | None = "overlay0", **wish: Any) -> Capture:
        return self.captures.new(CaptureWish(**wish), interface, 41641, NODES)


@asynccontextmanager
async def running(**wish: Any) -> AsyncIterator[tuple[Setup, Tap, Capture]]:
    setup = Setup()
    capture = setup.new(**wish)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(capture.run, setup.reader.write)
        await setup.reader.until(Started)
        yield setup, setup.engine.taps[0], capture
        tasks.cancel_scope.cancel()
    assert setup.engine.taps == [], "the engine's tap is off, however the capture ended"


def kinds(messages: Sequence[CaptureMessage]) -> list[type]:
    return [type(message) for message in messages if not isinstance(message, Counts)]


def test_packets_and_names_are_streamed() -> None:
    async def main() -> None:
        async with running(peer=3, outer=True, snaplen=100) as (setup, tap, _):
            assert (tap.number, tap.inner, tap.outer) == (3, True, True)
            tap.put_inner(NO_OFFLOAD + b"packet", True)
            tap.put_outer([b"\x05" + bytes(40)], 0, 41641, LOOPBACK, False)
            (inner,) = await setup.reader.until(Inner)
            (outer,) = await setup.reader.until(Outer)
            (started,) = await setup.reader.until(Started)
            assert (inner.data, inner.size, inner.outbound) == (NO_OFFLOAD + b"packet", 6, True)
            assert (outer.local, outer.remote, outer.segment) == (LOOPBACK, LOOPBACK, 41)
            assert (started.interface, started.port) == ("overlay0", 41641)
            assert started.names["fd12::3"] == "b" and started.numbers[1] == "server"

    anyio.run(main)


def test_what_was_captured_before_the_stop_arrives_and_is_counted() -> None:
    async def main() -> None:
        async with running() as (setup, tap, capture):
            for _ in range(500):
                tap.put_inner(NO_OFFLOAD + bytes(50_000), True)
            setup.captures.stop(setup.reader.messages[0].id)  # type: ignore[union-attr]
            await capture.ended.wait()
            counts = setup.reader.messages[-1]
            assert isinstance(counts, Counts)
            assert counts.inner_seen == 500 and counts.inner_dropped > 0
            assert kinds(setup.reader.messages).count(Inner) == 500 - counts.inner_dropped

    anyio.run(main)


def test_a_slow_reader_loses_packets_and_nothing_grows() -> None:
    async def main() -> None:
        async with running() as (setup, tap, capture):
            setup.reader.may_read = anyio.Event()
            for _ in range(3 * MAX_PACKETS):
                tap.put_inner(NO_OFFLOAD, True)
                await anyio.lowlevel.checkpoint()
            assert tap.counts.inner_dropped >= MAX_PACKETS
            setup.reader.may_read.set()
            capture.stop()
            await capture.ended.wait()
            counts = setup.reader.messages[-1]
            assert isinstance(counts, Counts)
            assert kinds(setup.reader.messages).count(Inner) == counts.inner_seen - counts.inner_dropped

    anyio.run(main)


def test_tickets_leave_the_daemon_blank() -> None:
    ticket = 0x1122334455667788
    secret = ticket.to_bytes(8, "little")

    async def main() -> None:
        async with running(outer=True) as (setup, tap, _):
            tap.put_outer([pack_header(3, ticket) + b"\x05" + bytes(30)], 0, 41641, LOOPBACK, True)
            tap.put_outer([(pack_header(3, ticket) + b"\x05" + bytes(30)) * 3], 47, 41641, LOOPBACK, False)
            for outer in await setup.reader.until(Outer, 2):
                assert secret not in outer.data and pack_header(3, 0) in outer.data

    anyio.run(main)


def test_a_route_that_is_not_there_leaves_the_address_open() -> None:
    async def main() -> None:
        async with running(outer=True) as (setup, tap, _):
            tap.put_outer([b"\x07"], 0, 443, ("not an address", 1), True)
            tap.put_outer([b"\x07"], 0, 443, ("fe80::1%none", 1), True)
            first, second = await setup.reader.until(Outer, 2)
            assert (first.local[0], second.local[0]) == ("0.0.0.0", "::")

    anyio.run(main)


def test_without_an_interface_there_are_outer_messages_alone() -> None:
    async def main() -> None:
        setup = Setup()
        with pytest.raises(UserError) as caught:
            setup.new(interface=None)
        assert caught.value.code == "no-interface"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setup.new(interface=None, outer=True).run, setup.reader.write)
            await setup.reader.until(Started)
            assert not setup.engine.taps[0].inner
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_only_so_many_at_once_and_all_end_with_the_engine() -> None:
    async def main() -> None:
        setup = Setup()
        async with anyio.create_task_group() as tasks:
            for _ in range(MAX_CAPTURES):
                tasks.start_soon(setup.new().run, setup.reader.write)
            await setup.reader.until(Started, MAX_CAPTURES)
            with pytest.raises(UserError) as caught:
                setup.new()
            assert caught.value.code == "too-many-captures"
            await setup.captures.close()
        assert setup.engine.taps == []
        setup.new()
        setup.captures.stop("unknown")

    anyio.run(main)


def test_a_reader_that_hangs_does_not_hold_up_the_end() -> None:
    async def main() -> None:
        async with running() as (setup, tap, _):
            setup.reader.may_read = anyio.Event()
            tap.put_inner(NO_OFFLOAD, True)
            with anyio.fail_after(10):
                await setup.captures.close()

    anyio.run(main)
