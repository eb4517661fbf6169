"""The daemon as a process of its own, started as the command line starts it, without a network interface."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from overlay.daemon.client import LocalClient
from overlay.daemon.launch import launch
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.server.registry import FILE_NAME
from overlay.server.settings import ServerSettings

PATIENCE = 60.0  # s, on a machine that is busy


def start(state: Path, **settings: Any) -> dict[str, Any]:
    StateDir(state).open()
    values: dict[str, Any] = {"listen": ("127.0.0.1:0",), "tun": False, **settings}
    return launch("overlay.server", ServerSettings(state=str(state), **values), state, PATIENCE)


@contextmanager
def started(state: Path, **settings: Any) -> Iterator[dict[str, Any]]:
    ready = start(state, **settings)
    try:
        yield ready
    finally:
        LocalClient(state).request("POST", "/v1/down")
        wait_until_gone(state)


def wait_until_gone(state: Path) -> None:
    """The lock is the daemon's as long as it lives, and one that is asked to end does."""
    import fcntl

    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def refusal(state: Path, **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        start(state, **settings)
    return caught.value


def test_first_start_second_start_and_stop(tmp_path: Path) -> None:
    with started(tmp_path, domains=("example.test",)) as ready:
        assert ready["invite"].startswith("ov1_") and ready["uses"] == 1
        status = LocalClient(tmp_path).request("GET", "/v1/status")
        assert (status["state"], status["domain"], status["interface"]) == ("running", "example.test", None)
        second = refusal(tmp_path)
        assert second.code == "already-running"
    with pytest.raises(UserError) as caught:
        LocalClient(tmp_path).request("GET", "/v1/status")
    assert caught.value.exit_code is Exit.NOT_RUNNING
    assert ready["invite"] not in (tmp_path / "overlay.log").read_text()
    with started(tmp_path):
        assert LocalClient(tmp_path).request("GET", "/v1/status")["domain"] == "example.test"


def test_a_signal_ends_it_in_order(tmp_path: Path) -> None:
    start(tmp_path)
    pid = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and holds(entry, tmp_path / "lock") and int(entry.name) != os.getpid()
    )
    os.kill(pid, signal.SIGTERM)
    wait_until_gone(tmp_path)
    assert not (tmp_path / "overlay.sock").exists()
    assert "Traceback" not in (tmp_path / "overlay.log").read_text()


def holds(process: Path, file: Path) -> bool:
    try:
        return any(link.resolve() == file for link in (process / "fd").iterdir())
    except OSError:
        return False


def test_mistakes_are_reported_to_the_starter(tmp_path: Path) -> None:
    assert refusal(tmp_path, range="10.0.0.1/16").code == "range-invalid"
    assert refusal(tmp_path, listen=("nonsense",)).exit_code is Exit.USAGE
    assert refusal(tmp_path, tls_cert=("/nowhere",)).code == "tls-options"
    assert refusal(tmp_path, tls_cert=("/nowhere",), tls_key=("/nowhere",)).code == "tls-file-missing"
    assert refusal(tmp_path, acme_email="admin@example.org", public=("192.0.2.1",)).code == "acme-no-name"
    with started(tmp_path):
        assert LocalClient(tmp_path).request("GET", "/v1/status")["certificate"]["source"] == "self-signed"
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE network SET server_key = x'00'")
    damaged = refusal(tmp_path)
    assert damaged.code == "state-corrupt" and FILE_NAME in damaged.message
    (tmp_path / FILE_NAME).write_bytes(b"garbage" * 1000)
    assert refusal(tmp_path).code == "state-corrupt"
