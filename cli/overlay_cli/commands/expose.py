"""`overlay expose TARGET`, `overlay expose ls | rm`: what this node publishes to the outside."""

import difflib
from typing import Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperCommand, TyperGroup

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.options import Json, NodeState, Quiet

_ADD = "TARGET"
"""The name of the command that takes a target: what the help of `overlay expose` shows beside `ls` and `rm`."""


class _ExposeGroup(TyperGroup):
    """A group whose first word may be a target instead of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_ADD, *args]
        return super().parse_args(ctx, args)


class _AddCommand(TyperCommand):
    """Its own name stands for the target in the usage line."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]"]


expose_app = typer.Typer(
    cls=_ExposeGroup,
    help="Publish a service of this machine on the server: overlay expose TARGET --public PORT.",
    no_args_is_help=True,
    epilog="Example: overlay expose tcp://127.0.0.1:8080 --public 9000",
)


@expose_app.command(_ADD, cls=_AddCommand, epilog="Example: overlay expose udp://127.0.0.1:53 --public 5353")
def add_exposure(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="tcp://HOST:PORT or udp://HOST:PORT.")],
    state: NodeState,
    public: Annotated[
        str,
        typer.Option(
            metavar="[HOST:]PORT",
            envvar="OVERLAY_PUBLIC",
            help="Where users reach it on the server; without this the server picks a port.",
            show_default=False,
        ),
    ] = "",
    known_as: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            envvar="OVERLAY_KNOWN_AS",
            help="A name of the public DNS that leads to the server and is this exposure's alone; may be repeated. "
            "Peers who ask for it come straight to this machine, at the same port.",
            show_default=False,
        ),
    ] = None,
    service: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            envvar="OVERLAY_SERVICE",
            help="What it is, for peers who look for _NAME._tcp in the network's domain. [default: by TARGET's port]",
            show_default=False,
        ),
    ] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish TARGET, a service that this machine can reach."""
    _reject_mistyped_command(target)
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    with output.working("Asking the server…", quiet=quiet or json):
        wish = {"target": target, "public": public, "known_as": known_as or [], "service": service}
        exposure = client.request("POST", "/v1/exposures", wish, timeout=30)
    if json:
        output.print_json(exposure)
    elif quiet:
        output.print_line(exposure["public"])
    else:
        output.print_line(f"{exposure['id']}  {exposure['public']} → {exposure['target']}")


@expose_app.command("ls", epilog="Example: overlay expose ls --json")
def list_exposures(state: NodeState, json: Json = False) -> None:
    """List what this node publishes."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/exposures")
    if json:
        output.print_json(document)
        return
    from overlay_cli.tables import exposure_table

    output.show(exposure_table(document["exposures"]))


@expose_app.command("rm", epilog="Example: overlay expose rm x1")
def remove_exposure(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay expose ls' shows it.")],
    state: NodeState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish it no longer; open connections end."""
    from overlay.daemon.client import LocalClient

    LocalClient(state).request("DELETE", f"/v1/exposures/{quote(id, safe='')}", timeout=30)
    if json:
        output.print_json({"removed": id})
    elif not quiet:
        output.note(f"{id} is no longer published.")


def _reject_mistyped_command(word: str) -> None:
    """`lss` is a command mistyped, not a target: nothing with a colon or a slash in it is."""
    near = difflib.get_close_matches(word, ("ls", "rm"), 1)
    if near and ":" not in word and "/" not in word:
        message = f"No such command '{word}'. Did you mean '{near[0]}'?"
        raise UserError("unknown-command", message, "See 'overlay expose --help'.", Exit.USAGE)
