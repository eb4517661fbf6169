"""`overlay node ls | rm | rename`: the nodes as the server's registry has them."""

from typing import Annotated
from urllib.parse import quote

import typer

from overlay_cli import output
from overlay_cli.options import Json, Quiet, ServerState

node_app = typer.Typer(
    help="The nodes of the network, on the server's host.", no_args_is_help=True, epilog="Example: overlay node ls"
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name, as 'overlay node ls' shows it.")]


@node_app.command("ls", epilog="Example: overlay node ls --json")
def list_nodes(state: ServerState, json: Json = False) -> None:
    """List the nodes."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/nodes")
    if json:
        output.print_json(document)
        return
    from overlay_cli.tables import node_table

    output.show(node_table(document["nodes"]))


@node_app.command("rm", epilog="Example: sudo overlay node rm laptop")
def remove_node(name: Name, state: ServerState, json: Json = False, quiet: Quiet = False) -> None:
    """Remove a node: it is out of the network at once and needs a new invite to come back."""
    from overlay.daemon.client import LocalClient

    LocalClient(state).request("DELETE", f"/v1/nodes/{quote(name, safe='')}")
    _tell({"removed": name}, f"{name} is removed.", json=json, quiet=quiet)


@node_app.command("rename", epilog="Example: sudo overlay node rename laptop desk")
def rename_node(
    old: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    state: ServerState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give a node another name."""
    from overlay.daemon.client import LocalClient

    LocalClient(state).request("PATCH", f"/v1/nodes/{quote(old, safe='')}", {"name": new})
    _tell({"renamed": old, "name": new}, f"{old} is now {new}.", json=json, quiet=quiet)


def _tell(document: dict[str, str], sentence: str, *, json: bool, quiet: bool) -> None:
    if json:
        output.print_json(document)
    elif not quiet:
        output.note(sentence)
