"""The options of `overlay expose TARGET`, by what they are about, and the terms that come of them.

Those about one thing stand in one panel of the help. A new option is declared here, and stands in the signature of
`overlay_cli.commands.expose.add_exposure` with the same name; with that, it is a key of files of exposures, too, if
`wish` makes something of it.
"""

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from overlay.errors import Exit, UserError
from overlay_cli.credentials import NEW, Made, make_credentials
from overlay_cli.sizes import parse_size
from overlay_cli.targets import absolute_target

MANY: Final = "Many at once"
PLACE: Final = "Where"
WHO: Final = "Who"
HOW_MUCH: Final = "How much"
PRIVATE: Final = "For peers alone"
SEVERAL: Final = "Several machines behind one name or port"
WAY: Final = "The way to the target"
LOOK: Final = "Looking at requests"
TOLD: Final = "What the target is told"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="PORT, HOST:PORT, http://HOST:PORT, https://HOST:PORT, tls://HOST:PORT, tcp://HOST:PORT, "
        "udp://HOST:PORT, unix:PATH of a socket, or a folder (./dist). Without a scheme, and for unix: http, or tcp if "
        "--public is given.",
        show_default=False,
    ),
]

# many at once --------------------------------------------------------------------------------------------------------

File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Publish what this TOML file says instead of TARGET, and follow its changes: a table exposures.NAME for "
        'each, with target = "3000" and any of the options here by their long names.',
        show_default=False,
        rich_help_panel=MANY,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "--check", help="With --file: say what would be done, and do nothing.", rich_help_panel=MANY
    ),
]
Unattended = Annotated[bool, typer.Option("--unattended", hidden=True, help="Nobody sees what this prints.")]

# where ----------------------------------------------------------------------------------------------------------------

Public = Annotated[
    str,
    typer.Option(
        metavar="[HOST:]PORT",
        envvar="OVERLAY_PUBLIC",
        help="A port of its own on the server; without this, and without --host, the server picks one.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="NAME[/PATH]",
        envvar="OVERLAY_HOST",
        help="For http: the name, and the path below it, that users type; for tls: the name alone. It must lead to "
        "the server; *.example.com stands for all names of one label below.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Tunnel = Annotated[
    Literal["auto", "single", "udp", "tcp", "tls", "ws", "wss"],
    typer.Option(
        "--tunnel",
        envvar="OVERLAY_TUNNEL",
        help="How users' connections travel to this machine: by the overlay itself (single), encrypted from end to "
        "end, or each by a connection of its own to the server; auto: single where the network is up at both ends, "
        "else tls.",
        rich_help_panel=PLACE,
    ),
]
TlsEnd = Annotated[
    Literal["target", "server", "node"] | None,
    typer.Option(
        "--tls-end",
        envvar="OVERLAY_TLS_END",
        help="Where the TLS of users ends who come by a name; what is in it goes to the target. node: at this machine, "
        "so that the server has no key to it, sees no requests and logs none.",
        show_default="server for http, target for tls",
        rich_help_panel=PLACE,
    ),
]
AcmeEmail = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        envvar="OVERLAY_EXPOSE_ACME_EMAIL",
        help="With --tls-end node: get and renew the certificate by ACME, under the authority's terms, with this "
        "address to write to. The authority must reach port 443 of the name at the server.",
        show_default="self-signed",
        rich_help_panel=PLACE,
    ),
]
AcmeDirectory = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="OVERLAY_EXPOSE_ACME_DIRECTORY",
        help="Of that authority.",
        show_default="Let's Encrypt",
        rich_help_panel=PLACE,
    ),
]
KnownAs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_KNOWN_AS",
        help="A name of the public DNS that leads to the server and is this exposure's alone; may be repeated. "
        "Peers who ask for it come straight to this machine, at the same port.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Service = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_SERVICE",
        help="What it is, for peers who look for _NAME._tcp in the network's domain.",
        show_default="by TARGET's port",
        rich_help_panel=PLACE,
    ),
]

# the way to the target ------------------------------------------------------------------------------------------------

Listing = Annotated[
    bool,
    typer.Option(
        "--listing",
        envvar="OVERLAY_LISTING",
        help="Of a folder: show what is in it where there is no index.html.",
        rich_help_panel=WAY,
    ),
]

InsecureTarget = Annotated[
    bool,
    typer.Option(
        "--insecure-target",
        envvar="OVERLAY_INSECURE_TARGET",
        help="Of a target by https: take any certificate.",
        rich_help_panel=WAY,
    ),
]
TargetCa = Annotated[
    Path | None,
    typer.Option(
        "--target-ca",
        metavar="FILE",
        envvar="OVERLAY_TARGET_CA",
        help="Of a target by https: certificates (PEM) that it is verified by, instead of the system's.",
        show_default=False,
        rich_help_panel=WAY,
    ),
]

# who -----------------------------------------------------------------------------------------------------------------

Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NETWORK",
        envvar="OVERLAY_ALLOW",
        help="An address or network, such as 192.0.2.0/24, from which users may come; may be repeated.",
        show_default="from everywhere",
        rich_help_panel=WHO,
    ),
]
Deny = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NETWORK",
        envvar="OVERLAY_DENY",
        help="One from which nobody may come, whatever --allow says; may be repeated.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
Users = Annotated[
    str,
    typer.Option(
        "--users",
        metavar="FILE|new",
        envvar="OVERLAY_USERS",
        help="For http: a file of NAME:PASSWORD, one a line, of whom one must be (basic authentication); 'new' makes "
        "a user and a password. Of this, --bearer and --secret-link any one suffices.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
Bearer = Annotated[
    str,
    typer.Option(
        "--bearer",
        metavar="FILE|new",
        envvar="OVERLAY_BEARER",
        help="For http: a file of tokens, one a line, of which programs must send one ('Authorization: Bearer'); "
        "'new' makes one.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
SecretLink = Annotated[
    bool,
    typer.Option(
        "--secret-link",
        envvar="OVERLAY_SECRET_LINK",
        help="For http: whoever has opened the link that this prints may come, by a cookie.",
        rich_help_panel=WHO,
    ),
]

# how much -------------------------------------------------------------------------------------------------------------

MaxConnections = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=8192,
        envvar="OVERLAY_MAX_CONNECTIONS",
        help="So many users at once; more are turned away.",
        show_default="what the server allows, 1024",
        rich_help_panel=HOW_MUCH,
    ),
]

# for peers alone ------------------------------------------------------------------------------------------------------

Private = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_PRIVATE",
        help="Open no public place: only peers reach it, by 'overlay connect NAME'.",
        show_default=False,
        rich_help_panel=PRIVATE,
    ),
]
ForTag = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TAG",
        envvar="OVERLAY_FOR_TAG",
        help="Peers whose invite had this tag; may be repeated.",
        show_default=False,
        rich_help_panel=PRIVATE,
    ),
]
Token = Annotated[
    bool,
    typer.Option("--token", help="Peers who have the token that is made and shown now, once.", rich_help_panel=PRIVATE),
]

# several machines -----------------------------------------------------------------------------------------------------

Group = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_GROUP",
        help="Share the place with all that is exposed with the same --group there, here or on other machines. Who is "
        "first opens it, and has a place picked if he names none.",
        show_default=False,
        rich_help_panel=SEVERAL,
    ),
]
Balance = Annotated[
    Literal["least", "round-robin", "sticky"],
    typer.Option(
        envvar="OVERLAY_BALANCE",
        help="Who of the group serves a user: whoever has the fewest connections, each in turn, or always the same "
        "one, by the user's address.",
        rich_help_panel=SEVERAL,
    ),
]
Health = Annotated[
    str,
    typer.Option(
        metavar="tcp|http[:/PATH]",
        envvar="OVERLAY_HEALTH",
        help="Look each second whether TARGET is well: whether it takes connections, or answers a GET with a status "
        "below 400. Users of a group are led past one that is not.",
        show_default=False,
        rich_help_panel=SEVERAL,
    ),
]

# looking at it --------------------------------------------------------------------------------------------------------

Inspect = Annotated[
    bool,
    typer.Option(
        "--inspect",
        help="For http: keep the last requests with their bodies in this machine's memory, show them here and on a "
        "local web page, and send them again at a key press.",
        rich_help_panel=LOOK,
    ),
]
InspectBody = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="So much of each body is kept, as in 64kB or 2MB.",
        rich_help_panel=LOOK,
    ),
]
ShowSecrets = Annotated[
    bool,
    typer.Option("--show-secrets", help="Show what fields like Authorization and Cookie hold.", rich_help_panel=LOOK),
]

# without 'overlay up' -------------------------------------------------------------------------------------------------

Invite = Annotated[
    str | None,
    typer.Option(
        metavar="INVITE",
        envvar="OVERLAY_INVITE",
        help="Publish without 'overlay up' and without root: what 'overlay invite' printed on the server; - reads it "
        "from standard input. Needed the first time. --carrier, --proxy and --ca are of use here alone.",
        show_default=False,
    ),
]

# this command --------------------------------------------------------------------------------------------------------

Foreground = Annotated[
    bool | None,
    typer.Option(
        "--foreground/--background",
        help="Show users' requests as they come and end with Ctrl-C, or return at once and stay published.",
        show_default="in the foreground for http on a terminal",
    ),
]


NOT_OF_AN_EXPOSURE: Final = frozenset(
    "context state file dry_run unattended foreground show_secrets invite carrier proxy ca json quiet help".split()
)
"""Parameters of the command that say how it is run; all others say what is exposed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """`document`: `overlay.node.status.ExposeWish` as the local API takes it; `made`: secrets that were made for it."""

    document: dict[str, Any]
    made: Made


def wish(given: Mapping[str, Any], folder: Path, *, known: Mapping[str, Any] | None = None) -> Wish:
    """`given`: at least all parameters of the command that say what is exposed, by their names; paths start from
    `folder`. `known`: the terms on which it is exposed already: secrets stay as they are there. Raises `UserError`
    (exit 2)."""
    made = make_credentials(
        users=_secrets_file(given["users"], folder),
        bearer=_secrets_file(given["bearer"], folder),
        link=given["secret_link"],
        private=given["token"],
        known=(known or {}).get("access", {}),
        known_private=(known or {}).get("private", {}).get("token", ""),
    )
    document = {
        "target": absolute_target(given["target"], folder),
        "public": given["public"],
        "host": given["host"],
        "tunnel": given["tunnel"],
        "known_as": given["known_as"] or [],
        "service": given["service"],
        "inspect": parse_size(given["inspect_body"]) if given["inspect"] else 0,
        "options": target_options(listing=given["listing"], insecure=given["insecure_target"], ca=given["target_ca"]),
        "tls": {"acme_email": given["acme_email"], "acme_directory": given["acme_directory"]},
        "terms": terms(
            allow=given["allow"],
            deny=given["deny"],
            credentials=made.access,
            max_connections=given["max_connections"],
            tls_end=given["tls_end"],
            group=given["group"],
            balance=given["balance"],
            health=given["health"],
            private=given["private"],
            for_tag=given["for_tag"],
            token=made.private,
        ),
    }
    return Wish(document, made)


def _secrets_file(name: str, folder: Path) -> str:
    return name if name in ("", "-", NEW) else os.path.join(folder, name)


def target_options(*, listing: bool, insecure: bool, ca: Path | None) -> dict[str, Any]:
    """`overlay.node.targets.TargetOptions` as the local API takes them. Files are read here, with the rights of who
    calls. Raises `UserError` (exit 2)."""
    return {"listing": listing, "insecure": insecure, "ca": "" if ca is None else _read(ca, "--target-ca")}


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            "file-unreadable", f"{path}, which {option} names, cannot be read: {why}.", "Name another file.", Exit.USAGE
        ) from error


def terms(
    *,
    allow: list[str] | None,
    deny: list[str] | None,
    credentials: dict[str, Any],
    max_connections: int,
    group: str,
    balance: str,
    health: str,
    private: str,
    for_tag: list[str] | None,
    token: str,
    tls_end: str | None,
) -> dict[str, Any]:
    """`overlay.wire.control.terms.Terms` as the local API takes them."""
    return {
        "access": {"allow": allow or [], "deny": deny or [], **credentials},
        "limits": {"connections": max_connections},
        "group": {"name": group.lower(), "balance": balance},
        "health": health,
        "private": {"name": private.lower(), "tags": for_tag or [], "token": token},
        "tls_end": tls_end or "",
    }
