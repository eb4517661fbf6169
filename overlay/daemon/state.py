"""The state folder: keys, registry, map and settings of one daemon. Knows files, not what is in them.

A file is replaced as a whole: written to a temporary name, synced, renamed. So a reader sees the old or the new one,
and a full disk or a crash leaves the old one. The folder is 0700 and every file 0600: most of them hold secrets.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from overlay.errors import Exit, UserError

if TYPE_CHECKING:
    import msgspec  # at run time only where used: every command imports this module and few read or write JSON files

T = TypeVar("T")

SOCKET_NAME = "overlay.sock"
LOG_NAME = "overlay.log"
_LOCK_NAME = "lock"


def default_state_dir(kind: str) -> Path:
    """Where a daemon of this kind (`node`, `server`) keeps its state if nobody says otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/overlay") / kind
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "overlay" / kind


class StateDir:
    """One state folder. All methods raise `UserError` for what the file system refuses."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def open(self) -> "StateDir":
        """Make the folder if need be, with mode 0700."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_mode & 0o077 and os.access(self.path, os.W_OK):
                # The group `overlay` may pass through to the local API's socket; nobody else, and nobody may list.
                self.path.chmod(0o710)
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one daemon. The kernel lets go of it when the process ends, however it ends.

        Raises `UserError` ("already-running") if another process holds it.
        """
        try:
            descriptor = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(self.path / _LOCK_NAME, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    "already-running",
                    f"A daemon is already running on the state folder {self.path}.",
                    "See it with 'overlay status', end it with 'overlay down', or use another folder with --state.",
                ) from error
            yield
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """The file's content, or None if there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                "state-unreadable",
                f"Cannot read {self.path / name}: {error.strerror}.",
                "Run the command as the user who owns the state folder (usually with sudo).",
                Exit.REFUSED if error.errno in (errno.EACCES, errno.EPERM) else Exit.FAILED,
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Replace the file as a whole, or leave the old one as it was and raise `UserError` ("state-write-failed")."""
        target = self.path / name
        temporary = self.path / f".{name}.new"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, target)
            self._sync_folder()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise write_error(target, error) from error

    def remove(self, name: str) -> None:
        """Remove the file if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.path / name, error) from error

    def read_struct(self, name: str, kind: type[T]) -> T | None:
        """The file decoded as JSON of the msgspec type `kind`, or None if there is none.

        Raises `UserError` ("state-corrupt") if it does not decode.
        """
        import msgspec

        data = self.read(name)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise corrupt(self.path / name, str(error)) from error

    def write_struct(self, name: str, value: "msgspec.Struct") -> None:
        """Write `value` as JSON, one line per member so that a person can read it."""
        import msgspec

        self.write(name, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")

    def _sync_folder(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def corrupt(path: Path, detail: str) -> UserError:
    """The error for a state file that is not what this program wrote."""
    return UserError(
        "state-corrupt",
        f"The state file {path} is damaged ({detail}).",
        "Put a good copy of it back, or move the file away to start without what it held.",
    )


def write_error(path: Path, error: OSError) -> UserError:
    """The error for a state file that the file system refuses to write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space on that disk and try again; the earlier state is untouched."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "Run the command with sudo, or choose a folder of your own with --state DIR."
        return UserError("no-permission", f"Cannot write {path}: {error.strerror}.", hint, Exit.REFUSED)
    else:
        hint = "Choose another folder with --state DIR."
    return UserError("state-write-failed", f"Cannot write {path}: {error.strerror}.", hint)
