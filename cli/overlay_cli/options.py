"""Options that several commands share, and where options come from: command line, then environment, then config file.

`--state` is taken first, because the file `config.toml` in that folder supplies what the command line and the
environment leave open.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from overlay.errors import Exit, UserError

CONFIG_NAME = "config.toml"
LONGEST_TOKEN = 8192  # characters read of a file
LONGEST_INVITE = 65536  # characters read of standard input: far beyond any invite, not endless


def _load_config(context: typer.Context, state: Path) -> Path:
    """Callback of `--state`: the folder's config file becomes the defaults of the command's other options.

    Raises `UserError` ("config-unreadable", "config-malformed", "config-unknown-option").
    """
    if context.resilient_parsing:  # only completing or drawing help
        return state
    path = state / CONFIG_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return state
    except PermissionError:
        # Only its owner may read the folder; a command that needs more of it than the API's socket says so itself.
        return state
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("config-unreadable", f"Cannot read {path}: {error}.", "Mend the file or remove it.") from error
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = 'Write one option per line, as in: name = "laptop"'
        raise UserError("config-malformed", f"{path} is not TOML: {error}.", hint, Exit.USAGE) from error
    context.default_map = {**_named_as_parameters(document, path, context), **(context.default_map or {})}
    return state


def _named_as_parameters(document: dict[str, Any], path: Path, context: typer.Context) -> dict[str, Any]:
    known = _known_options(context)
    values = {}
    for key, value in document.items():
        parameter = known.get(key.replace("_", "-"))
        if parameter is None:
            import difflib

            near = difflib.get_close_matches(key.replace("_", "-"), known, 1)
            hint = f"Did you mean '{near[0]}'?" if near else "The options are those of 'overlay COMMAND --help'."
            raise UserError("config-unknown-option", f"{path} has an unknown option '{key}'.", hint, Exit.USAGE)
        values[parameter] = value
    return values


def _known_options(context: typer.Context) -> dict[str, str]:
    """Long option names of all commands, without dashes → parameter names: one file serves all commands of a folder."""
    from typing import cast

    from typer.core import TyperCommand, TyperGroup

    known: dict[str, str] = {}
    pending: list[Any] = [context.find_root().command]
    while pending:
        command = cast(TyperCommand | TyperGroup, pending.pop())
        if isinstance(command, TyperGroup):
            pending.extend(command.commands.values())
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--") and parameter.name is not None:
                    known[option.removeprefix("--")] = parameter.name
    for name in ("state", "help", "json"):  # these say what one call wants, or where this file is
        known.pop(name, None)
    return known


def _default_state(kind: str) -> Path:
    from overlay.daemon.state import default_state_dir

    return default_state_dir(kind)


def _state_option(kind: str) -> Any:
    return typer.Option(
        "--state",
        metavar="DIR",
        envvar="OVERLAY_STATE",
        is_eager=True,
        readable=False,  # whether this user may is for each command to find out, and to say in its own words
        callback=_load_config,
        default_factory=lambda: _default_state(kind),
        show_default=f"/var/lib/overlay/{kind}, without root ~/.local/state/overlay/{kind}",
        help="Folder of keys, settings and the daemon's socket.",
    )


NodeState = Annotated[Path, _state_option("node")]
ServerState = Annotated[Path, _state_option("server")]
DscpMode = Literal["hide", "copy"]
Dscp = Annotated[
    DscpMode,
    typer.Option(
        "--dscp",
        envvar="OVERLAY_DSCP",
        help="Whether routers on the way see what class of service the packets inside ask for: their DSCP.",
    ),
]
PortMapping = Annotated[
    Literal["on", "off"],
    typer.Option(
        "--port-mapping",
        envvar="OVERLAY_PORT_MAPPING",
        help="Whether the router before this machine is asked (by NAT-PMP, PCP, UPnP) to let peers in directly.",
    ),
]
Carrier = Annotated[
    str,
    typer.Option(
        "--carrier",
        metavar="LIST",
        envvar="OVERLAY_CARRIER",
        help="How the server may be reached: auto, or one or several of udp,tls,wss,tcp,ws, best first.",
    ),
]
Proxy = Annotated[
    str | None,
    typer.Option(
        "--proxy",
        metavar="URL",
        envvar=["OVERLAY_PROXY", "HTTPS_PROXY", "https_proxy"],
        help="HTTP proxy to the server, for all but udp: http://[USER:PASSWORD@]HOST:PORT. A password is better put "
        "into the environment or config.toml, where no list of processes shows it.",
        show_default=False,
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="OVERLAY_CA",
        help="Certificates (PEM) that tls:// and wss:// addresses are verified by, instead of the system's.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv even more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]


TokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The token, in a file that only you can read; - reads it from standard input. Without this it is taken "
        "from the environment, OVERLAY_TOKEN.",
        show_default=False,
    ),
]


def way_settings(carrier: str, proxy: str | None, ca: Path | None) -> dict[str, str]:
    """Those of `NodeSettings` that say how the server is reached. Raises `UserError` (exit 2)."""
    import os

    if ca is not None and not ca.is_file():
        raise UserError("ca-missing", f"There is no file {ca}.", "Name a file of certificates in PEM form.", Exit.USAGE)
    return {
        "carriers": carrier,
        "proxy": proxy or "",
        "no_proxy": os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "",
        "ca_file": str(ca.absolute()) if ca is not None else "",
    }


def read_invite(given: str | None) -> str:
    """The invite as text; "" if there is none. Raises `UserError` ("invite-empty") for an empty standard input."""
    if given != "-":
        return (given or "").strip()
    text = sys.stdin.read(LONGEST_INVITE).strip()
    if not text:
        raise UserError(
            "invite-empty",
            "There is no invite on standard input.",
            "Pipe it in, as in: overlay up - < invite.txt",
            Exit.USAGE,
        )
    return text


def read_token(file: str | None) -> str:
    """What a person was given, "" if nothing. Never an argument: lists of processes show those. Raises `UserError`
    ("token-unreadable", "token-empty", exit 2)."""
    import os

    if file is None:
        return os.environ.get("OVERLAY_TOKEN", "").strip()
    try:
        text = sys.stdin.read(LONGEST_TOKEN) if file == "-" else Path(file).read_text("ascii")[:LONGEST_TOKEN]
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it holds no token"
        raise UserError("token-unreadable", f"Cannot read {file}: {why}.", "Name another file.", Exit.USAGE) from error
    if not text.strip():
        raise UserError("token-empty", "There is no token where --token-file says.", "Put it there.", Exit.USAGE)
    return text.strip()


def verbosity(verbose: int, quiet: bool) -> int:
    """What the daemons' log takes: −1 quiet, 0 ordinary, 1 more, 2 everything."""
    return -1 if quiet else min(verbose, 2)
