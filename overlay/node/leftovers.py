"""What a daemon that was killed left on the system, as its state folder says, and that `overlay down` takes away. The
next daemon does so when it starts."""

from pathlib import Path

import anyio

from overlay.daemon.state import StateDir
from overlay.node.names import restore_system
from overlay.node.return_routes import ReturnRoutes


def take_away(path: Path) -> bool:
    """→ whether there was something. Raises `UserError`: "already-running", or what the file system refuses."""
    state = StateDir(path)
    with state.lock():
        found = restore_system(state)
        return anyio.run(ReturnRoutes(state).restore) or found
