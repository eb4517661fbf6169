"""The options of `overlay expose TARGET`, by what they are about, and the terms that come of them.

Those about one thing stand in one panel of the help. A new option is declared here, and stands in the signature of
`overlay_cli.commands.expose.add_exposure` with the same name; with that, it is a key of files of exposures, too.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from overlay_cli.sizes import parse_size

MANY: Final = "Many at once"
PLACE: Final = "Where"
WHO: Final = "Who"
HOW_MUCH: Final = "How much"
LOOK: Final = "Looking at requests"
TOLD: Final = "What the target is told"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="PORT, HOST:PORT, http://HOST:PORT, tcp://HOST:PORT or udp://HOST:PORT. Without a scheme: http, or "
        "tcp if --public is given.",
        show_default=False,
    ),
]

# many at once --------------------------------------------------------------------------------------------------------

File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Publish what this TOML file says instead of TARGET, and follow its changes: for each a table "
        '[exposures.NAME], with target = "3000" and any of the options here by their long names.',
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
        help="For http: the name, and the path below it, that users type. It must lead to the server; "
        "*.example.com stands for all names of one label below.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Tunnel = Annotated[
    Literal["auto", "single", "tcp", "tls", "ws", "wss"],
    typer.Option(
        "--tunnel",
        envvar="OVERLAY_TUNNEL",
        help="How users' connections travel to this machine: by the overlay itself (single), encrypted from end to "
        "end, or each by a connection of its own to the server; auto: single where the network is up at both ends, "
        "else tls.",
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
    "context state file dry_run foreground show_secrets invite carrier proxy ca json quiet help".split()
)
"""Parameters of the command that say how it is run; all others say what is exposed."""


def wish(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`overlay.node.status.ExposeWish` as the local API takes it. `given`: at least all parameters of the command that
    say what is exposed, by their names; paths start from `folder`."""
    return {
        "target": given["target"],
        "public": given["public"],
        "host": given["host"],
        "tunnel": given["tunnel"],
        "known_as": given["known_as"] or [],
        "service": given["service"],
        "inspect": parse_size(given["inspect_body"]) if given["inspect"] else 0,
        "terms": terms(**{name: given[name] for name in inspect.signature(terms).parameters}),
    }


def terms(*, max_connections: int) -> dict[str, Any]:
    """`overlay.wire.control.terms.Terms` as the local API takes them."""
    return {"limits": {"connections": max_connections}}
