"""The hub: whoever is connected has the map that there is, whatever happens in which order."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.errors import UserError
from overlay.server.hub import VERSION_BLOCK, Hub
from overlay.wire.control.codec import decode_server_message
from overlay.wire.control.messages import MapDelta, MapNode, NetworkMap, Refused, SignedMap
from overlay.wire.control.netmap import Replica, map_key, sign, verify

SEED = b"s" * 32
GONE = Refused(code="removed", message="Removed.")


def node(number: int, name: str = "", online: bool = False) -> MapNode:
    return MapNode(
        number=number,
        name=name or f"n{number}",
        key=bytes([number]) * 32,
        addresses=(f"10.77.0.{number}",),
        online=online,
    )


class Listening:
    """A node's end: applies what it gets, as a node does."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.host = "192.0.2.1"
        self.replica = Replica()
        self.mark = b""
        self.updates: list[NetworkMap | MapDelta] = []
        self.closed: list[Refused | None] = []
        self.news = anyio.Event()

    @property
    def map(self) -> NetworkMap | None:
        return self.replica.current

    async def send(self, messages: Sequence[bytes]) -> None:
        for encoded in messages:
            message = decode_server_message(encoded)
            assert isinstance(message, SignedMap)
            update = verify(message, map_key(SEED))
            self.replica.take(update)
            self.mark = message.mark
            self.updates.append(update)
            self.news.set()

    def close(self, refused: Refused | None) -> None:
        self.closed.append(refused)

    async def next(self) -> NetworkMap:
        with anyio.fail_after(5):
            await self.news.wait()
        self.news = anyio.Event()
        assert self.map is not None
        return self.map


def with_hub(test: Callable[[Hub], Awaitable[None]], *, version: int = 0, debounce: float = 0.0) -> list[int]:
    reserved: list[int] = []

    async def reserve(wanted: int) -> None:
        reserved.append(wanted)

    async def main() -> None:
        hub = Hub(
            network="ab",
            domains=("local.test",),
            networks=("10.77.0.0/16",),
            version=version,
            nodes=[node(1, online=True), node(2)],
            sign=lambda body: sign(body, SEED),
            reserve=reserve,
            on_map=lambda _: None,
            debounce=debounce,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(hub.run)
            await test(hub)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    return reserved


def test_the_whole_map_first_and_then_one_delta_for_many_changes() -> None:
    async def test(hub: Hub) -> None:
        link = Listening(2)
        await hub.connect(link)
        first = await link.next()
        assert isinstance(link.updates[0], NetworkMap) and {n.number for n in first.nodes} == {1, 2}
        hub.change(node(2, online=True))
        hub.change(node(3))
        hub.change(node(3, online=True))
        hub.remove(1, GONE)
        after = await link.next()
        assert len(link.updates) == 2 and isinstance(link.updates[1], MapDelta)
        assert {(n.number, n.online) for n in after.nodes} == {(2, True), (3, True)}
        assert after.version == first.version + 1

    with_hub(test, debounce=0.02)


def test_a_change_that_is_taken_back_tells_nobody() -> None:
    async def test(hub: Hub) -> None:
        link = Listening(2)
        await hub.connect(link)
        hub.change(node(2, online=True))
        hub.change(node(2))
        hub.change(node(3))
        hub.remove(3, GONE)
        await anyio.wait_all_tasks_blocked()
        hub.change(node(4))
        with anyio.fail_after(5):
            while len(link.updates) < 2:
                await link.next()
        delta = link.updates[1]
        assert isinstance(delta, MapDelta) and [n.number for n in delta.changed] == [4]

    with_hub(test, debounce=0.02)


def test_a_second_connection_of_a_node_takes_the_place_of_the_first() -> None:
    async def test(hub: Hub) -> None:
        old, new = Listening(2), Listening(2)
        await hub.connect(old)
        await hub.connect(new)
        assert old.closed == [None] and new.closed == []
        assert not hub.disconnect(old)
        assert hub.is_connected(2)
        assert hub.disconnect(new)
        assert not hub.is_connected(2)

    with_hub(test)


def test_a_removed_nodes_connection_is_closed_with_the_reason() -> None:
    async def test(hub: Hub) -> None:
        link = Listening(2)
        await hub.connect(link)
        hub.remove(2, GONE)
        assert link.closed == [GONE]
        assert not hub.is_connected(2)

    with_hub(test)


def test_versions_grow_over_restarts() -> None:
    async def test(hub: Hub) -> None:
        assert hub.published.version == 101

    reserved = with_hub(test, version=100)
    assert reserved == [101 + VERSION_BLOCK]


def test_a_disk_that_refuses_does_not_stop_the_map() -> None:
    async def refuse(_: int) -> None:
        raise UserError("state-write-failed", "Full.")

    async def main() -> None:
        hub = Hub(
            network="ab",
            domains=("local.test",),
            networks=(),
            version=0,
            nodes=[],
            sign=lambda body: sign(body, SEED),
            reserve=refuse,
            on_map=lambda _: None,
            debounce=0.0,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(hub.run)
            link = Listening(2)
            await hub.connect(link)
            await link.next()
            hub.change(node(2))
            assert [n.number for n in (await link.next()).nodes] == [2]
            tasks.cancel_scope.cancel()

    anyio.run(main)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.integers(1, 6), st.booleans()),
        st.tuples(st.just("remove"), st.integers(1, 6), st.just(False)),
        st.tuples(st.just("connect"), st.integers(1, 6), st.just(False)),
        st.tuples(st.just("settle"), st.just(0), st.just(False)),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_everybody_ends_with_the_same_map(sequence: list[tuple[str, int, bool]]) -> None:
    async def test(hub: Hub) -> None:
        listening: list[Listening] = []
        for action, number, online in sequence:
            match action:
                case "change":
                    hub.change(node(number, online=online))
                case "remove":
                    hub.remove(number, GONE)
                    listening = [link for link in listening if not link.closed]
                case "connect":
                    link = Listening(number)
                    await hub.connect(link)
                    listening = [each for each in listening if not each.closed] + [link]
                case _:
                    await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
        wanted = sorted(hub.nodes.values(), key=lambda each: each.number)
        for link in listening:
            assert link.map is not None
            assert list(link.map.nodes) == wanted
            assert msgspec.structs.replace(link.map, nodes=()) == msgspec.structs.replace(hub.published, nodes=())

    with_hub(test)


@pytest.mark.parametrize("changed", [node(2, name="renamed"), node(2, online=True)])
def test_this_machines_own_part_hears_of_every_map(changed: MapNode) -> None:
    heard: list[NetworkMap] = []

    async def reserve(_: int) -> None:
        return None

    async def main() -> None:
        hub = Hub(
            network="ab",
            domains=("local.test",),
            networks=(),
            version=0,
            nodes=[node(2)],
            sign=lambda body: sign(body, SEED),
            reserve=reserve,
            on_map=heard.append,
            debounce=0.0,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(hub.run)
            link = Listening(3)
            await hub.connect(link)
            await link.next()
            hub.change(changed)
            await link.next()
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert [each.nodes for each in heard] == [(node(2),), (changed,)]
