"""`overlay expose TARGET`, `overlay expose ls | rm | logs`: what this node publishes to the outside."""

import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from typer.core import TyperCommand, TyperGroup

from overlay.errors import Exit, UserError
from overlay_cli import output, wishes
from overlay_cli.commands import expose_options as options
from overlay_cli.options import CaFile, Carrier, Json, NodeState, Proxy, Quiet, read_invite, way_settings
from overlay_cli.requests import show_requests

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


@expose_app.command(
    _ADD,
    cls=_AddCommand,
    epilog="Example: overlay expose 3000 --host app.example.com   (or: overlay expose --file exposures.toml)",
)
def add_exposure(
    context: typer.Context,
    state: NodeState,
    target: options.Target = None,
    file: options.File = None,
    dry_run: options.DryRun = False,
    unattended: options.Unattended = False,
    public: options.Public = "",
    host: options.Host = "",
    tunnel: options.Tunnel = "auto",
    tls_end: options.TlsEnd = None,
    acme_email: options.AcmeEmail = "",
    acme_directory: options.AcmeDirectory = "",
    foreground: options.Foreground = None,
    known_as: options.KnownAs = None,
    service: options.Service = "",
    listing: options.Listing = False,
    insecure_target: options.InsecureTarget = False,
    target_ca: options.TargetCa = None,
    target_proxy: options.TargetProxy = "",
    target_proxy_auth: options.TargetProxyAuth = None,
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
    connection_rate: options.ConnectionRate = "",
    request_rate: options.RequestRate = "",
    bandwidth: options.Bandwidth = "",
    quota: options.Quota = "",
    expires: options.Expires = "",
    forwarded: options.Forwarded = "set",
    host_header: options.HostHeader = "",
    request_header: options.RequestHeader = None,
    remove_request_header: options.RemoveRequestHeader = None,
    response_header: options.ResponseHeader = None,
    remove_response_header: options.RemoveResponseHeader = None,
    proxy_protocol: options.ProxyProtocol = "none",
    transparent: options.Transparent = False,
    inspect: options.Inspect = False,
    inspect_body: options.InspectBody = "64kB",
    show_secrets: options.ShowSecrets = False,
    invite: options.Invite = None,
    carrier: Carrier = "auto",
    proxy: Proxy = None,
    ca: CaFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish TARGET, a service that this machine can reach."""
    given = dict(locals())  # what wishes.wish and files of exposures know by these names
    _check_usage(context, target, file, dry_run=dry_run)
    wishes.check_typed(context)
    from overlay.node.settings import check_ways
    from overlay_cli.publisher import end_publisher, find_publisher

    ways = way_settings(carrier, proxy, ca)
    check_ways(ways["carriers"], ways["proxy"])
    connect = partial(find_publisher, state, read_invite(invite), ways, quiet=quiet or json)
    if file is not None:
        from overlay_cli import followed_file
        from overlay_cli.exposure_file import ExposureFile

        exposure_file = ExposureFile(
            file, context, signature(add_exposure), wishes.wish, may_make_secrets=not unattended
        )
        if dry_run:
            raise typer.Exit(followed_file.check(exposure_file, state, json=json, quiet=quiet))
        if foreground is False:
            raise typer.Exit(followed_file.apply_once(exposure_file, connect, json=json, quiet=quiet or unattended))
        followed_file.follow(exposure_file, connect, json=json, quiet=quiet)
        return
    wish = wishes.wish(given, Path())
    client, started = connect()
    try:
        with output.working("Asking the server…", quiet=quiet or json):
            exposure = client.request("POST", "/v1/exposures", wish.document, timeout=30)
    except UserError:
        if started:
            end_publisher(client)
        raise
    _show_exposed(exposure, wish.made, json=json, quiet=quiet)
    if foreground is None:
        foreground = (bool(exposure["url"]) or started) and sys.stdout.isatty() and not (json or quiet)
    if foreground:
        try:
            _stay(client, exposure, wish.made, json=json, quiet=quiet, show_secrets=show_secrets)
        finally:
            if started:
                end_publisher(client)
    elif exposure["inspect"] and not (json or quiet):
        output.note(f"See its requests with: overlay expose inspect {exposure['id']}")


def _show_exposed(exposure: dict[str, Any], made: "Made", *, json: bool, quiet: bool) -> None:
    """And what was made for users, which nobody can show later."""
    from overlay.node.places import shown_place
    from overlay_cli.credentials import with_link
    from overlay_cli.terms import without_secrets

    shown = dict(made.shown)
    if "link" in shown:
        exposure["url"] = shown["link"] = with_link(exposure["url"], shown["link"])
    if json:
        output.print_json({**without_secrets(exposure), **({"secrets": shown} if shown else {})})
        return
    place = exposure["url"] or exposure["public"]
    output.print_line(place if quiet else f"{exposure['id']}  {shown_place(place)} → {exposure['target']}")
    if exposure["certificate"] == "self-signed" and not quiet:
        output.note("Its certificate is self-signed; 'overlay expose ls --json' says when an authority's is there.")
    for name, secret in shown.items():
        if name != "link":
            output.note(f"{name:<9}{secret}")


def _stay(
    client: "LocalClient", exposure: dict[str, Any], made: "Made", *, json: bool, quiet: bool, show_secrets: bool
) -> None:
    """Show requests until somebody ends it, and then give the exposure back."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        if exposure["inspect"] and not (json or quiet):
            from overlay_cli.inspect_terminal import inspect as inspect_requests

            note = "  ".join(f"{name} {secret}" for name, secret in made.shown.items() if name != "link")
            inspect_requests(client, exposure, note=note, show_secrets=show_secrets)
            return
        if exposure["url"] and sys.stdout.isatty() and not (json or quiet):
            import segno

            segno.make(exposure["url"], error="l", micro=False).terminal(compact=True, border=2)
            output.note("Ctrl-C ends it.")
        if exposure["url"] and exposure["terms"].get("tls_end") != "node":
            show_requests(client, exposure["id"], json=json, quiet=quiet)
            output.note(f"{exposure['id']} is no longer published; the log of overlay on this machine says why.")
        else:
            while True:
                signal.pause()
    finally:
        with _suppress_unknown():  # somebody else has given it back
            client.request("DELETE", f"/v1/exposures/{quote(exposure['id'], safe='')}", timeout=30)


@expose_app.command("logs", epilog="Example: overlay expose logs x1")
def show_log(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay expose ls' shows it, or its name there.")],
    state: NodeState,
    json: Json = False,
) -> None:
    """Show users' requests to an exposure by http as they come; with --json, a document a line."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    show_requests(client, _id_of(client, id), json=json)


@expose_app.command("inspect", epilog="Example: overlay expose inspect x1   (after: overlay expose 3000 --inspect)")
def inspect_exposure(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'overlay expose ls' shows it, or its name there.")],
    state: NodeState,
    show_secrets: options.ShowSecrets = False,
    json: Json = False,
) -> None:
    """Look at the last requests to what is exposed with --inspect; with --json, list them."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    name = _id_of(client, id)
    shown = [each for each in client.request("GET", "/v1/exposures")["exposures"] if each["id"] == name]
    if not shown:
        raise UserError("exposure-unknown", f"This node has no exposure '{id}'.", "See 'overlay expose ls'.")
    if not shown[0]["inspect"]:
        raise UserError("not-inspected", f"{id} is not inspected.", "Give it back, and expose it with --inspect.")
    if json:
        page = client.request("POST", "/v1/inspector")["url"]
        output.print_json({"url": page, **client.request("GET", f"/v1/exchanges?exposure={name}")})
        return
    from overlay_cli.inspect_terminal import inspect as inspect_requests

    inspect_requests(client, shown[0], show_secrets=show_secrets)


@expose_app.command("replay", epilog="Example: overlay expose replay r7 --json")
def replay_request(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a request, as the inspector shows it.")],
    state: NodeState,
    show_secrets: options.ShowSecrets = False,
    json: Json = False,
) -> None:
    """Send a request that was inspected to the target once more, and show the answer."""
    from overlay.daemon.client import LocalClient
    from overlay_cli.inspect_terminal import replay

    replay(LocalClient(state), id, show_secrets=show_secrets, json=json)


@expose_app.command("ls", epilog="Example: overlay expose ls --json")
def list_exposures(state: NodeState, json: Json = False) -> None:
    """List what this node publishes."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    document = client.request("GET", "/v1/exposures")
    files = client.request("GET", "/v1/exposure-files")["files"]
    if json:
        from overlay_cli.terms import without_secrets

        shown = [without_secrets(exposure) for exposure in document["exposures"]]
        output.print_json({**document, "exposures": shown, "files": files})
        return
    from overlay_cli.tables import exposure_table

    output.show(exposure_table(document["exposures"]))
    for each in files:
        if each["problem"]:
            output.note(f"{each['file']}: {each['problem']}")


@expose_app.command("rm", epilog="Example: overlay expose rm x1   (or: overlay expose rm exposures.toml)")
def remove_exposure(
    id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="As 'overlay expose ls' shows it (x3-x13 is a whole range of ports, x4 one of it), or its name there; "
            "or a file that was given with --file, which is followed no longer.",
        ),
    ],
    state: NodeState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish it no longer; open connections end."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    if "/" in id or id.endswith(".toml"):
        from overlay_cli.followed_file import forget

        raise typer.Exit(forget(client, Path(os.path.abspath(id)), json=json, quiet=quiet))
    name = _id_of(client, id)
    client.request("DELETE", f"/v1/exposures/{quote(name, safe='')}", timeout=30)
    if json:
        output.print_json({"removed": name})
    elif not quiet:
        output.note(f"{id} is no longer published.")


@contextmanager
def _suppress_unknown() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if error.code != "exposure-unknown":
            raise


def _id_of(client: "LocalClient", word: str) -> str:
    """The id of what is called so: by its id, or by its name in a file. Raises `UserError`."""
    if re.fullmatch("x[0-9]+", word):
        return word
    shown = client.request("GET", "/v1/exposures")["exposures"]
    found = [each["id"] for each in shown if each["entry"] is not None and each["entry"]["name"] == word]
    if len(found) > 1:
        raise UserError(
            "exposure-ambiguous",
            f"Several files have an entry '{word}'.",
            f"Name one of {', '.join(found)}.",
            Exit.USAGE,
        )
    return found[0] if found else word


def _check_usage(context: typer.Context, target: str | None, file: Path | None, *, dry_run: bool) -> None:
    """Raises `UserError`, exit 2."""
    if target is not None:
        _reject_mistyped_command(target)
    if (target is None) == (file is None):
        what = "Missing argument 'TARGET'" if target is None else "TARGET and --file cannot be together"
        raise _usage(f"{what}.", "Name one of them: overlay expose 3000, or overlay expose --file exposures.toml")
    if file is None:
        if dry_run:
            raise _usage("--dry-run is for --file.", "Leave it out.")
        return
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in wishes.NOT_OF_AN_EXPOSURE and source is not None and source.name == "COMMANDLINE":
            raise _usage(
                f"{parameter.opts[0]} cannot be together with --file.", "Write it into the file, where it is meant."
            )


def _usage(message: str, hint: str) -> UserError:
    return UserError("usage", message, hint, Exit.USAGE)


def _reject_mistyped_command(word: str) -> None:
    """`lss` is a command mistyped, not a target: nothing with a colon or a slash in it is."""
    near = difflib.get_close_matches(word, ("ls", "rm", "logs", "inspect", "replay"), 1)
    if near and ":" not in word and "/" not in word:
        message = f"No such command '{word}'. Did you mean '{near[0]}'?"
        raise UserError("unknown-command", message, "See 'overlay expose --help'.", Exit.USAGE)
