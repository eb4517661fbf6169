"""The command against a local API that a test plays: words, ends, exit codes, files and pipes."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from scapy.utils import RawPcapNgReader
from starlette.applications import Starlette

from overlay.daemon.capture import (
    CaptureMessage,
    CaptureWish,
    Counts,
    Inner,
    Outer,
    Started,
    capture_routes,
    encode,
)
from overlay.daemon.localapi import Write, on_user_error, serve_local_api
from overlay.errors import UserError
from overlay_cli.main import main as command
from tests.daemon.capture_source import Source
from tests.engine.rig import udp4

OVERLAY = str(Path(sys.executable).parent / "overlay")
TIME = 1_764_000_000_123_456_789
PACKET = udp4("10.77.0.2", "10.77.0.3", b"data", (1000, 2000))
STARTED = Started("id", "overlay0", 41641, {"10.77.0.2": "a", "10.77.0.3": "b"}, {3: "b"})
PACKETS: list[CaptureMessage] = [
    Inner(TIME, True, len(PACKET), bytes(10) + PACKET),
    Outer(TIME, True, ("192.0.2.1", 41641), ("192.0.2.2", 5), 40, (b"\x05" + bytes(39)) * 3),
    Inner(TIME, False, len(PACKET), bytes(10) + PACKET),
]


class Daemon(Source):
    """Sends `PACKETS` to each capture, and goes on until stopped (or ends by itself)."""

    def __init__(self, *, ends: bool = False) -> None:
        super().__init__(self._send)
        self._ends = ends

    def stop_capture(self, id: str) -> None:
        assert id == STARTED.id
        super().stop_capture(id)

    async def _send(self, write: Write) -> None:
        await write(encode([STARTED, *PACKETS]))
        if not self._ends:
            await self.stopping.wait()
        await write(encode([Counts(7, 5, 4, 1)]))


@asynccontextmanager
async def serving(state: Path, daemon: Daemon) -> AsyncIterator[None]:
    app = Starlette(routes=capture_routes(daemon), exception_handlers={UserError: on_user_error})
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve_local_api, app, state)
        with anyio.fail_after(60):
            yield
        tasks.cancel_scope.cancel()


def run(state: Path, *arguments: str, daemon: Daemon | None = None, signals: int = 0) -> tuple[int, bytes, str]:
    """The command in a process of its own; with `signals`, that many Ctrl-C once it captures."""

    def play() -> tuple[int, bytes, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAY_")}
        process = subprocess.Popen(
            [OVERLAY, "capture", "--state", str(state), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"TZ": "UTC"},
        )
        with process:
            assert process.stdout is not None and process.stderr is not None
            announced = b""
            if signals:
                announced = process.stderr.readline()
                for _ in range(signals):
                    process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=50)
            return process.returncode, output, (announced + errors).decode()

    async def main() -> tuple[int, bytes, str]:
        async with serving(state, daemon or Daemon()):
            return await to_thread.run_sync(play)

    return anyio.run(main)


def test_lines_until_there_are_enough(tmp_path: Path) -> None:
    daemon = Daemon()
    code, output, errors = run(tmp_path, "b", "udp", "--outer", "-c", "2", daemon=daemon)
    assert code == 0
    assert output.decode().splitlines() == [
        "16:00:00.123456 overlay0 Out IP a.1000 > b.2000: UDP, length 4",
        (
            "16:00:00.123456 overlay-outer Out IP 192.0.2.1.41641 > 192.0.2.2.5: "
            "record fragment 1/0, receiver 0x00000000, counter 0, length 40"
        ),
    ]
    assert errors.splitlines() == [
        "Capturing on overlay0 and overlay-outer, to and from b, what fits 'udp'. Ctrl-C ends.",
        "2 packets captured, 6 dropped",
    ]
    assert daemon.wishes == [CaptureWish(peer=3, outer=True, snaplen=1 << 18)]


def test_ctrl_c_ends_in_order(tmp_path: Path) -> None:
    code, output, errors = run(tmp_path, "-n", signals=1)
    assert code == 0 and b"10.77.0.2.1000 > 10.77.0.3.2000" in output
    assert errors.endswith("\n5 packets captured, 6 dropped\n")


def test_documents_one_per_line(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "--json", "--quiet", "-c", "5")
    documents = [json.loads(line) for line in output.splitlines()]
    assert code == 0 and len(documents) == 5
    assert [document["direction"] for document in documents] == ["out", "out", "out", "out", "in"]


@pytest.mark.parametrize("outer", [True, False])
def test_a_file_with_both_interfaces_and_what_was_dropped(tmp_path: Path, outer: bool) -> None:
    path = tmp_path / "x.pcapng"
    captured = 5 if outer else 2
    more = ["--outer"] if outer else ["greater 30 and port 1000"]
    code, output, _ = run(tmp_path, "-w", str(path), "-c", str(captured), "--json", *more)
    assert code == 0 and json.loads(output) == {"captured": captured, "dropped": 6, "file": str(path)}
    with RawPcapNgReader(str(path)) as reader:
        assert len(list(reader)) == captured
    assert path.stat().st_mode & 0o777 == 0o600
    dropped = [struct.pack("<HHQ", 5, 8, number) in path.read_bytes() for number in (5, 1)]  # option isb_ifdrop
    assert dropped == [True, outer]


def test_a_file_into_a_pipe(tmp_path: Path) -> None:
    code, output, _ = run(tmp_path, "-w", "-", "-c", "2")
    assert code == 0 and output.startswith(b"\x0a\x0d\x0d\x0a") and PACKET in output


def test_a_capture_that_the_daemon_ends_is_a_failure_and_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    code, _, errors = run(tmp_path, "-w", str(path), daemon=Daemon(ends=True))
    assert code == 1 and "The capture ended" in errors and "Traceback" not in errors
    with RawPcapNgReader(str(path)) as reader:
        assert len(list(reader)) == 2


def test_a_wrong_filter_is_said_before_anything_starts(tmp_path: Path) -> None:
    daemon, path = Daemon(), tmp_path / "x.pcapng"
    path.write_text("precious")
    code, _, errors = run(tmp_path, "b", "port", "-w", str(path), daemon=daemon)
    assert code == 2 and errors.startswith("overlay: 'port' is not a filter: ")
    assert daemon.wishes == [] and path.read_text() == "precious"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path, "-w", str(tmp_path))
    assert code == 1 and f"Cannot write {tmp_path}: Is a directory." in errors


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path, "-w", "/dev/full")
    assert code == 1 and "Cannot write /dev/full: No space left on device." in errors


def test_the_servers_daemon_is_found_where_there_is_no_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from overlay.daemon import state

    monkeypatch.setattr(state, "default_state_dir", lambda kind: tmp_path / kind)
    monkeypatch.delenv("OVERLAY_STATE", raising=False)
    assert command(["capture", "--json"]) == 3
    assert str(tmp_path / "node") in json.loads(capsys.readouterr().out)["error"]["message"]
    (tmp_path / "server").mkdir()
    (tmp_path / "server/overlay.sock").touch()
    assert command(["capture", "--json"]) == 3, "nobody listens there either, but it was the server's that was asked"
    assert str(tmp_path / "server") in json.loads(capsys.readouterr().out)["error"]["message"]
