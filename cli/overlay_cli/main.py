"""The command `overlay`: its commands, and what becomes of their errors. Knows no protocol.

Commands import what they need when they run: a start costs typer alone. An error that a person can mend is a
`UserError`, printed as one sentence and a hint, with its exit code; a traceback is for `-vv` only.
"""

import os
import re
import sys

import typer

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.commands.capture import capture
from overlay_cli.commands.connect import connect_app
from overlay_cli.commands.dns import dns_app
from overlay_cli.commands.expose import expose_app
from overlay_cli.commands.member import down, status, up
from overlay_cli.commands.netcheck import netcheck
from overlay_cli.commands.node import node_app
from overlay_cli.commands.peer import ping, why
from overlay_cli.commands.proxy import proxy
from overlay_cli.commands.server import invite, server
from overlay_cli.commands.token import token_app
from overlay_cli.commands.version import version

PROGRAM = "overlay"
_ENVIRONMENT = re.compile(r" \(env var: [^)]*\)")  # it may have come from the command line

app = typer.Typer(
    name=PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: on the server 'sudo overlay server', on each machine 'sudo overlay up INVITE'.",
)


@app.callback(invoke_without_command=True)
def _overview(context: typer.Context) -> None:
    """One private network for your machines, and a way to publish a service from any of them."""
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(Exit.USAGE)


app.command(epilog="Example: sudo overlay server --public vpn.example.org --relay-rate 100Mbit")(server)
app.command(epilog="Example: overlay invite --uses 5 --expires 7d --tag laptop")(invite)
app.command(epilog="Example: sudo overlay up ov1_…   (or: sudo overlay up - < invite.txt)")(up)
app.command(epilog="Example: sudo overlay down")(down)
app.command(epilog="Example: overlay status --json")(status)
app.command(epilog="Example: overlay ping b -c 3   (or: overlay ping b --until-direct)")(ping)
app.command(epilog="Example: overlay why b")(why)
app.add_typer(expose_app, name="expose")
app.add_typer(connect_app, name="connect")
app.command(epilog="Example: ssh -o ProxyCommand='overlay proxy %h %p' b.local.test")(proxy)
app.command(epilog="Example: sudo overlay capture b -w b.pcapng icmp or tcp port 443")(capture)
app.command(epilog="Example: overlay netcheck --json   (or, before joining: overlay netcheck ov1_…)")(netcheck)
app.add_typer(dns_app, name="dns")
app.add_typer(node_app, name="node")
app.add_typer(token_app, name="token")
app.command(epilog="Example: overlay version --json")(version)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. `arguments` without the program's name."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    try:
        result = app(args=given, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else Exit.DONE
    except UserError as error:
        output.report_error(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        if error.format_message():  # empty: a group without a command, whose help is printed already
            output.report_error(_usage_error(error), as_json=as_json)
        return Exit.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`overlay status | head -1`); the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:
        if "-vv" in given:
            raise
        output.report_error(_defect(error), as_json=as_json)
        return Exit.FAILED


def _usage_error(error: typer.TyperException) -> UserError:
    message = _ENVIRONMENT.sub("", error.format_message()).replace("a valid int range", "a whole number")
    context = getattr(error, "ctx", None)
    command = PROGRAM if context is None else context.command_path
    code = "unknown-command" if message.startswith("No such command") else "usage"
    return UserError(code, message, f"See '{command} --help'.", Exit.USAGE)


def _defect(error: Exception) -> UserError:
    return UserError(
        "internal",
        f"This should not have happened: {type(error).__name__}: {error}.",
        "Run the command again with -vv to see where, and please report that.",
    )
