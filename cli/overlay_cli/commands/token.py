"""`overlay token add | ls | rm`: who may come through the server to the nodes, by HTTP CONNECT on its one port."""

from typing import Annotated
from urllib.parse import quote

import typer

from overlay_cli import output
from overlay_cli.options import Json, Quiet, ServerState

token_app = typer.Typer(
    help="Tokens for 'overlay proxy' and other clients of HTTP CONNECT, on the server's host.",
    no_args_is_help=True,
    epilog="Example: overlay token add --for b --expires 30d > token; ssh -o ProxyCommand='overlay proxy %h %p "
    "--token-file token' b.local.test",
)


@token_app.command("add", epilog="Example: overlay token add --for b --expires 30d > token")
def add_token(
    state: ServerState,
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="NODE",
            help="Only this node is reached with it; may be repeated.",
            show_default="all nodes",
        ),
    ] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it is good: 90s, 30m, 24h, 7d.")] = "30d",
    json: Json = False,
) -> None:
    """Make a token and print it, alone, once. Whoever has it reaches every port of the nodes: keep it as a password."""
    from overlay.daemon.client import LocalClient
    from overlay_cli.durations import parse_duration

    wish = {"nodes": nodes or [], "expires_s": parse_duration(expires)}
    document = LocalClient(state).request("POST", "/v1/tokens", wish)
    if json:
        output.print_json(document)
    else:
        output.print_line(document["token"])


@token_app.command("ls", epilog="Example: overlay token ls --json")
def list_tokens(state: ServerState, json: Json = False) -> None:
    """List the tokens that there are; what they are, nobody knows any more."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/tokens")
    if json:
        output.print_json(document)
        return
    from overlay_cli.tables import token_table

    output.show(token_table(document["tokens"]))


@token_app.command("rm", epilog="Example: overlay token rm t1")
def remove_token(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay token ls' shows it.")],
    state: ServerState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let nobody through with it any more; what goes through by it ends."""
    from overlay.daemon.client import LocalClient

    LocalClient(state).request("DELETE", f"/v1/tokens/{quote(id, safe='')}")
    if json:
        output.print_json({"removed": id})
    elif not quiet:
        output.note(f"{id} is good no longer.")
