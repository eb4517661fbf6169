"""The tables that people see, drawn from the local API's documents. Knows those documents' keys, and no protocol."""

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from overlay_cli.durations import format_duration
from overlay_cli.rates import format_rate

_STATE_STYLES = {"connected": "green", "running": "green", "offline": "yellow", "starting": "yellow", "stopped": "red"}


def node_summary(status: dict[str, Any], *, verbose: bool = False) -> RenderableType:
    """All of a node's status."""
    heading = Text.assemble(
        _dot(status["state"]), " ", (status["state"], "bold"), f" as {_full_name(status)} on {status['interface']}"
    )
    parts: list[RenderableType] = [heading, Text("addresses  " + "  ".join(status["addresses"]))]
    server = status.get("server")
    if server:
        trip = "" if server.get("rtt_ms") is None else f", {server['rtt_ms']:.1f} ms"
        parts.append(Text(f"server     {server['address']} by {server['carrier']}{trip}"))
    parts.extend(_warnings(status))
    peers = status["peers"]
    parts.append(peer_table(peers) if peers else Text("no peers yet", style="dim"))
    if status["exposures"]:
        parts.append(exposure_table(status["exposures"]))
    if verbose:
        parts.extend(_details(status))
    return Group(*parts)


def server_summary(status: dict[str, Any], *, verbose: bool = False) -> RenderableType:
    """All of a server's status."""
    parts: list[RenderableType] = [
        Text.assemble(_dot(status["state"]), " ", (status["state"], "bold"), f" as {_full_name(status)}"),
        Text("public     " + "  ".join(status["public"])),
        Text("addresses  " + "  ".join(status["addresses"])),
        Text("networks   " + "  ".join(status["networks"])),
        Text(f"nodes      {status['nodes']}, {status['online']} online"),
        Text(f"relayed    {_size(status['relayed_bytes'])}{_rate(status['relay_rate_bit_s'])}"),
        *_warnings(status),
    ]
    if status["exposures"]:
        parts.append(exposure_table(status["exposures"]))
    if verbose:
        parts.extend(_details(status))
    return Group(*parts)


def peer_table(peers: list[dict[str, Any]]) -> Table:
    table = _table("peer", "addresses", "path", "round trip", "handshake", "received", "sent")
    for peer in peers:
        table.add_row(
            Text.assemble(_dot("connected" if peer["online"] else "offline"), " ", peer["name"]),
            Text("  ".join(peer["addresses"])),
            Text(_path(peer["path"])),
            Text("–" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms"),
            Text("–" if peer["last_handshake_s"] is None else f"{format_duration(peer['last_handshake_s'])} ago"),
            Text(_size(peer["rx_bytes"])),
            Text(_size(peer["tx_bytes"])),
        )
    return table


def exposure_table(exposures: list[dict[str, Any]]) -> Table:
    table = _table("id", "public", "target", "tunnel", "connections")
    for exposure in exposures:
        table.add_row(
            Text(exposure["id"]),
            Text(exposure.get("url") or exposure["public"]),
            Text(exposure["target"]),
            Text(exposure["tunnel"]),
            Text(str(exposure["connections"])),
        )
    return table


def node_table(nodes: list[dict[str, Any]]) -> Table:
    table = _table("node", "addresses", "tags", "last seen", "key")
    for node in nodes:
        seen = node.get("last_seen")
        last = "now" if node["online"] else "never" if seen is None else f"{format_duration(time.time() - seen)} ago"
        table.add_row(
            Text.assemble(_dot("connected" if node["online"] else "offline"), " ", node["name"]),
            Text("  ".join(node["addresses"])),
            Text(" ".join(node["tags"])),
            Text(last),
            Text(node["key"]),
        )
    return table


def _warnings(status: dict[str, Any]) -> list[RenderableType]:
    return [Text(f"warning    {sentence}", style="yellow") for sentence in status["warnings"]]


def _details(status: dict[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    drops = {name: count for name, count in status["drops"].items() if count}
    lines.append(Text("drops      " + ("  ".join(f"{name} {count}" for name, count in drops.items()) or "none")))
    found = "  ".join(f"{'+' if present else '-'}{name}" for name, present in status["features"].items())
    lines.append(Text("kernel     " + (found or "no interface")))
    lines.append(Text(f"version    {status['version']}"))
    return lines


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _dot(state: str) -> tuple[str, str]:
    return ("●", _STATE_STYLES.get(state, "yellow"))


def _full_name(status: dict[str, Any]) -> str:
    return f"{status['name']}.{status['domain']}"


def _path(path: dict[str, Any] | None) -> str:
    if path is None:
        return "–"
    return str(path["kind"]) if path["endpoint"] is None else f"{path['kind']} {path['endpoint']}"


def _rate(bits: float | None) -> str:
    return "" if bits is None else f", {format_rate(bits / 8)} per node at most"


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
