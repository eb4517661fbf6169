"""Records that people put into the zone: who may put what where, on a real registry."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from overlay.errors import UserError
from overlay.server import records as records_module
from overlay.server.records import Records
from overlay.server.registry import Registry
from overlay.wire.control.messages import MapRecord
from overlay.wire.control.records import MAX_RECORDS, check_record
from tests.server.test_registry import NETWORK, node

NODES = {"server": 1, "a": 2, "b": 3, "c": 4}
SERVER, A, B = 1, 2, 3


class Told:
    """Records on a registry, and what was told of them."""

    def __init__(self) -> None:
        self.records: Records
        self.told: list[tuple[MapRecord, ...]] = []

    def hear(self) -> None:
        self.told.append(self.records.all())

    async def add(self, node: int, name: str, rtype: str, value: str) -> str:
        record = await self.records.add(node, name, rtype, value)
        check_record(record)  # else no map with it would be signed
        assert record.node == node
        return f"{record.name} {record.rtype} {record.value}"

    async def refused(self, node: int, name: str, rtype: str, value: str) -> str:
        with pytest.raises(UserError) as caught:
            await self.records.add(node, name, rtype, value)
        return caught.value.code

    async def not_removed(self, node: int, name: str, rtype: str = "") -> str:
        with pytest.raises(UserError) as caught:
            await self.records.remove(node, name, rtype)
        return caught.value.code

    def names(self) -> list[str]:
        return sorted(record.name for record in self.records.all())


def with_records(tmp_path: Path, *tests: Callable[[Told], Awaitable[None]]) -> None:
    """Each test has the records that the one before it has left, as after a restart."""

    async def main(test: Callable[[Told], Awaitable[None]]) -> None:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        async with registry.transaction() as transaction:
            if await transaction.network() is None:
                await transaction.add_network(NETWORK)
                await transaction.add_nodes([node(number) for number in NODES.values()])
        told = Told()
        told.records = Records(registry, ("local.test", "corp.example"), lambda: NODES, told.hear, lambda: 5.0)
        await told.records.start()
        try:
            await test(told)
        finally:
            await registry.close()

    for test in tests:
        anyio.run(main, test)


def test_added_kept_removed(tmp_path: Path) -> None:
    async def before(told: Told) -> None:
        assert await told.add(A, "api", "a", "192.168.1.1") == "api.local.test A 192.168.1.1"
        assert await told.add(A, "api.local.test", "A", "192.168.1.1") == "api.local.test A 192.168.1.1"
        assert len(told.told) == 1  # the second time nothing changed
        await told.add(A, "API.Local.Test.", "AAAA", "2001:DB8::1")
        await told.add(SERVER, "www", "CNAME", "b")
        assert [len(records) for records in told.told] == [1, 2, 3]

    async def after(told: Told) -> None:
        assert told.names() == ["api.local.test", "api.local.test", "www.local.test"]
        await told.records.remove(A, "api", "AAAA")
        await told.records.remove(A, "api", "")
        assert told.names() == ["www.local.test"] and len(told.told) == 2
        assert await told.not_removed(A, "api") == "record-unknown"

    async def in_the_end(told: Told) -> None:
        assert told.names() == ["www.local.test"]

    with_records(tmp_path, before, after, in_the_end)


def test_how_names_and_values_are_typed(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        assert await told.add(B, "Bücher", "CNAME", "b") == "xn--bcher-kva.local.test CNAME b.local.test"
        assert await told.add(B, "日本。b", "A", "192.0.2.1") == "xn--wgv71a.b.local.test A 192.0.2.1"
        assert await told.add(B, "x.example.org", "A", "192.0.2.1") == "x.example.org.local.test A 192.0.2.1"
        assert await told.add(B, "_ssh._tcp.b", "SRV", "0 0 22 b") == "_ssh._tcp.b.local.test SRV 0 0 22 b.local.test"
        assert await told.add(B, "far", "CNAME", "Example.org") == "far.local.test CNAME example.org"
        assert await told.add(B, "top", "CNAME", "org.") == "top.local.test CNAME org"
        assert await told.add(B, "x.corp.example", "CNAME", "b") == "x.corp.example CNAME b.local.test"
        assert await told.refused(A, "b.corp.example", "TXT", "x") == "record-name-taken"
        assert await told.add(B, "local.test", "TXT", "of all") == "local.test TXT of all"
        await told.records.remove(B, "bücher", "cname")

    with_records(tmp_path, test)


@pytest.mark.parametrize(
    ("name", "rtype", "value"),
    [
        ("api.example.org.", "A", "192.0.2.1"),
        ("", "A", "192.0.2.1"),
        ("a..b", "A", "192.0.2.1"),
        ("_api", "A", "192.0.2.1"),
        ("xn--a", "A", "192.0.2.1"),
        ("\u2665\u200d", "A", "192.0.2.1"),
        ("x" * 64, "A", "192.0.2.1"),
        ("x" * 100_000, "A", "192.0.2.1"),
        ("api", "A", "b"),
        ("api", "MX", "10 b"),
        ("api", "CNAME", "a..b"),
        ("api", "CNAME", ""),
        ("api", "TXT", "x" * 256),
        ("api", "SRV", "0 0 22 xn--a"),
        ("_api", "TXT", "\ud800"),
    ],
)
def test_what_is_no_record(tmp_path: Path, name: str, rtype: str, value: str) -> None:
    async def test(told: Told) -> None:
        assert await told.refused(A, name, rtype, value) == "record-invalid"

    with_records(tmp_path, test)


def test_names_belong_to_nodes(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        assert await told.refused(A, "b", "TXT", "x") == "record-name-taken"
        assert await told.refused(A, "*.b", "A", "192.0.2.1") == "record-name-taken"
        assert await told.refused(B, "b", "A", "192.0.2.1") == "record-name-taken"
        await told.add(B, "b", "TXT", "x")
        await told.add(B, "*.b", "CNAME", "b")
        await told.add(A, "api", "A", "192.0.2.1")
        assert await told.refused(B, "api", "A", "192.0.2.2") == "record-name-taken"
        assert await told.not_removed(B, "api") == "record-not-yours"
        await told.records.remove(SERVER, "api", "")
        await told.add(B, "api", "A", "192.0.2.2")

    with_records(tmp_path, test)


def test_an_alias_stands_alone_and_leads_somewhere(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        await told.add(A, "one", "CNAME", "b")
        assert await told.refused(A, "one", "A", "192.0.2.1") == "record-conflict"
        assert await told.refused(A, "one", "CNAME", "c") == "record-conflict"
        await told.add(A, "api", "A", "192.0.2.1")
        assert await told.refused(A, "api", "CNAME", "b") == "record-conflict"
        assert await told.refused(A, "local.test", "CNAME", "b") == "record-conflict"
        assert await told.refused(A, "self", "CNAME", "self") == "record-loop"
        await told.add(A, "x", "CNAME", "y")
        await told.add(A, "y", "CNAME", "z")
        assert await told.refused(A, "z", "CNAME", "x") == "record-loop"

    with_records(tmp_path, test)


def test_a_wildcard_that_leads_below_itself_is_a_circle(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        assert await told.refused(A, "*.w", "CNAME", "v.w.local.test") == "record-loop"

    with_records(tmp_path, test)


def test_chains_have_an_end(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        for number in range(records_module.LONGEST_CHAIN):
            await told.add(A, f"x{number + 1}", "CNAME", f"x{number}")
        assert await told.refused(A, "x9", "CNAME", "x8") == "record-loop"

    with_records(tmp_path, test)


def test_there_are_not_more_than_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_PER_NODE", 2)

    async def test(told: Told) -> None:
        for name in ("x", "y"):
            await told.add(A, name, "TXT", "x")
        assert await told.refused(A, "z", "TXT", "x") == "too-many-records"
        await told.add(A, "y", "TXT", "x")  # is there already
        monkeypatch.setattr(records_module, "MAX_RECORDS", 3)
        await told.add(B, "b", "TXT", "x")
        assert await told.refused(B, "b", "TXT", "y") == "too-many-records"

    with_records(tmp_path, test)
    assert MAX_RECORDS == 512


def test_a_node_that_is_removed_takes_its_records_along(tmp_path: Path) -> None:
    async def test(told: Told) -> None:
        await told.add(A, "api", "A", "192.0.2.1")
        await told.add(B, "b", "TXT", "x")
        await told.records.forget_node(A)
        assert told.names() == ["b.local.test"] and len(told.told[-1]) == 1

    with_records(tmp_path, test)
