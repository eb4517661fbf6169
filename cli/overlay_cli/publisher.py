"""The daemon that `overlay expose` and `overlay connect` work by: the one of 'overlay up', or else one without a
network interface and without rights, started for them and ended when nothing is published any more.
"""

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
    """What was started for an exposure ends with it, unless more is published by now."""
    if not client.request("GET", "/v1/exposures")["exposures"]:
        client.request("POST", "/v1/down", timeout=STOP_TIMEOUT)


def _may_start(state: Path) -> bool:
    import os

    from overlay.node.memory import JOINED_FILE

    return os.geteuid() != 0 and (state / JOINED_FILE).exists()
