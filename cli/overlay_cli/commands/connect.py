"""`overlay connect NAME`: a local port that leads to a peer's private exposure."""

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.options import Json, NodeState, Quiet, TokenFile, read_token

if TYPE_CHECKING:
    from overlay.wire.control.messages import Connected


def connect(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'overlay expose … --private NAME' has it.")],
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
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reach what a peer exposes by --private NAME at a port of this machine, until Ctrl-C.

    Connections go through the overlay to the peer itself, by the best path that there is. This node must have a tag
    that is let in, or a token.
    """
    from overlay.daemon.client import LocalClient

    endpoint = _endpoint(listen)
    wish = {"name": name, "token": read_token(token_file)}
    client = LocalClient(state)

    def ask() -> dict[str, Any]:
        return client.request("POST", "/v1/connect", wish, timeout=30)

    with output.working("Asking the server…", quiet=quiet or json):
        first = ask()
    from functools import partial

    import anyio
    import anyio.to_thread
    import msgspec

    from overlay.node.connecting import Connecting, bind_local
    from overlay.wire.control.messages import Connected
    from overlay.wire.endpoint import format_endpoint

    let_in = msgspec.convert(first, Connected)
    bound = bind_local(endpoint, datagrams=let_in.datagrams)
    where = format_endpoint(bound.getsockname()[:2])
    if json:
        protocol = "udp" if let_in.datagrams else "tcp"
        output.print_json({"name": name, "listen": where, "node": let_in.node, "protocol": protocol})
    else:
        output.print_line(where if quiet else f"{where} → {name} of {let_in.node}")
        if not quiet:
            output.note("Ctrl-C ends it.")
    output.flush()

    async def ask_again() -> "Connected":
        return msgspec.convert(await anyio.to_thread.run_sync(ask), Connected)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    anyio.run(partial(Connecting(bound, let_in, ask_again).run))


def _endpoint(listen: str) -> tuple[str, int]:
    from overlay.wire.endpoint import parse_endpoint

    if not listen:
        return "127.0.0.1", 0
    if listen.isascii() and listen.isdigit():
        listen = f"127.0.0.1:{listen}"
    try:
        return parse_endpoint(listen.replace("localhost:", "127.0.0.1:"))
    except ValueError as error:
        raise UserError(
            "listen-invalid", f"--listen: {error}.", "Write a port, or as in 127.0.0.1:5432.", Exit.USAGE
        ) from error
