"""`overlay proxy HOST PORT`: standard input and output to a node, for ssh's ProxyCommand and the like."""

from pathlib import Path
from typing import Annotated, Any

import typer

from overlay.errors import Exit, UserError
from overlay_cli.options import CaFile, NodeState, TokenFile, read_token


def proxy(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A node: b, b.local.test, or its overlay address.")],
    port: Annotated[int, typer.Argument(metavar="PORT", min=1, max=65535)],
    state: NodeState,
    token_file: TokenFile = None,
    ca: CaFile = None,
) -> None:
    """Carry standard input and output to HOST:PORT of the network.

    Where the network is up on this machine they go straight there. Elsewhere they go through the server's one port, by
    HTTP CONNECT within TLS, for who has a token of 'overlay token add': from --token-file, or OVERLAY_TOKEN.
    """
    import anyio

    token = read_token(token_file)
    address = None if token else _address(state, host)
    if not token and address is None:
        raise UserError(
            "not-up",
            "The network is not up on this machine, and there is no token to be let through the server with.",
            "Run 'sudo overlay up', or put a token of 'overlay token add' into a file and name it with --token-file.",
            Exit.NOT_RUNNING,
        )

    async def run() -> None:
        from overlay.node.proxying import carry, open_directly, open_through

        if address is not None:
            await carry(await open_directly((address, port)))
        else:
            await carry(await open_through(token, host, port, ca_file=str(ca) if ca is not None else None))

    anyio.run(run)


def _address(state: Path, host: str) -> str | None:
    """The node's overlay address, as the daemon here knows it; None: none runs, or without the network. Raises
    `UserError` ("node-unknown")."""
    from overlay.daemon.client import LocalClient

    try:
        status: dict[str, Any] = LocalClient(state).request("GET", "/v1/status")
    except UserError as error:
        if error.code in ("not-running", "no-permission"):
            return None
        raise
    if status["interface"] is None:
        return None
    name = host.lower().rstrip(".")
    for domain in status["domains"]:
        name = name.removesuffix(f".{domain}")
    for peer in (*status["peers"], {"name": status["name"], "addresses": status["addresses"]}):
        if name == peer["name"] or name in peer["addresses"]:
            return str(peer["addresses"][0])
    raise UserError(
        "node-unknown", f"There is no node '{host[:100]}' in the network.", "See 'overlay status'.", Exit.FAILED
    )
