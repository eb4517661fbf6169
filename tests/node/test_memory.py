"""What a node keeps in its state folder."""

import stat
from pathlib import Path

import anyio
import pytest

from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.memory import JOINED_FILE, KEY_FILE, MAP_FILE, Joined, Memory, load_or_make_key
from overlay.wire.control.messages import NetworkMap

MAP = NetworkMap(network="ab", version=1, domain="local.test", networks=("10.77.0.0/16",), nodes=())
JOINED = Joined(addresses=("192.0.2.1:443",), server_key=bytes(32), domain="local.test")


def test_the_key_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    state = StateDir(tmp_path).open()
    key = load_or_make_key(state)
    assert load_or_make_key(state) == key
    assert len(key) == 32
    assert (key[0] & 7, key[31] & 192) == (0, 64)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{}", b'{"private_key": "AAAA"}', b"\xff\xfe"])
def test_a_damaged_key_is_an_error_and_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_or_make_key(StateDir(tmp_path))
    assert caught.value.code == "state-corrupt"
    assert KEY_FILE in caught.value.message
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_what_was_saved_is_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        memory = Memory(StateDir(tmp_path))
        assert (memory.joined, memory.welcome, memory.network_map) == (None, None, None)
        memory.save_joined(JOINED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.keep_map)
            memory.set_map(MAP)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()  # the last map is written on the way out
        again = Memory(StateDir(tmp_path))
        assert (again.joined, again.network_map) == (JOINED, MAP)

    anyio.run(main)


@pytest.mark.parametrize("name", [JOINED_FILE, MAP_FILE])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"version": ')
    with pytest.raises(UserError) as caught:
        Memory(StateDir(tmp_path))
    assert caught.value.code == "state-corrupt"
    assert name in caught.value.message


def test_a_full_disk_does_not_stop_the_keeper_of_maps() -> None:
    async def main() -> None:
        memory = Memory(StateDir("/proc"))  # where nothing can be written, even by root
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.keep_map)
            memory.set_map(MAP)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert memory.network_map == MAP

    anyio.run(main)
