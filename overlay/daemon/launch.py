"""How a daemon is started in the background, and how it says that it works or why it does not.

The starter runs `python -m MODULE` in a session of its own, hands the settings over on standard input (so that an
invite never shows in the process list or the environment), and waits for one line of JSON on a pipe: `{"ready": {...}}`
or `{"error": {...}}`. A daemon that ends without a word is reported with the end of its log.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overlay.daemon.state import LOG_NAME
from overlay.errors import Exit, UserError

if TYPE_CHECKING:
    import msgspec  # at run time only where used: every command imports this module and few start a daemon

READY_ENVIRONMENT = "OVERLAY_READY_FD"
"""Names the pipe's descriptor to the daemon; without it the daemon runs in the foreground of somebody's terminal."""

_LARGEST_REPORT = 1 << 20


def launch(module: str, settings: "msgspec.Struct", state: Path, timeout: float) -> dict[str, Any]:
    """Start the daemon `module` with `settings`; return what it reports once it works.

    Raises the `UserError` that the daemon reports, or one of its own if the daemon dies or says nothing for `timeout`
    seconds (it is ended then).
    """
    import msgspec

    read_end, write_end = os.pipe()
    try:
        log = _open_log(state)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment() | {READY_ENVIRONMENT: str(write_end)},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(log)
    finally:
        os.close(write_end)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:  # it died early: the report or the log says why
            pipe.write(msgspec.json.encode(settings))
        line = _read_line(read_end, time.monotonic() + timeout)
    except BaseException:
        _end(process)
        raise
    finally:
        os.close(read_end)
    if line is None:
        _end(process)
        raise UserError(
            "start-timeout",
            f"The daemon did not get ready within {timeout:.0f} seconds and was ended.",
            f"Its log is {state / LOG_NAME}; run the command with --foreground -v to watch it.",
        )
    return _report(line, process, state)


def _environment() -> dict[str, str]:
    """Ours, without what the settings have already taken from it: an invite must not stay readable in the daemon's."""
    return {name: value for name, value in os.environ.items() if name != "OVERLAY_INVITE"}


def _report(line: bytes, process: "subprocess.Popen[bytes]", state: Path) -> dict[str, Any]:
    if not line:
        code = process.wait()
        raise UserError(
            "start-failed",
            f"The daemon ended with exit code {code} before it was ready: {_log_tail(state)}",
            f"Its log is {state / LOG_NAME}; run the command with --foreground -v to watch it.",
        )
    report = json.loads(line)
    if "error" in report:
        process.wait()
        raise error_from(report["error"])
    # The daemon goes on without us; nothing is left to wait for, so its handle must not complain when it is dropped.
    process.returncode = 0
    ready: dict[str, Any] = report["ready"]
    return ready


def read_settings(kind: type[Any]) -> Any:
    """Daemon side: the settings from standard input, as the msgspec type `kind`."""
    import msgspec

    return msgspec.json.decode(sys.stdin.buffer.read(), type=kind)


def report_ready(result: dict[str, Any]) -> None:
    """Daemon side: say that it works, to the starter and to the service manager, whichever is there."""
    _send_report({"ready": result})
    sd_notify("READY=1")


def report_error(error: UserError) -> bool:
    """Daemon side: say why it does not work. Returns False if there is no starter to hear it."""
    return _send_report({"error": error_document(error)})


def error_document(error: UserError) -> dict[str, Any]:
    """The JSON form of an error, as it travels between our processes and as `--json` prints it."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": int(error.exit_code),
    }


def error_from(document: dict[str, Any]) -> UserError:
    """The inverse of `error_document`, for a document of one of our own processes."""
    try:
        exit_code = Exit(document.get("exit_code", Exit.FAILED))
    except ValueError:
        exit_code = Exit.FAILED
    message, hint = str(document.get("message", "unknown error")), str(document.get("hint", ""))
    return UserError(str(document.get("code", "failed")), message, hint, exit_code)


def sd_notify(state: str) -> None:
    """Tell systemd (`Type=notify`) about a change of state; nothing happens under another manager. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.sendto(state.encode(), address)


def _send_report(report: dict[str, Any]) -> bool:
    descriptor = os.environ.pop(READY_ENVIRONMENT, "")
    if not descriptor:
        return False
    with suppress(BrokenPipeError), os.fdopen(int(descriptor), "wb") as pipe:  # the starter may be gone: no harm
        pipe.write(json.dumps(report).encode() + b"\n")
    return True


def _open_log(state: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(state / LOG_NAME, flags, 0o600)
    except OSError as error:
        hint = "Choose another folder with --state DIR, or run the command with sudo."
        code = Exit.REFUSED if isinstance(error, PermissionError) else Exit.FAILED
        message = f"Cannot write {state / LOG_NAME}: {error.strerror}."
        raise UserError("state-write-failed", message, hint, code) from error


def _read_line(descriptor: int, deadline: float) -> bytes | None:
    """One line from the pipe; b"" if it was closed first, None if the time is up."""
    data = b""
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
            return None
        chunk = os.read(descriptor, 65536)
        data += chunk
        line, newline, _ = data.partition(b"\n")
        if newline:
            return line
        if not chunk or len(data) > _LARGEST_REPORT:
            return b""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log_tail(state: Path) -> str:
    try:
        lines = (state / LOG_NAME).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no log."
