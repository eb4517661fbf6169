"""`overlay netcheck`: what this network lets through to the server."""

from typing import Annotated, Any

import typer

from overlay.errors import Exit
from overlay_cli import output
from overlay_cli.options import CaFile, Carrier, Json, NodeState, Proxy, Quiet, way_settings


def netcheck(
    state: NodeState,
    server: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITE|ADDRESS]",
            help="An invite, or an address of the server of this machine's network; without this the server that it "
            "has joined.",
            show_default=False,
        ),
    ] = None,
    carrier: Carrier = "auto",
    proxy: Proxy = None,
    ca: CaFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try every carrier to the server, and say which works and why the others do not.

    Needs no running node, and disturbs none.
    """
    ways = way_settings(carrier, proxy, ca)
    with output.working("Trying every carrier…", quiet=quiet or json):
        report = _check(state, (server or "").strip(), ways)
    if json:
        output.print_json(report)
    elif not quiet:
        from overlay_cli.tables import net_report

        output.show(net_report(report))
    if report["best"] is None:
        raise typer.Exit(Exit.UNREACHABLE)


def _check(state: Any, server: str, ways: dict[str, str]) -> dict[str, Any]:
    import anyio
    import msgspec

    from overlay.daemon.state import StateDir
    from overlay.node.netcheck import check_from

    return dict(msgspec.to_builtins(anyio.run(check_from, StateDir(state), server, ways)))
