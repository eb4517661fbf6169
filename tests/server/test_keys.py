"""The server's keys in the state folder."""

import os
import stat
from pathlib import Path

import pytest

from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.server.keys import FILE_NAME, load_or_make_keys


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    keys = load_or_make_keys(state, os.urandom)
    assert load_or_make_keys(state, os.urandom) == keys
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert keys.node_key[0] & 7 == 0 and keys.node_key[31] & 192 == 64  # clamped
    assert keys.node_key.hex() not in repr(keys) and "map_seed" not in repr(keys)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"node_key": "AAAA", "map_seed": "AAAA"}'])
def test_damaged_keys_are_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_or_make_keys(StateDir(tmp_path), os.urandom)
    assert caught.value.code == "state-corrupt"
    assert (tmp_path / FILE_NAME).read_bytes() == content
