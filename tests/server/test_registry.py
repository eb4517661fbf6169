"""The registry on real SQLite files: migrations, transactions, and files that are not as they should be."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from overlay.errors import UserError
from overlay.server.registry import Registry, storage_error, upgrade
from overlay.server.schema import (
    REVISION,
    ExposureRecord,
    InviteRecord,
    NetworkRecord,
    NodeRecord,
    exposure_id,
    metadata,
)

NETWORK = NetworkRecord(
    identity="ab",
    server_key=b"s" * 32,
    domain="local.test",
    ipv4="10.77.0.0/16",
    ipv6="fd01:203:405::/48",
    next_number=1,
    last_host=0,
    map_version=0,
)


def node(number: int, **more: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "number": number,
        "key": bytes([number]) * 32,
        "name": f"n{number}",
        "wished": "",
        "host": number,
        "ticket": b"\xff" * 8,
        "ciphers": ("aes-256-gcm", "chacha20-poly1305"),
        "tags": ("lab",),
        "lan": ("192.0.2.1:5",),
        "created": 1.5,
    }
    return NodeRecord(**{**values, **more})


def exposure(node_number: int, port: int) -> ExposureRecord:
    return ExposureRecord(
        id=0, node=node_number, protocol="tcp", host="", public_port=port, target="tcp://x:1", port=7, created=1.0
    )


def test_what_is_written_is_read_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"

    async def write() -> None:
        registry = await Registry.open(path)
        async with registry.transaction() as transaction:
            await transaction.add_network(NETWORK)
            await transaction.add_nodes([node(number) for number in (1, 2, 3)])
            await transaction.set_nodes([node(3, name="c", last_seen=2.0, lan=()), node(2, name="b")])
            await transaction.set_nodes([])
            await transaction.set_network(next_number=4, map_version=9)
            first = await transaction.add_exposure(exposure(2, 9000))
            second = await transaction.add_exposure(exposure(3, 9001))
            assert (first.name, second.name) == ("x1", "x2")
            await transaction.remove_node(3)
        await registry.close()

    async def read() -> None:
        registry = await Registry.open(path)
        async with registry.transaction() as transaction:
            assert await transaction.network() == msgspec.structs.replace(NETWORK, next_number=4, map_version=9)
            assert await transaction.nodes() == [node(1), node(2, name="b")]
            assert await transaction.node_with_key(bytes([2]) * 32) == node(2, name="b")
            assert await transaction.names() == {"n1", "b"}
            assert [record.public_port for record in await transaction.exposures()] == [9000]
            again = await transaction.add_exposure(exposure(1, 9001))
            assert again.name == "x3"  # ids are never used twice
        await registry.close()

    anyio.run(write)
    anyio.run(read)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def check_tables(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == REVISION
        assert compare_metadata(context, metadata) == []


def tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: " ".join(sorted(sql.replace(",", " ").replace('"', "").split())) for name, sql in rows}


def test_a_new_registry_is_what_the_migrations_make(tmp_path: Path) -> None:
    new, migrated = tmp_path / "new.sqlite", tmp_path / "migrated.sqlite"

    async def make(path: Path) -> None:
        await (await Registry.open(path)).close()

    anyio.run(make, new)
    engine = create_engine(f"sqlite:///{migrated}", poolclass=NullPool)
    with engine.begin() as connection:
        upgrade(connection, migrated, None)
    check_tables(new)
    check_tables(migrated)
    assert tables(new) == tables(migrated)
    anyio.run(make, migrated)  # and it opens
    config = Config()
    config.set_main_option("script_location", "overlay:server/migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        with pytest.raises(UserError, match="refused"):
            async with registry.transaction() as transaction:
                await transaction.add_network(NETWORK)
                raise UserError("refused", "refused")
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with registry.transaction() as transaction:
                await transaction.add_nodes([node(5)])
        async with registry.transaction() as transaction:
            assert await transaction.network() is None
            assert len(await transaction.nodes()) == 1  # a transaction that has begun is not cancelled half-way
        await registry.close()

    anyio.run(main)


def test_transactions_follow_one_another(tmp_path: Path) -> None:
    async def main() -> None:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        async with registry.transaction() as transaction:
            await transaction.add_invite(
                InviteRecord(secret_hash=b"h", uses=50, left=50, tags=(), created=0.0, expires=1.0)
            )

        async def use() -> None:
            async with registry.transaction() as transaction:
                await transaction.use_invite(b"h", 1)

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(use)
        async with registry.transaction() as transaction:
            found = await transaction.invites({b"h", b"another"})
            assert {hash_: invite.left for hash_, invite in found.items()} == {b"h": 0}
            await transaction.use_invite(b"h", 1)
            assert await transaction.invites({b"h"}) == found  # never below nothing
        await registry.close()

    anyio.run(main)


def opening_fails(path: Path) -> UserError:
    async def main() -> None:
        await (await Registry.open(path)).close()

    with pytest.raises(UserError) as caught:
        anyio.run(main)
    return caught.value


def made(path: Path) -> None:
    async def main() -> None:
        registry = await Registry.open(path)
        async with registry.transaction() as transaction:
            await transaction.add_network(NETWORK)
            for number in range(1, 100):
                await transaction.add_nodes([node(number)])
        await registry.close()

    anyio.run(main)


def test_a_file_that_is_no_registry(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"garbage" * 1000)
    error = opening_fails(path)
    assert error.code == "state-corrupt"
    assert str(path) in error.message


def test_a_registry_with_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    made(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    path.write_bytes(data)
    assert opening_fails(path).code == "state-corrupt"


def test_a_row_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    made(path)
    for change in (
        "UPDATE node SET tags = '{'",
        "UPDATE node SET tags = '[]', ticket = 'text'",
        "UPDATE node SET ticket = x'00'",
    ):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(change)

        async def main() -> None:
            registry = await Registry.open(path)
            try:
                async with registry.transaction() as transaction:
                    await transaction.nodes()
            finally:
                await registry.close()

        with pytest.raises(UserError) as caught:
            anyio.run(main)
        assert caught.value.code == "state-corrupt"


def test_a_registry_of_a_later_release(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    made(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert opening_fails(path).code == "state-newer"


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE node (x)")
    assert opening_fails(path).code == "state-corrupt"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert opening_fails(tmp_path / "missing" / "registry.sqlite").code == "state-write-failed"


def test_a_full_disk_is_a_sentence_and_the_registry_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        async with registry.transaction() as transaction:
            # SQLite's own limit gives the same error as a disk without room.
            connection = transaction._connection
            pages = (await connection.execute(text("PRAGMA page_count"))).scalar()
            await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(UserError) as caught:
            async with registry.transaction() as transaction:
                for number in range(1, 200):
                    await transaction.add_nodes([node(number)])
        assert caught.value.code == "state-write-failed"
        assert "space" in caught.value.hint
        async with registry.transaction() as transaction:
            assert await transaction.nodes() == []
        await registry.close()

    anyio.run(main)


def test_another_program_that_holds_the_file(tmp_path: Path) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    found = storage_error(tmp_path, OperationalError("BEGIN", {}, error))
    assert found.code == "state-busy"


@pytest.mark.parametrize(("name", "number"), [("x1", 1), ("x", None), ("1", None), ("y1", None), ("x²", None)])
def test_ids_of_exposures(name: str, number: int | None) -> None:
    assert exposure_id(name) == number


def test_a_ticket_is_not_shown() -> None:
    assert "ff" not in repr(node(1)) and "ticket" not in repr(node(1))
