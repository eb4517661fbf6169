"""Data links: when one is wanted, in virtual time; and dialling, attaching and handing over, over real sockets."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.carriers import CarrierName
from overlay.carrier.dialling import find_server
from overlay.carrier.openers import OPENERS
from overlay.carrier.tcp import ControlConnection, serve
from overlay.engine.api import AddLink, Command, LinkLost, RelayChanged, RemoveLink
from overlay.node.links import KEPT, LINK_HOST, UNDECIDED, DataLinks, LinkWish
from overlay.wire.control.messages import Attach, Attached, Refused
from overlay.wire.wireguard.primitives import clamp, public_key

SERVER, NODE = clamp(bytes(range(32))), clamp(bytes(range(32, 64)))
UDP = RelayChanged(("192.0.2.1", 443), suspect=False)
SUSPECT = RelayChanged(("192.0.2.1", 443), suspect=True)
NOWHERE = RelayChanged(None, suspect=False)
BY_LINK = RelayChanged((LINK_HOST, 1), suspect=False)


# when ----------------------------------------------------------------------------------------------------------------


def test_udp_that_works_needs_no_link() -> None:
    wish = LinkWish(0.0, udp=True)
    assert not wish.wanted(0.0)
    wish.relay_changed(NOWHERE, 0.1)
    assert wish.next_timeout() == UNDECIDED
    wish.relay_changed(UDP, 0.5)
    assert not wish.wanted(1000.0)
    assert wish.next_timeout() is None


def test_udp_that_is_not_heard_of_is_not_waited_for() -> None:
    wish = LinkWish(0.0, udp=True)
    assert not wish.wanted(UNDECIDED - 0.01)
    assert wish.wanted(UNDECIDED)


def test_udp_that_was_tried_in_vain_is_not_waited_for_but_looked_for() -> None:
    wish = LinkWish(0.0, udp=True, in_vain=True)
    assert wish.wanted(0.0)
    wish.relay_changed(BY_LINK, 0.1)
    assert wish.wanted(1000.0)
    wish.relay_changed(UDP, 1000.0)
    assert wish.wanted(1000.0 + KEPT - 0.01) and not wish.wanted(1000.0 + KEPT)


@pytest.mark.parametrize("change", [NOWHERE, SUSPECT])
def test_udp_that_stops_working_brings_a_link_at_once(change: RelayChanged) -> None:
    wish = LinkWish(0.0, udp=True)
    wish.relay_changed(UDP, 0.5)
    wish.relay_changed(change, 100.0)
    assert wish.wanted(100.0)
    wish.relay_changed(BY_LINK, 101.0)
    assert wish.wanted(1000.0)


def test_a_link_is_kept_until_udp_has_lasted() -> None:
    wish = LinkWish(0.0, udp=True)
    wish.relay_changed(BY_LINK, 1.0)
    wish.relay_changed(NOWHERE, 2.0)
    wish.relay_changed(UDP, 10.0)
    wish.relay_changed(UDP, 20.0)
    assert wish.next_timeout() == 10.0 + KEPT
    assert wish.wanted(10.0 + KEPT - 1)
    wish.relay_changed(SUSPECT, 10.0 + KEPT - 1)
    wish.relay_changed(UDP, 80.0)
    assert wish.wanted(10.0 + KEPT)
    assert not wish.wanted(80.0 + KEPT)


@given(st.lists(st.tuples(st.sampled_from([UDP, SUSPECT, NOWHERE, BY_LINK]), st.floats(0.0, 100.0)), max_size=30))
def test_without_udp_a_link_is_always_wanted(changes: list[tuple[RelayChanged, float]]) -> None:
    wish, now = LinkWish(0.0, udp=False), 0.0
    for change, pause in changes:
        now += pause
        wish.relay_changed(change, now)
        assert wish.wanted(now)
        assert wish.next_timeout() is None


# how -----------------------------------------------------------------------------------------------------------------


class Rig:
    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.dialled: list[tuple[CarrierName, ...]] = []
        self.refused = False
        self.port = 0
        self._changed = anyio.Event()

    def post(self, command: Command) -> None:
        self.commands.append(command)
        self._changed.set()
        self._changed = anyio.Event()

    async def dial(self, carriers: Sequence[CarrierName]) -> ControlConnection:
        self.dialled.append(tuple(carriers))
        openers = dict.fromkeys(carriers, OPENERS["tcp"])  # the carrier itself is another test's
        address = f"127.0.0.1:{self.port}"
        found = await find_server([address], public_key(SERVER), NODE, carriers=carriers, openers=openers)
        return found.connection

    async def until(self, count: int) -> Command:
        with anyio.fail_after(5):
            while len(self.commands) < count:
                await self._changed.wait()
        return self.commands[count - 1]

    async def serve(self, connection: ControlConnection) -> None:
        assert isinstance(await connection.receive(), Attach)
        if self.refused:
            self.refused = False
            await connection.send(Refused(code="busy", message="Later.", final=False))
            return
        await connection.send(Attached())
        detached = await connection.detach()
        assert detached is not None
        with detached.socket:
            await anyio.wait_readable(detached.socket)


@asynccontextmanager
async def rigged(*, udp: bool) -> AsyncIterator[tuple[Rig, DataLinks]]:
    rig = Rig()
    carriers: tuple[CarrierName, ...] = ("tls", "tcp")
    links = DataLinks(rig.dial, lambda: carriers, rig.post, udp=udp, uniform=lambda low, high: 0.0)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        rig.port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, listener, SERVER, rig.serve)
            tasks.start_soon(links.run)
            try:
                yield rig, links
            finally:
                for command in rig.commands:
                    if isinstance(command, AddLink):
                        command.handed.socket.close()
                tasks.cancel_scope.cancel()


def test_a_link_is_dialled_attached_and_handed_over() -> None:
    async def main() -> None:
        async with rigged(udp=False) as (rig, links):
            added = await rig.until(1)
            assert isinstance(added, AddLink)
            assert (added.number, added.client, added.carrier) == (1, None, "tls")
            assert links.carrier == "tls" and not links.in_use
            links.relay_changed(RelayChanged((LINK_HOST, 1), suspect=False))
            assert links.in_use

    anyio.run(main)


def test_what_the_engine_said_before_counts() -> None:
    async def main() -> None:
        links = DataLinks(Rig().dial, tuple, Rig().post, udp=True)
        links.relay_changed(UDP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(links.run)
            await anyio.wait_all_tasks_blocked()
            assert links._wish is not None and links._wish.next_timeout() is None
            assert not links._wish.wanted(anyio.current_time() + 2 * UNDECIDED)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_lost_link_is_replaced_by_another_carrier() -> None:
    async def main() -> None:
        async with rigged(udp=False) as (rig, links):
            await rig.until(1)
            links.link_lost(LinkLost(7, "of another time"))
            links.link_lost(LinkLost(1, "silent"))
            assert links.carrier is None
            added = await rig.until(2)
            assert isinstance(added, AddLink)
            assert (added.number, added.carrier) == (2, "tcp")
            assert rig.dialled == [("tls", "tcp"), ("tcp", "tls")]

    anyio.run(main)


def test_a_refusal_is_tried_again() -> None:
    async def main() -> None:
        async with rigged(udp=True) as (rig, links):
            rig.refused = True
            links.relay_changed(RelayChanged(None, suspect=True))
            assert isinstance(await rig.until(1), AddLink)
            assert len(rig.dialled) == 2

    anyio.run(main)


def test_a_link_is_given_up_when_udp_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.node.links.KEPT", 0.0)

    async def main() -> None:
        async with rigged(udp=True) as (rig, links):
            links.relay_changed(RelayChanged(None, suspect=True))
            await rig.until(1)
            links.relay_changed(UDP)
            assert await rig.until(2) == RemoveLink(1)
            assert links.carrier is None
            links.relay_changed(SUSPECT)
            added = await rig.until(3)
            assert isinstance(added, AddLink) and added.number == 2

    anyio.run(main)


def test_backoff_spreads() -> None:
    links = DataLinks(Rig().dial, tuple, Rig().post, udp=True, uniform=random.Random(1).uniform)
    pauses = [links._backoff.next() for _ in range(40)]
    assert max(pauses) <= 5.0 and len(set(pauses)) == 40
