"""Starting a daemon in the background: what it reports reaches the starter, and nothing that fails hangs or is lost."""

import os
import socket
from pathlib import Path

import pytest

from overlay.daemon.launch import error_document, error_from, launch, sd_notify
from overlay.errors import Exit, UserError
from tests.daemon.sample import SampleSettings

MODULE = "tests.daemon.sample"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_ready_report_and_settings_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLAY_INVITE", "s3cret")
    report = launch(MODULE, SampleSettings("ready", "s3cret"), tmp_path, 30)
    assert report["secret"] == "s3cret"
    assert report["arguments"] == []  # nothing in the process list
    assert "s3cret" not in report["environment"].values()
    os.waitpid(report["pid"], 0)


def test_the_daemons_error_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        launch(MODULE, SampleSettings("refuse"), tmp_path, 30)
    assert (caught.value.code, caught.value.exit_code) == ("invite-expired", Exit.REFUSED)
    assert caught.value.hint == "Ask for a new one."


def test_a_daemon_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exit code 1 .*lost a screw"):
        launch(MODULE, SampleSettings("die"), tmp_path, 30)


def test_a_daemon_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        launch(MODULE, SampleSettings("hang"), tmp_path, 0.5)
    assert caught.value.code == "start-timeout"


def test_an_unwritable_state_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot write"):
        launch(MODULE, SampleSettings("ready"), tmp_path / "missing", 1)


def test_errors_survive_the_trip_as_json() -> None:
    error = UserError("a", "b", "c", Exit.UNREACHABLE)
    again = error_from(error_document(error))
    assert (again.code, again.message, again.hint, again.exit_code) == ("a", "b", "c", Exit.UNREACHABLE)
    assert error_from({"exit_code": 77}).exit_code is Exit.FAILED


def test_sd_notify_reaches_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        sd_notify("READY=1")
        assert manager.recv(100) == b"READY=1"
