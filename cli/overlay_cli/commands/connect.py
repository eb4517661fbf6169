"""`overlay connect NAME`, `overlay connect ls | rm`: local ports that lead to peers' private exposures."""

import signal
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.first_word import FirstWordCommand, FirstWordGroup
from overlay_cli.options import Json, NodeState, Quiet, TokenFile, read_invite, read_token, way_settings

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient

connect_app = typer.Typer(
    cls=FirstWordGroup,
    help="Reach what a peer exposes by --private NAME at a port of this machine: overlay connect NAME.",
    no_args_is_help=True,
    epilog="Example: overlay connect db --listen 127.0.0.1:5432",
)


@connect_app.command(
    "NAME",
    cls=FirstWordCommand,
    epilog="Example: overlay connect db --listen 127.0.0.1:5432   (to have it stay: --background)",
)
def connect(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As 'overlay expose … --private NAME' has it.", show_default=False)
    ],
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
    background: Annotated[
        bool,
        typer.Option(
            "--background",
            help="Return at once and stay connected, after a restart of this machine too, until 'overlay connect rm'.",
        ),
    ] = False,
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
    stays = False
    try:
        with output.working("Asking the server…", quiet=quiet or json):
            if background:
                made = client.request("POST", "/v1/connections", {**wish, "listen": listen}, timeout=30)
                stays = True
            else:
                opened = open_local(endpoint, ask)
        if background:
            _show(made, made["id"], json=json, quiet=quiet)
            return
        document = {"name": name, "listen": opened.listen, "node": opened.node, "protocol": opened.protocol}
        _show(document, "", json=json, quiet=quiet)
        if not (json or quiet):
            output.note("Ctrl-C ends it.")
        output.flush()
        anyio.run(opened.run)
    finally:
        if started and not stays:
            end_publisher(client)


@connect_app.command("ls", epilog="Example: overlay connect ls --json")
def list_connections(state: NodeState, json: Json = False) -> None:
    """List what is connected in the background."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/connections")
    if json:
        output.print_json(document)
        return
    from overlay_cli.tables import connection_table

    output.show(connection_table(document["connections"]))


@connect_app.command("rm", epilog="Example: overlay connect rm c1   (or: overlay connect rm db)")
def remove_connection(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay connect ls' shows it, or its name there.")],
    state: NodeState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """End what is connected in the background; what is open through it ends."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    name = _id_of(client, id)
    client.request("DELETE", f"/v1/connections/{quote(name, safe='')}", timeout=30)
    if json:
        output.print_json({"removed": name})
    elif not quiet:
        output.note(f"{id} is no longer connected.")


def _show(made: dict[str, Any], identity: str, *, json: bool, quiet: bool) -> None:
    if json:
        output.print_json(made)
        return
    start = f"{identity}  " if identity else ""
    output.print_line(made["listen"] if quiet else f"{start}{made['listen']} → {made['name']} of {made['node']}")


def _id_of(client: "LocalClient", word: str) -> str:
    """The id of what is called so: by its id, or by the name of what it leads to. Raises `UserError`
    ("connection-ambiguous")."""
    known = client.request("GET", "/v1/connections")["connections"]
    if any(each["id"] == word for each in known):
        return word
    found = [each["id"] for each in known if each["name"] == word.lower()]
    if len(found) > 1:
        raise UserError(
            "connection-ambiguous",
            f"Several ports lead to '{word}'.",
            f"Name one of {', '.join(found)}.",
            Exit.USAGE,
        )
    return found[0] if found else word
