"""`overlay connect NAME`: a local port that leads to a peer's private exposure."""

import signal
from typing import Annotated, Any

import typer

from overlay_cli import output
from overlay_cli.options import Json, NodeState, Quiet, TokenFile, read_invite, read_token, way_settings


def connect(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'overlay expose … --private NAME' has it.")],
    state: NodeState,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="[HOST:]PORT",
            envvar="OVERLAY_CONNECT_LISTEN",
            help="Where programs of this machine find it.",
            show_default="a free port of 127.0.0.1",
        ),
    ] = "",
    token_file: TokenFile = None,
    invite: Annotated[
        str | None,
        typer.Option(
            metavar="INVITE",
            envvar="OVERLAY_INVITE",
            help="Connect without 'overlay up' and without root: what 'overlay invite' printed on the server; - reads "
            "it from standard input. Needed the first time.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reach what a peer exposes by --private NAME at a port of this machine, until Ctrl-C.

    Connections go through the overlay to the peer itself, by the best path that there is; without 'overlay up' on
    either machine they go through the server, which cannot read them. This node must have a tag that is let in, or a
    token.
    """
    import anyio

    from overlay.node.connecting import open_local, parse_listen
    from overlay_cli.publisher import end_publisher, find_publisher

    endpoint = parse_listen(listen)
    wish = {"name": name, "token": read_token(token_file)}
    client, started = find_publisher(
        state,
        read_invite(invite),
        way_settings("auto", None, None),
        quiet=quiet or json,
        without="connect without: overlay connect NAME --invite INVITE",
    )

    def ask() -> dict[str, Any]:
        return client.request("POST", "/v1/connect", wish, timeout=30)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with output.working("Asking the server…", quiet=quiet or json):
            opened = open_local(endpoint, ask)
        if json:
            document = {"name": name, "listen": opened.listen, "node": opened.node, "protocol": opened.protocol}
            output.print_json(document)
        else:
            output.print_line(opened.listen if quiet else f"{opened.listen} → {name} of {opened.node}")
            if not quiet:
                output.note("Ctrl-C ends it.")
        output.flush()
        anyio.run(opened.run)
    finally:
        if started:
            end_publisher(client)
