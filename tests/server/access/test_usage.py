"""Bytes against quotas: counted at the gates, over restarts and months. A real registry, a wall clock of our own."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from overlay.node.interface import Machine
from overlay.server.access.gate import Gate, Reply
from overlay.server.access.usage import Usage, month_of, until_next_month
from overlay.server.admission import add_node
from overlay.server.founding import found
from overlay.server.keys import ServerKeys
from overlay.server.registry import Registry
from overlay.server.settings import ServerSettings
from overlay.wire.control.terms import Limits, Terms

from .test_credentials import ASKER, request

KEYS = ServerKeys(node_key=b"\x08" * 31 + b"\x48", map_seed=b"m" * 32)
NOVEMBER = 1795820400.0  # 2026-11-27
DAY = 86400.0
LIMITED = Terms(limits=Limits(quota=1000))


class Bench:
    def __init__(self, registry: Registry, node_quota: int, now: float) -> None:
        self.now = now
        self.node_quota = node_quota
        self.cut: list[int] = []
        self.usage = Usage(registry, lambda: self.now, lambda node: self.node_quota)

    def watch(self, number: int, node: int, terms: Terms = LIMITED) -> Gate:
        gate = Gate(terms)
        self.usage.watch(number, node, gate, lambda: self.cut.append(number))
        return gate


@asynccontextmanager
async def bench(path: Path, node_quota: int = 0, now: float = NOVEMBER) -> AsyncIterator[Bench]:
    async def machine() -> Machine:
        return Machine()

    registry = await Registry.open(path)
    try:
        settings = ServerSettings(state=str(path.parent))
        _, nodes = await found(registry, settings, KEYS, ciphers=(), machine=machine, wall=1.0)
        async with registry.transaction() as transaction:
            for number in () if len(nodes) > 1 else (2, 3):
                key, name = bytes([number]) * 32, f"n{number}"
                await add_node(
                    transaction,
                    key,
                    name=name,
                    name_chosen=True,
                    ciphers=(),
                    tags=(),
                    wall=1.0,
                    random_bytes=os.urandom,
                )
        it = Bench(registry, node_quota, now)
        await it.usage.start()
        yield it
    finally:
        await registry.close()


def closed(gate: Gate) -> bool:
    return gate.used_up


def run(test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test)


def test_a_quota_closes_the_gate_until_the_next_month(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path / "r.sqlite") as it:
            gate, other = it.watch(1, 2), it.watch(2, 2, Terms())
            gate.meter.add(999)
            other.meter.add(5000)
            it.usage.look()
            assert not closed(gate) and it.usage.of_exposure(1) == 999
            passed = 0
            with gate.meter.following(lambda: passed):
                passed = 1
                it.usage.look()
            assert closed(gate) and gate.shuts_out("192.0.2.1") == gate.refuses("192.0.2.1") == "quota_used_up"
            reply = await gate.admit(request(), ASKER)
            assert isinstance(reply, Reply) and reply.status == 503
            assert reply.fields == (f"Retry-After: {int(until_next_month(it.now)) + 1}",)
            assert it.cut == [1] and not closed(other)
            it.now += until_next_month(it.now)
            it.usage.look()
            assert not closed(gate) and it.usage.of_exposure(1) == 0 and it.cut == [1]

    run(test)


def test_what_was_used_outlives_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path / "r.sqlite") as it:
            it.watch(1, 2).meter.add(600)
            it.usage.look()
            await it.usage.save()
        async with bench(tmp_path / "r.sqlite") as it:
            gate = it.watch(1, 2)
            gate.meter.add(400)
            it.usage.look()
            assert closed(gate)
            await it.usage.save()
        async with bench(tmp_path / "r.sqlite") as it:
            assert closed(it.watch(1, 2))
        async with bench(tmp_path / "r.sqlite", now=NOVEMBER + 5 * DAY) as it:
            assert not closed(it.watch(1, 2))

    run(test)


def test_a_nodes_quota_is_for_all_it_has_and_had(tmp_path: Path) -> None:
    async def test() -> None:
        async with bench(tmp_path / "r.sqlite", node_quota=1000) as it:
            it.watch(1, 2, Terms()).meter.add(600)
            it.usage.look()
            it.usage.forget(1)
            gate, others = it.watch(2, 2, Terms()), it.watch(3, 3, Terms())
            gate.meter.add(400)
            others.meter.add(400)
            it.usage.look()
            assert closed(gate) and not closed(others)
            await it.usage.save()
            it.node_quota = 2000
            it.usage.look()
            assert not closed(gate)
            it.usage.forget_node(2)
            it.usage.look()
            assert it.usage.of_exposure(2) == 0

    run(test)


def test_months() -> None:
    assert month_of(NOVEMBER) == "2026-11"
    assert month_of(NOVEMBER + until_next_month(NOVEMBER)) == "2026-12"
    december = NOVEMBER + until_next_month(NOVEMBER)
    assert until_next_month(december) == 31 * DAY
