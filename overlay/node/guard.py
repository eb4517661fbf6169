"""A process of one shell that waits for the daemon's end, and puts the system's names back if the daemon could not.

Needed where the system's name servers cannot stand behind ours in a list: musl asks all of a list at once and takes the
first answer, so that ours must stand alone there, and its address goes with a daemon that is killed.
"""

import subprocess
import sys
from pathlib import Path

from overlay.daemon.state import StateDir
from overlay.errors import UserError

_SCRIPT = 'read -r _ || exec "$@"'  # a word: all is put back; the pipe's end alone: the daemon is gone


class Guard:
    """Runs from `start` to `end`. Raises `OSError` if it cannot."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, state: StateDir) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "sh", sys.executable, "-m", "overlay.node.guard", str(state.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what ends the daemon by its terminal or group does not end this
            )

    def end(self) -> None:
        """All is put back. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate(b"done\n")


def main(path: Path) -> None:
    """Put back what a daemon left, unless the next one is there and has."""
    from overlay.node.names import restore_system

    state = StateDir(path)
    try:
        with state.lock():
            restore_system(state)
    except UserError:
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
