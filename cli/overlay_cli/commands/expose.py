"""`overlay expose TARGET`, `overlay expose ls | rm | logs`: what this node publishes to the outside."""

import difflib
import json as jsonlib
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperCommand, TyperGroup

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.commands import expose_options as options
from overlay_cli.options import CaFile, Carrier, Json, NodeState, Proxy, Quiet, read_invite, way_settings

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient
    from overlay_cli.credentials import Made

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
    help="Publish a service of this machine on the server: overlay expose TARGET [--host NAME | --public PORT].",
    no_args_is_help=True,
    epilog="Example: overlay expose tcp://127.0.0.1:22 --public 9022",
)


@expose_app.command(_ADD, cls=_AddCommand, epilog="Example: overlay expose 3000 --host app.example.com")
def add_exposure(
    target: options.Target,
    state: NodeState,
    public: options.Public = "",
    host: options.Host = "",
    tunnel: options.Tunnel = "auto",
    foreground: options.Foreground = None,
    known_as: options.KnownAs = None,
    service: options.Service = "",
    listing: options.Listing = False,
    insecure_target: options.InsecureTarget = False,
    target_ca: options.TargetCa = None,
    allow: options.Allow = None,
    deny: options.Deny = None,
    users: options.Users = "",
    bearer: options.Bearer = "",
    secret_link: options.SecretLink = False,
    max_connections: options.MaxConnections = 0,
    private: options.Private = "",
    for_tag: options.ForTag = None,
    token: options.Token = False,
    group: options.Group = "",
    balance: options.Balance = "least",
    health: options.Health = "",
    invite: options.Invite = None,
    carrier: Carrier = "auto",
    proxy: Proxy = None,
    ca: CaFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish TARGET, a service that this machine can reach."""
    _reject_mistyped_command(target)
    from overlay.node.settings import check_ways
    from overlay_cli.credentials import make_credentials
    from overlay_cli.publisher import end_publisher, find_publisher
    from overlay_cli.targets import absolute_target

    ways = way_settings(carrier, proxy, ca)
    check_ways(ways["carriers"], ways["proxy"])
    made = make_credentials(users=users, bearer=bearer, link=secret_link, private=token)
    client, started = find_publisher(state, read_invite(invite), ways, quiet=quiet or json)
    wish = {
        "target": absolute_target(target),
        "public": public,
        "host": host,
        "tunnel": tunnel,
        "known_as": known_as or [],
        "service": service,
        "options": options.target_options(listing=listing, insecure=insecure_target, ca=target_ca),
        "terms": options.terms(
            allow=allow,
            deny=deny,
            credentials=made.access,
            max_connections=max_connections,
            group=group,
            balance=balance,
            health=health,
            private=private,
            for_tag=for_tag,
            token=made.private,
        ),
    }
    try:
        with output.working("Asking the server…", quiet=quiet or json):
            exposure = client.request("POST", "/v1/exposures", wish, timeout=30)
    except UserError:
        if started:
            end_publisher(client)
        raise
    _show_exposed(exposure, made, json=json, quiet=quiet)
    if foreground is None:
        foreground = (bool(exposure["url"]) or started) and sys.stdout.isatty() and not (json or quiet)
    if foreground:
        try:
            _stay(client, exposure, json=json, quiet=quiet)
        finally:
            if started:
                end_publisher(client)


def _show_exposed(exposure: dict[str, Any], made: "Made", *, json: bool, quiet: bool) -> None:
    """And what was made for users, which nobody can show later."""
    from overlay_cli.credentials import with_link

    shown = dict(made.shown)
    if "link" in shown:
        exposure["url"] = shown["link"] = with_link(exposure["url"], shown["link"])
    if json:
        output.print_json({**exposure, **({"secrets": shown} if shown else {})})
        return
    place = exposure["url"] or exposure["public"]
    output.print_line(place if quiet else f"{exposure['id']}  {place} → {exposure['target']}")
    for name, secret in shown.items():
        if name != "link":
            output.note(f"{name:<9}{secret}")


def _stay(client: "LocalClient", exposure: dict[str, Any], *, json: bool, quiet: bool) -> None:
    """Show requests until somebody ends it, and then give the exposure back."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        if exposure["url"]:
            if sys.stdout.isatty() and not (json or quiet):
                import segno

                segno.make(exposure["url"], error="l", micro=False).terminal(compact=True, border=2)
                output.note("Ctrl-C ends it.")
            _show_requests(client, exposure["id"], json=json, quiet=quiet)
        else:
            while True:
                signal.pause()
    except KeyboardInterrupt:
        client.request("DELETE", f"/v1/exposures/{quote(exposure['id'], safe='')}", timeout=30)
        raise


def _show_requests(client: "LocalClient", name: str, *, json: bool, quiet: bool = False) -> None:
    from overlay_cli.requests import request_line

    waiting = b""
    with client.stream("GET", f"/v1/exposures/{quote(name, safe='')}/requests") as chunks:
        for data in chunks:
            *lines, waiting = (waiting + data).split(b"\n")
            for line in filter(None, lines):
                if json:
                    output.print_line(line.decode())
                elif not quiet:
                    output.print_line(request_line(jsonlib.loads(line)))
            sys.stdout.flush()


@expose_app.command("logs", epilog="Example: overlay expose logs x1")
def show_requests(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay expose ls' shows it.")],
    state: NodeState,
    json: Json = False,
) -> None:
    """Show users' requests to an exposure by http as they come; with --json, a document a line."""
    from overlay.daemon.client import LocalClient

    _show_requests(LocalClient(state), id, json=json)


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
    near = difflib.get_close_matches(word, ("ls", "rm", "logs"), 1)
    if near and ":" not in word and "/" not in word:
        message = f"No such command '{word}'. Did you mean '{near[0]}'?"
        raise UserError("unknown-command", message, "See 'overlay expose --help'.", Exit.USAGE)
