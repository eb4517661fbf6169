"""`overlay up | down | status`: this machine's part in the network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from overlay.errors import UserError
from overlay_cli import output
from overlay_cli.options import (
    CaFile,
    Carrier,
    Dscp,
    Json,
    NodeState,
    PortMapping,
    Proxy,
    Quiet,
    Verbose,
    read_invite,
    verbosity,
    way_settings,
)

START_TIMEOUT = 60.0
"""Seconds for the daemon to say that it is connected, or why not: its own patience with a silent server is shorter."""
STOP_TIMEOUT = 15.0


def up(
    state: NodeState,
    invite: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITE]",
            envvar="OVERLAY_INVITE",
            help="What 'overlay invite' printed on the server; - reads it from standard input. Needed the first time.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="OVERLAY_NAME",
            help="This machine's name in the network; without this its host name.",
            show_default=False,
        ),
    ] = None,
    interface: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="OVERLAY_INTERFACE",
            help="The network interface's name; without this the first free overlay0, overlay1, …",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            envvar="OVERLAY_PORT",
            help="The UDP port that peers send to; without this one that is free.",
            show_default=False,
        ),
    ] = 0,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="OVERLAY_ENDPOINT",
            help="Where that port is reached from outside, if a router passes it on; may be repeated. Peers are told.",
            show_default=False,
        ),
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]SERVER",
            envvar="OVERLAY_UPSTREAM",
            help="Name server for other names than the network's, instead of the system's: ADDRESS[:PORT], or "
            "tls://ADDRESS[#NAME] for DNS over TLS. With DOMAIN= for names in that domain alone. May be repeated.",
            show_default=False,
        ),
    ] = None,
    carrier: Carrier = "auto",
    proxy: Proxy = None,
    ca: CaFile = None,
    dscp: Dscp = "hide",
    port_mapping: PortMapping = "on",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, for service managers and for a look.")
    ] = False,
    json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Join the network, or come back to it. Returns once it works."""
    from overlay.node.settings import NodeSettings, check_ways, parse_endpoints, parse_upstreams

    ways = way_settings(carrier, proxy, ca)
    check_ways(ways["carriers"], ways["proxy"])
    parse_endpoints(tuple(endpoint or ()))
    parse_upstreams(tuple(upstream or ()))
    settings = NodeSettings(
        state=str(state.absolute()),
        invite=read_invite(invite),
        name=name or "",
        interface=interface or "",
        port=port,
        endpoints=tuple(endpoint or ()),
        upstreams=tuple(upstream or ()),
        dscp=dscp,
        port_mapping=port_mapping == "on",
        carriers=ways["carriers"],
        proxy=ways["proxy"],
        no_proxy=ways["no_proxy"],
        ca_file=ways["ca_file"],
        verbosity=verbosity(verbose, quiet),
    )
    if foreground:
        from overlay.node.daemon import run

        run(settings)
        return
    from overlay.daemon.client import LocalClient
    from overlay.daemon.launch import launch
    from overlay.daemon.state import StateDir

    StateDir(state).open()
    with output.working("Connecting…", quiet=quiet or json):
        launch("overlay.node", settings, state, START_TIMEOUT)
        status = LocalClient(state).request("GET", "/v1/status")
    if not quiet or json:
        _print_status(status, json=json, verbose=bool(verbose))


def down(state: NodeState, json: Json = False, quiet: Quiet = False) -> None:
    """Leave the network until the next 'overlay up', and give the system its settings back."""
    from overlay.daemon.client import LocalClient

    with output.working("Stopping…", quiet=quiet or json):
        try:
            LocalClient(state).request("POST", "/v1/down", timeout=STOP_TIMEOUT)
        except UserError as error:
            if error.code != "not-running" or not _take_away_leftovers(state):
                raise
        _wait_until_gone(state)
    if json:
        output.print_json({"state": "stopped"})
    elif not quiet:
        output.note("Stopped.")


def status(state: NodeState, json: Json = False, verbose: Verbose = 0) -> None:
    """Show peers, paths, addresses and exposures."""
    from overlay.daemon.client import LocalClient

    _print_status(LocalClient(state).request("GET", "/v1/status"), json=json, verbose=bool(verbose))


def _print_status(document: dict[str, Any], *, json: bool, verbose: bool) -> None:
    if json:
        from overlay_cli.terms import without_secrets

        shown = [without_secrets(exposure) for exposure in document.get("exposures", ())]
        output.print_json({**document, "exposures": shown})
        return
    from overlay_cli.tables import node_summary, server_summary

    # `--state` may name a server's folder: its document has no peers.
    summary = node_summary if "peers" in document else server_summary
    output.show(summary(document, verbose=verbose))


def _take_away_leftovers(state: Path) -> bool:
    """Of a daemon that was killed. → whether there was something"""
    import os

    if os.geteuid() != 0 or not state.is_dir():
        return False
    from overlay.node.leftovers import take_away

    return take_away(state)


def _wait_until_gone(state: Path) -> None:
    """The daemon answers before it ends; `down` returns when it has let go of its folder. Raises `UserError`."""
    import time

    from overlay.daemon.state import StateDir

    deadline = time.monotonic() + STOP_TIMEOUT
    while True:
        try:
            with StateDir(state).lock():
                return
        except UserError as error:
            if error.code != "already-running":
                return  # not ours to lock: we only may talk to the daemon
            if time.monotonic() >= deadline:
                raise UserError(
                    "stop-timeout",
                    f"The daemon of {state} has not ended after {STOP_TIMEOUT:.0f} seconds.",
                    "See its log in that folder; if it hangs, end its process.",
                ) from error
        time.sleep(0.02)
