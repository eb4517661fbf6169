"""The first start and the later ones."""

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.errors import UserError
from overlay.node.interface import Machine, Route
from overlay.server.founding import found
from overlay.server.keys import ServerKeys
from overlay.server.registry import Registry
from overlay.server.schema import NetworkRecord, NodeRecord
from overlay.server.settings import ServerSettings

KEYS = ServerKeys(node_key=b"\x08" * 31 + b"\x48", map_seed=b"m" * 32)
MACHINE = Machine(routes=(Route("10.77.0.0/16", "eth0"),))


def start(tmp_path: Path, keys: ServerKeys = KEYS, **settings: Any) -> tuple[NetworkRecord, list[NodeRecord]]:
    async def machine() -> Machine:
        return MACHINE

    async def main() -> tuple[NetworkRecord, list[NodeRecord]]:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        try:
            return await found(
                registry,
                ServerSettings(state=str(tmp_path), **settings),
                keys,
                ciphers=("aes-256-gcm", "chacha20-poly1305"),
                machine=machine,
                wall=1.0,
            )
        finally:
            await registry.close()

    return anyio.run(main)


def refusal(tmp_path: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        start(tmp_path, **more)
    return caught.value.code


def test_the_first_start_makes_what_the_later_ones_find(tmp_path: Path) -> None:
    record, nodes = start(tmp_path)
    assert record.domain == "local.test" and record.ipv4.startswith("10.") and record.ipv6.startswith("fd")
    assert [(node.number, node.name, node.host, node.key) for node in nodes] == [(1, "server", 1, KEYS.public_key)]
    assert start(tmp_path) == (record, nodes)
    assert start(tmp_path, range=record.ipv4)[0] == record


def test_what_may_change_later_and_what_may_not(tmp_path: Path) -> None:
    start(tmp_path, range="10.78.0.0/16", name="hub", domains=("Example.Test",))
    record, nodes = start(tmp_path, name="core", domains=("other.test",))
    assert (record.domain, nodes[0].name) == ("other.test", "core")
    assert start(tmp_path)[1][0].name == "core"
    assert refusal(tmp_path, range="10.79.0.0/16") == "range-settled"
    assert refusal(tmp_path, name="-") == "name-invalid"
    assert refusal(tmp_path, domains=("..",)) == "domain-invalid"


def test_a_mistake_at_the_first_start_leaves_nothing_behind(tmp_path: Path) -> None:
    assert refusal(tmp_path, range="10.77.0.0/16") == "range-overlaps"
    assert refusal(tmp_path, range="10.77.0.0/33") == "range-invalid"
    assert refusal(tmp_path, domains=("..",)) == "domain-invalid"
    assert refusal(tmp_path, name="no good") == "name-invalid"
    assert start(tmp_path, range="10.78.0.0/16")[0].ipv4 == "10.78.0.0/16"


def test_a_registry_beside_other_keys_is_not_touched(tmp_path: Path) -> None:
    start(tmp_path)
    other = ServerKeys(node_key=os.urandom(32), map_seed=b"m" * 32)
    assert refusal(tmp_path, keys=other) == "state-corrupt"


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM node",
        "UPDATE node SET host = 70000",
        "UPDATE node SET lan = '[\"nonsense\"]'",
        "UPDATE network SET ipv4 = 'x'",
    ],
)
def test_a_registry_that_would_make_a_wrong_map(tmp_path: Path, change: str) -> None:
    import sqlite3
    from contextlib import closing

    start(tmp_path)
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as connection, connection:
        connection.execute(change)
    assert refusal(tmp_path) == "state-corrupt"
