"""The state folder keeps what it has, whatever goes wrong while writing."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from overlay.daemon.state import StateDir
from overlay.errors import UserError

_HOLD = """
import sys; from overlay.daemon.state import StateDir
with StateDir(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()
"""


class Sample(msgspec.Struct):
    name: str
    port: int


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_struct_round_trip_and_permissions(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "b").open()
    state.write_struct("x.json", Sample("a", 1))
    assert state.read_struct("x.json", Sample) == Sample("a", 1)
    assert mode(state.path) == 0o700
    assert mode(state.path / "x.json") == 0o600
    assert state.read("missing") is None


def test_an_open_folder_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    StateDir(tmp_path).open()
    assert mode(tmp_path) & 0o007 == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1, "port": 2}', b"\xff\xfe", b'{"name": "a"}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is damaged") as caught:
        StateDir(tmp_path).read_struct("x.json", Sample)
    assert caught.value.code == "state-corrupt"
    assert caught.value.hint


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write("x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the kernel refuses longer files: EFBIG
    try:
        with pytest.raises(UserError, match="Cannot write"):
            state.write("x", b"n" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_the_lock_keeps_a_second_daemon_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _HOLD,
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError) as caught, StateDir(tmp_path).lock():
            pass
        assert caught.value.code == "already-running"
        holder.kill()
    with StateDir(tmp_path).lock():
        pass
