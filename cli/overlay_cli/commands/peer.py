"""`overlay ping PEER`, `overlay why PEER`: how long a round trip takes, which way it goes, and why that one."""

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from overlay.errors import Exit
from overlay_cli import output
from overlay_cli.options import Json, NodeState, Quiet

INTERVAL = 1.0
"""s between two pings, as everybody's ping has it."""

UNTIL_DIRECT = 30
"""Pings that `--until-direct` waits for without `-c`: what finds a way at all has found it by then."""

_KINDS = {"relay": "relay", "lan": "lan", "udp": "direct udp", "tcp": "direct tcp"}


Peer = Annotated[str, typer.Argument(metavar="PEER", help="A peer's name, overlay address or number.")]


def ping(
    peer: Peer,
    state: NodeState,
    count: Annotated[
        int | None,
        typer.Option("-c", "--count", metavar="N", min=1, help="Pings to send; without this until Ctrl-C."),
    ] = None,
    until_direct: Annotated[
        bool,
        typer.Option("--until-direct", help=f"End at the first direct answer; {UNTIL_DIRECT} pings at most, or N."),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.05, max=8.0, help="How long to wait for one answer.")
    ] = 2.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send pings to a peer, and show the path and round trip of each answer.

    Exit code 5: no answer, or no direct one with --until-direct.
    """
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    found = client.request("GET", f"/v1/peers/{quote(peer, safe='')}")
    most = count if count is not None else UNTIL_DIRECT if until_direct else 5 if json else None
    answers: list[dict[str, Any]] = []
    direct = False
    try:
        while most is None or len(answers) < most:
            started = time.monotonic()
            request = f"/v1/peers/{found['number']}/ping"
            answers.append(client.request("POST", request, {"patience": timeout}, timeout=timeout + 10.0))
            if not json and not quiet:
                output.print_line(_line(found, answers[-1]))
            direct = _is_direct(answers[-1])
            if (direct and until_direct) or len(answers) == most:
                break
            time.sleep(max(0.0, started + INTERVAL - time.monotonic()))
    except KeyboardInterrupt:
        if not answers:
            raise
    answered = [answer for answer in answers if answer["rtt_ms"] is not None]
    if json:
        document = {"peer": found["name"], "sent": len(answers), "answered": len(answered), "answers": answers}
        output.print_json({**document, **_trips(answered)})
    elif not quiet:
        output.print_line(_summary(len(answers), answered))
    if not answered or (until_direct and not direct):
        raise typer.Exit(Exit.UNREACHABLE)


def why(peer: Peer, state: NodeState, json: Json = False) -> None:
    """Show which way packets to a peer go, why not a better one, and what came of each endpoint that was asked."""
    from overlay.daemon.client import LocalClient

    report = LocalClient(state).request("GET", f"/v1/peers/{quote(peer, safe='')}/why")
    if json:
        output.print_json(report)
        return
    from overlay_cli.tables import why_report

    output.show(why_report(report))


def _is_direct(answer: dict[str, Any]) -> bool:
    return answer["path"] is not None and answer["path"]["kind"] != "relay"


def _line(peer: dict[str, Any], answer: dict[str, Any]) -> str:
    who = f"{peer['name']} ({peer['addresses'][0]})"
    path = answer["path"]
    if path is None:
        return f"{who}: no answer"
    where = f" {path['endpoint']}" if path["endpoint"] else ""
    return f"{who} by {_KINDS[path['kind']]}{where}: {answer['rtt_ms']:.2f} ms"


def _trips(answered: list[dict[str, Any]]) -> dict[str, float | None]:
    times = [answer["rtt_ms"] for answer in answered]
    if not times:
        return {"min_ms": None, "avg_ms": None, "max_ms": None}
    return {"min_ms": min(times), "avg_ms": round(sum(times) / len(times), 3), "max_ms": max(times)}


def _summary(sent: int, answered: list[dict[str, Any]]) -> str:
    head = f"{sent} sent, {len(answered)} answered"
    if not answered:
        return head
    trips = _trips(answered)
    return f"{head}; round trip min {trips['min_ms']:.2f}, avg {trips['avg_ms']:.2f}, max {trips['max_ms']:.2f} ms"
