"""Forwarding UDP: a flow per user, bounded, ending by silence."""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.carrier.flows import UdpFlows
from overlay.carrier.outlets import SocketOutlet
from overlay.wire.endpoint import Endpoint

pytestmark = pytest.mark.anyio


def bound(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.bind((host, 0))
    return opened


def endpoint_of(opened: socket.socket) -> Endpoint:
    host, port = opened.getsockname()[:2]
    return host, port


async def receive(opened: socket.socket) -> tuple[bytes, Endpoint]:
    with anyio.fail_after(5):
        await anyio.wait_readable(opened)
    data, (host, port, *_) = opened.recvfrom(65535)
    return data, (host, port)


class Bench:
    """users ══ listening [flows] ══ target; the outer ends are the test's."""

    def __init__(self, listening: socket.socket, target: socket.socket) -> None:
        self.listening = listening
        self.target = target
        self.leads_to: Endpoint | None = endpoint_of(target)
        self.public = endpoint_of(listening)

    async def ask(self, user: socket.socket, data: bytes) -> Endpoint:
        """→ where the target sees it come from"""
        user.sendto(data, self.public)
        received, source = await receive(self.target)
        assert received == data
        return source


@asynccontextmanager
async def flowing(
    bench: Bench, *, limit: int = 1024, idle: float = 60.0, accepts: Endpoint | None = None
) -> AsyncIterator[UdpFlows]:
    drops: Counter[str] = Counter()
    flows = UdpFlows(
        bench.listening,
        lambda source, local: SocketOutlet.open(lambda: bench.leads_to, drops),
        limit=limit,
        idle=idle,
        shuts_out=None if accepts is None else lambda source: "" if source == accepts else "source_refused",
        drops=drops,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flows.run)
        try:
            yield flows
        finally:
            tasks.cancel_scope.cancel()
    assert flows.count == 0


async def dropped(flows: UdpFlows, reason: str) -> None:
    with anyio.fail_after(5):
        while not flows.drops[reason]:  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_each_user_has_a_flow_and_gets_his_own_answers(host: str) -> None:
    with bound(host) as listening, bound(host) as target, bound(host) as one, bound(host) as other:
        bench = Bench(listening, target)
        async with flowing(bench) as flows:
            source_one = await bench.ask(one, b"one")
            source_other = await bench.ask(other, b"other")
            assert source_one != source_other
            assert await bench.ask(one, b"") == source_one
            target.sendto(b"to other", source_other)
            target.sendto(b"to one", source_one)
            assert await receive(one) == (b"to one", bench.public)
            assert await receive(other) == (b"to other", bench.public)
            assert flows.count == 2
            assert (flows.to_target, flows.to_user) == (8, 14)
            assert not flows.drops


async def test_the_largest_datagram_passes() -> None:
    with bound() as listening, bound() as target, bound() as user:
        bench = Bench(listening, target)
        async with flowing(bench):
            largest = bytes(range(256)) * 255 + bytes(227)
            assert len(largest) == 65507
            source = await bench.ask(user, largest)
            target.sendto(largest, source)
            assert (await receive(user))[0] == largest


async def test_an_answer_leaves_from_the_address_that_was_asked() -> None:
    with bound("0.0.0.0") as listening, bound() as target, bound() as user:
        bench = Bench(listening, target)
        async with flowing(bench) as flows:
            for host in ("127.0.0.2", "127.0.0.3"):
                bench.public = (host, endpoint_of(listening)[1])
                source = await bench.ask(user, b"?")
                target.sendto(b"!", source)
                assert await receive(user) == (b"!", bench.public)
            assert flows.count == 2


async def test_a_silent_flow_ends_and_its_socket_with_it() -> None:
    with bound() as listening, bound() as target, bound() as user:
        bench = Bench(listening, target)
        async with flowing(bench, idle=0.05) as flows:
            first = await bench.ask(user, b"1")
            with anyio.fail_after(5):
                while flows.count:  # noqa: ASYNC110 - a number tells nobody
                    await anyio.sleep(0.005)
            target.sendto(b"too late", first)
            await bench.ask(user, b"2")
            assert len(flows._flows) == 1


async def test_the_longest_silent_flow_makes_room() -> None:
    with bound() as listening, bound() as target, bound() as one, bound() as two, bound() as three:
        bench = Bench(listening, target)
        async with flowing(bench, limit=2) as flows:
            source_one = await bench.ask(one, b"1")
            source_two = await bench.ask(two, b"2")
            assert await bench.ask(one, b"1") == source_one
            await bench.ask(three, b"3")
            assert flows.count == 2
            assert flows.drops == {"flow_evicted": 1}
            assert await bench.ask(one, b"1") == source_one
            assert await bench.ask(two, b"2") != source_two


async def test_a_target_that_moves_is_followed() -> None:
    with bound() as listening, bound() as old, bound() as new, bound() as user:
        bench = Bench(listening, old)
        async with flowing(bench) as flows:
            await bench.ask(user, b"1")
            bench.leads_to, bench.target = endpoint_of(new), new
            source = await bench.ask(user, b"2")
            new.sendto(b"from the new one", source)
            assert (await receive(user))[0] == b"from the new one"
            assert flows.count == 1
            bench.leads_to = None
            user.sendto(b"3", bench.public)
            await dropped(flows, "target_offline")


async def test_a_target_that_was_away_gets_the_next_datagram() -> None:
    with bound() as listening, bound() as user:
        target = bound()
        address = endpoint_of(target)
        bench = Bench(listening, target)
        async with flowing(bench) as flows:
            await bench.ask(user, b"1")
            target.close()
            user.sendto(b"2", bench.public)
            await dropped(flows, "target_refused")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as back:
                back.bind(address)
                bench.target = back
                await bench.ask(user, b"3")


async def test_a_target_out_of_reach_is_counted() -> None:
    with bound() as listening, bound() as target, bound() as user:
        bench = Bench(listening, target)
        bench.leads_to = ("255.255.255.255", 9)  # no broadcasts: the kernel refuses
        async with flowing(bench) as flows:
            user.sendto(b"?", bench.public)
            await dropped(flows, "target_failed")
            assert flows.count == 0


async def test_only_accepted_sources_are_served() -> None:
    with bound() as listening, bound() as target, bound() as friend, bound() as stranger:
        bench = Bench(listening, target)
        async with flowing(bench, accepts=endpoint_of(friend)) as flows:
            stranger.sendto(b"let me in", bench.public)
            await dropped(flows, "source_refused")
            await bench.ask(friend, b"hello")
            assert flows.count == 1


async def test_a_strangers_answer_does_not_reach_the_user() -> None:
    with bound() as listening, bound() as target, bound() as user, bound() as stranger:
        bench = Bench(listening, target)
        async with flowing(bench):
            source = await bench.ask(user, b"?")
            stranger.sendto(b"forged", source)
            target.sendto(b"true", source)
            assert (await receive(user))[0] == b"true"


async def test_closing_the_listening_socket_ends_it() -> None:
    with bound() as target:
        listening = bound()
        flows = UdpFlows(listening, lambda source, local: SocketOutlet.open(lambda: endpoint_of(target), Counter()))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flows.run)
                await anyio.wait_all_tasks_blocked()
                anyio.notify_closing(listening)
                listening.close()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=20))
def test_every_datagram_arrives_as_it_was_sent(datagrams: list[bytes]) -> None:
    async def main() -> None:
        with bound() as listening, bound() as target, bound() as user:
            bench = Bench(listening, target)
            async with flowing(bench):
                for datagram in datagrams:
                    await bench.ask(user, datagram)

    anyio.run(main)


async def test_who_begins_and_what_passes_can_be_held_back() -> None:
    service = bound()
    asked: list[tuple[int, bool]] = []

    def passes(size: int, up: bool) -> bool:
        asked.append((size, up))
        return size < 3

    opens = ["", "connection_rate"]
    listening = bound()
    drops: Counter[str] = Counter()
    flows = UdpFlows(
        listening,
        lambda source, local: SocketOutlet.open(lambda: endpoint_of(service), drops),
        holds_off=lambda source: opens.pop(0),
        passes=passes,
        drops=drops,
    )
    user, other = bound(), bound()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flows.run)
        user.sendto(b"1", endpoint_of(listening))
        data, flow = await receive(service)
        assert data == b"1"
        other.sendto(b"1", endpoint_of(listening))
        await dropped(flows, "connection_rate")
        user.sendto(b"123", endpoint_of(listening))
        while not flows.drops["over_bandwidth"]:
            await anyio.lowlevel.checkpoint()
        service.sendto(b"1234", flow)
        service.sendto(b"12", flow)
        assert (await receive(user))[0] == b"12"
        assert asked == [(1, True), (3, True), (4, False), (2, False)]
        assert flows.drops == {"connection_rate": 1, "over_bandwidth": 2} and flows.count == 1
        assert (flows.to_target, flows.to_user) == (1, 2)
        flows.end_all()
        assert flows.count == 0
        tasks.cancel_scope.cancel()
    for each in (service, listening, user, other):
        each.close()
