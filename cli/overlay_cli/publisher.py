"""The daemon that `overlay expose` and `overlay connect` work by: the one of 'overlay up', or else one without a
network interface and without rights, started for them and ended when nothing is published or connected any more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from overlay.errors import Exit, UserError
from overlay_cli import output

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient

START_TIMEOUT = 60.0
"""Seconds, as for 'overlay up'."""
STOP_TIMEOUT = 15.0


def find_publisher(
    state: Path,
    invite: str,
    ways: dict[str, str],
    *,
    quiet: bool,
    without: str = "publish without: overlay expose TARGET --invite INVITE",
) -> "tuple[LocalClient, bool]":
    """→ the daemon of the folder `state`, and whether it was started just now.

    One is started where an invite is given, or an ordinary user has joined before. `ways`: as
    `overlay_cli.options.way_settings` has them; `without`: what can be done instead of joining. Raises `UserError`:
    "not-running" (exit 3), what the start raises.
    """
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    try:
        client.request("GET", "/v1/exposures")
    except UserError as error:
        if error.code != "not-running":
            raise
        if not invite and not _may_start(state):
            raise UserError(
                "not-running",
                f"No daemon is running on the state folder {state}.",
                f"Join the network with 'sudo overlay up', or {without}.",
                Exit.NOT_RUNNING,
            ) from error
    else:
        return client, False
    from overlay.daemon.launch import launch
    from overlay.daemon.state import StateDir
    from overlay.node.settings import NodeSettings

    settings = NodeSettings(
        state=str(state.absolute()),
        invite=invite,
        tun=False,
        names=False,
        port_mapping=False,
        carriers=ways["carriers"],
        proxy=ways["proxy"],
        no_proxy=ways["no_proxy"],
        ca_file=ways["ca_file"],
    )
    StateDir(state).open()
    with output.working("Connecting…", quiet=quiet):
        launch("overlay.node", settings, state, START_TIMEOUT)
    return client, True


def end_publisher(client: "LocalClient") -> None:
    """What was started for an exposure or a connection ends with it, unless there are more by now."""
    kinds = ("exposures", "connections")
    if not any(client.request("GET", f"/v1/{kind}")[kind] for kind in kinds):
        client.request("POST", "/v1/down", timeout=STOP_TIMEOUT)


@contextmanager
def unless_interrupted(sentence: str, *errors: type[Exception]) -> Iterator[None]:
    """Who ends a command while the daemon is asked, or meets one of these errors, is told what may be left of it."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, *errors)):
            output.note(sentence)
        raise


def _may_start(state: Path) -> bool:
    import os

    from overlay.node.memory import JOINED_FILE

    return os.geteuid() != 0 and (state / JOINED_FILE).exists()
