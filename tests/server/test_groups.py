"""Groups: who of their members serves a user, and who does when one fails. Real sockets; no clock is waited for."""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.outlets import Outlet
from overlay.carrier.port import Stream
from overlay.carrier.reached import REACHED
from overlay.server import groups as module
from overlay.server.groups import Group, Member, weight
from overlay.server.tunnels import SingleTunnel, TunnelError, Visitor
from overlay.wire.control.terms import Balance
from overlay.wire.endpoint import Endpoint

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


def visitor(source: str = HOST) -> Visitor:
    return Visitor((source, 5), (HOST, 80))


class End:
    """A member's node: takes connections, says that the target is reached, and its number."""

    def __init__(self, number: int, endpoint: Endpoint) -> None:
        self.number = number
        self.endpoint = endpoint
        self.online = True
        self.refuses = False
        self.hangs: anyio.Event | None = None  # until this
        self.silent = False
        self.asked = 0

    async def serve(self, stream: SocketStream) -> None:
        self.asked += 1
        async with stream:
            if self.hangs is not None:
                await self.hangs.wait()
            if self.refuses:
                return
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                await stream.send(REACHED + str(self.number).encode())
                await stream.receive()

    def member(self) -> Member:
        return Member(
            self.number,
            SingleTunnel(lambda: self.endpoint if self.online else None, Counter()),
            is_silent=lambda: self.silent,
        )


class Bench:
    def __init__(self, group: Group, ends: list[End], drops: Counter[str]) -> None:
        self.group = group
        self.ends = ends
        self.drops = drops
        self.streams: list[Stream] = []

    async def served_by(self, source: str = HOST) -> int:
        stream = await self.group.open(visitor(source))
        self.streams.append(stream)
        return int(await stream.receive())

    def end_all(self) -> None:
        for stream in self.streams:
            stream.close()
        self.streams.clear()


@asynccontextmanager
async def bench(count: int, balance: Balance = "least") -> AsyncIterator[Bench]:
    drops: Counter[str] = Counter()
    group = Group(drops)
    group.balance = balance
    async with AsyncExitStack() as stack:
        listeners = [
            await stack.enter_async_context(await anyio.create_tcp_listener(local_host=HOST)) for _ in range(count)
        ]
        ends = [
            End(number, (HOST, listener.extra(SocketAttribute.local_port)))
            for number, listener in enumerate(listeners, 1)
        ]
        async with anyio.create_task_group() as tasks:
            for listener, end in zip(listeners, ends, strict=True):
                tasks.start_soon(listener.serve, end.serve)
                group.add(end.member())
            it = Bench(group, ends, drops)
            with anyio.fail_after(10):
                yield it
            it.end_all()
            tasks.cancel_scope.cancel()


async def test_the_member_with_the_fewest_connections_is_next() -> None:
    async with bench(3) as it:
        assert [await it.served_by() for _ in range(4)] == [1, 2, 3, 1]
        assert [member.connections for member in it.group.members] == [2, 1, 1]
        it.streams[1].close()
        assert [await it.served_by(), await it.served_by()] == [2, 3], "the one that has waited longest among equals"


async def test_each_in_turn() -> None:
    async with bench(3, "round-robin") as it:
        served = []
        for _ in range(6):
            served.append(await it.served_by())
            it.end_all()
        assert served == [1, 2, 3, 1, 2, 3]


async def test_the_same_one_for_a_user() -> None:
    async with bench(3, "sticky") as it:
        users = [f"192.0.2.{number}" for number in range(12)]
        first = {user: await it.served_by(user) for user in users}
        assert set(first.values()) == {1, 2, 3}
        it.ends[0].online = False
        for user in users:
            again = await it.served_by(user)
            assert again == first[user] if first[user] != 1 else again != 1
        it.ends[0].online = True
        assert {user: await it.served_by(user) for user in users} == first


async def test_one_that_comes_again_has_the_users_that_it_had() -> None:
    async with bench(3, "sticky") as it:
        for member in it.group.members:
            member.node = member.number
        users = [f"192.0.2.{number}" for number in range(12)]
        first = {user: await it.served_by(user) for user in users}
        it.group.remove(1)
        again = it.ends[0].member()
        again.node, again.number = 1, 77  # by a lease of another number
        it.group.add(again)
        assert {user: await it.served_by(user) for user in users} == first


@given(st.sets(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1001, 2000), st.ip_addresses(v=4).map(str))
def test_a_member_that_comes_takes_users_and_moves_no_other(members: set[int], new: int, user: str) -> None:
    def best(among: set[int]) -> int:
        return max(among, key=lambda number: weight(number, user))

    assert best(members | {new}) in (new, best(members))


async def test_a_user_goes_on_to_the_next_when_a_target_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY", 0.05)
    async with bench(4) as it:
        it.ends[0].refuses = True  # the node is there, its target is not
        it.ends[1].hangs = anyio.Event()  # the machine is unplugged
        with socket.create_server((HOST, 0)) as gone:
            it.ends[2].endpoint = gone.getsockname()  # nothing listens
        assert [await it.served_by(), await it.served_by()] == [4, 4]
        assert it.drops == {"member_failed": 3}, "the second user is not led there"
        assert [member.state() for member in it.group.members] == ["resting", "resting", "resting", "up"]
        assert [member.connections for member in it.group.members] == [0, 0, 0, 2]


async def test_one_that_failed_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST", 0.0)
    async with bench(2, "round-robin") as it:
        it.ends[0].refuses = True
        assert await it.served_by() == 2
        it.ends[0].refuses = False
        assert await it.served_by() == 1


async def test_members_that_are_passed_over_and_those_that_are_tried_all_the_same() -> None:
    async with bench(3) as it:
        one, two, three = it.group.members
        it.ends[0].online = False
        it.ends[1].silent = True
        assert [await it.served_by(), await it.served_by()] == [3, 3]
        three.problem = "it answers 500"
        assert [member.state() for member in it.group.members] == ["offline", "silent", "unwell"]
        assert await it.served_by() == 3, "better than one that does not answer"
        it.ends[2].online = False
        assert await it.served_by() == 2, "better than none"
        it.ends[1].online = False
        assert not it.group.online()
        with pytest.raises(TunnelError) as caught:
            await it.group.open(visitor())
        assert caught.value.reason == "target_offline"
        assert it.ends[0].asked == 0


async def test_a_member_that_is_given_back_serves_nobody_new() -> None:
    async with bench(2) as it:
        assert [await it.served_by(), await it.served_by()] == [1, 2]
        it.group.remove(1)
        assert it.group.serves_well(it.streams[1]) and not it.group.serves_well(it.streams[0])
        assert [await it.served_by(), await it.served_by()] == [2, 2]


async def test_a_member_that_is_given_back_while_it_is_tried() -> None:
    async with bench(1) as it:
        it.ends[0].hangs = anyio.Event()

        async def ask() -> None:
            with pytest.raises(TunnelError) as caught:
                await it.group.open(visitor())
            assert caught.value.reason == "target_offline"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not it.ends[0].asked:  # noqa: ASYNC110 - a number tells nobody
                await anyio.sleep(0.005)
            it.group.remove(1)
            it.ends[0].hangs.set()


def stale(*outlets: Outlet) -> list[bool]:
    return [outlet.stale for outlet in outlets]


async def test_a_users_datagrams_stay_with_a_member_while_it_is_well() -> None:
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    drops: Counter[str] = Counter()
    group = Group(drops)
    online = {1, 2}
    for number, end in enumerate(ends, 1):
        end.bind((HOST, 0))
        end.setblocking(False)

        def where(number: int = number, end: socket.socket = end) -> Endpoint | None:
            return end.getsockname() if number in online else None

        group.add(Member(number, SingleTunnel(where, drops)))
    one, two = group.members
    first, second = group.outlet(visitor()), group.outlet(visitor())
    assert first is not None and second is not None
    assert first.send(memoryview(b"a")) and second.send(memoryview(b"b"))
    assert [end.recv(10) for end in ends] == [b"a", b"b"]
    assert (one.connections, two.connections) == (1, 1)
    assert stale(first, second) == [False, False]
    online.discard(1)
    assert stale(first, second) == [True, False]
    first.close()
    first.close()
    moved = group.outlet(visitor())
    assert moved is not None and moved.send(memoryview(b"c")) and ends[1].recv(10) == b"c"
    assert (one.connections, two.connections) == (0, 2)
    two.problem = "it is not well"
    assert stale(moved) == [False], "nobody is better"
    online.add(1)
    assert stale(moved) == [True]
    online.clear()
    assert group.outlet(visitor()) is None and drops["target_offline"]
    for outlet in (second, moved):
        outlet.close()
    for end in ends:
        end.close()
