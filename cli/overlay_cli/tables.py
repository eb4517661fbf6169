"""The tables that people see, drawn from the local API's documents. Knows those documents' keys, and no protocol."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from overlay.daemon.quantities import format_rate, format_size
from overlay_cli.durations import format_duration
from overlay_cli.terms import describe_terms

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
        by = f" by {server['carrier']}{_why(server)}" if server["carrier"] else ""
        parts.append(Text(f"server     {server['address']}{by}{trip}"))
    parts.extend([*_nat(status.get("nat")), *_port_mapping(status.get("port_mapping"))] if verbose else [])
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
        Text(f"ports      {_ports(status)}"),
        Text("addresses  " + "  ".join(status["addresses"])),
        Text("networks   " + "  ".join(status["networks"])),
        Text(f"nodes      {status['nodes']}, {status['online']} online"),
        Text(f"relayed    {format_size(status['relayed_bytes'])}{_rate(status['relay_rate_bit_s'])}"),
        *_warnings(status),
    ]
    if status["exposures"]:
        parts.append(exposure_table(status["exposures"]))
    if verbose:
        parts.extend(_details(status))
    return Group(*parts)


def _ports(status: dict[str, Any]) -> str:
    """What a firewall must let in."""
    tcp = dict.fromkeys(endpoint.rpartition(":")[2] for endpoint in status["listen"])
    udp = [str(status[key]) for key in ("port", "stun_port") if status[key]]
    return f"TCP {', '.join(tcp)}; UDP {', '.join(udp)}"


def net_report(report: dict[str, Any]) -> RenderableType:
    """What `overlay netcheck` found."""
    best = report["best"]
    heading = (
        Text.assemble(_dot("connected"), " ", (f"the server is reached by {best}", "bold"))
        if best is not None
        else Text.assemble(_dot("stopped"), " ", ("the server is not reached", "bold"))
    )
    families = ", ".join(f"{name} {'yes' if report[name.lower()] else 'no'}" for name in ("IPv4", "IPv6"))
    parts: list[RenderableType] = [
        heading,
        Text("server     " + "  ".join(report["addresses"])),
        Text(f"network    {report['network'] or 'no default route'}"),
        Text(f"families   {families}"),
        Text(f"udp        {report['udp']}"),
        *_nat(report["nat"]),
        *_port_mapping(report["port_mapping"]),
    ]
    if report["proxy"]:
        parts.append(Text(f"proxy      {report['proxy']}"))
    if report["captive_portal"]:
        sentence = f"Something else answers in the server's place ({report['captive_portal']})."
        advice = "If this network has a login page, open any http:// site in a browser."
        parts.append(Text(f"warning    {sentence} {advice}", style="yellow"))
    table = _table("carrier", "works", "time", "where, or why not")
    for each in report["carriers"]:
        latency = each["latency_ms"]
        table.add_row(
            Text.assemble(_dot("connected" if each["works"] else "stopped"), " ", each["carrier"]),
            Text("yes" if each["works"] else "no"),
            Text("–" if latency is None else f"{latency:.1f} ms"),
            Text(each["address"] or each["why"]),
        )
    return Group(*parts, table)


def why_report(report: dict[str, Any]) -> RenderableType:
    """What `overlay why` tells."""
    path = report["path"]
    since = "" if path is None else f", for {format_duration(max(0.0, time.time() - path['since']))}"
    trip = "" if report["rtt_ms"] is None else f", {report['rtt_ms']:.1f} ms"
    parts: list[RenderableType] = [
        Text.assemble(
            _dot("connected" if report["online"] else "offline"),
            " ",
            (f"{report['name']}: {_path(path)}", "bold"),
            f"{since}{trip}",
        ),
        Text(report["sentence"]),
        Text(f"NAT here   {report['own_nat']}"),
        Text(f"NAT there  {report['peer_nat']}"),
    ]
    if not report["candidates"]:
        return Group(*parts)
    table = _table("endpoint", "kind", "known from", "state", "pings", "answered", "round trip", "next try")
    for each in report["candidates"]:
        table.add_row(
            Text(each["endpoint"] or "the same connection"),
            Text(each["kind"]),
            Text(_ORIGINS.get(each["origin"], each["origin"])),
            Text(each["state"]),
            Text(str(each["pings"])),
            Text("never" if each["answered_s"] is None else f"{format_duration(each['answered_s'])} ago"),
            Text("–" if each["rtt_ms"] is None else f"{each['rtt_ms']:.1f} ms"),
            Text("–" if each["next_try_s"] is None else f"in {format_duration(each['next_try_s'])}"),
        )
    return Group(*parts, table)


_ORIGINS = {
    "map": "the network map",
    "seen": "its own packets",
    "punched": "both connecting at once",
    "interface": "its interfaces",
    "observed": "others who see it",
    "mapped": "its router",
    "manual": "its owner",
    "predicted": "prediction",
}


def _nat(nat: dict[str, Any] | None) -> list[RenderableType]:
    """The NAT before this machine: what it means, and below it the RFC's words."""
    if nat is None:
        return []
    words = [f"{name} {nat[name]}" for name in ("mapping", "filtering") if nat[name] is not None]
    flags = (("hairpinning", "hairpinning", "no hairpinning"), ("port_preserved", "port preserved", "another port"))
    if nat["translated"]:
        words += [yes if nat[name] else no for name, yes, no in flags if nat[name] is not None]
    if nat["port_delta"] is not None:
        words.append(f"port delta {nat['port_delta']}")
    if nat["lifetime_s"] is not None:
        words.append(f"mappings last {format_duration(nat['lifetime_s'])} at least")
    lines = [nat["summary"]]
    if words:
        lines.append(", ".join(words))
    if nat["endpoints"]:
        lines.append("seen from outside as " + "  ".join(nat["endpoints"]))
    return [Text(f"{'nat' if not number else '':<11}{line}") for number, line in enumerate(lines)]


def _port_mapping(mapping: dict[str, Any] | None) -> list[RenderableType]:
    """What the router passes on, or why it does not."""
    if mapping is None:
        return []
    if mapping["external"] is None:
        return [Text(f"mapping    {mapping['why']}")]
    line = f"{mapping['external']} by {mapping['protocol']} of {mapping['gateway']}"
    return [Text(f"mapping    {line}"), *([Text(f"           {mapping['why']}")] if mapping["why"] else [])]


def peer_table(peers: list[dict[str, Any]]) -> Table:
    table = _table("peer", "addresses", "path", "round trip", "handshake", "received", "sent")
    for peer in peers:
        table.add_row(
            Text.assemble(_dot("connected" if peer["online"] else "offline"), " ", peer["name"]),
            Text("  ".join(peer["addresses"])),
            Text(_path(peer["path"])),
            Text("–" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms"),
            Text("–" if peer["last_handshake_s"] is None else f"{format_duration(peer['last_handshake_s'])} ago"),
            Text(format_size(peer["rx_bytes"])),
            Text(format_size(peer["tx_bytes"])),
        )
    return table


def record_table(records: list[dict[str, Any]]) -> RenderableType:
    """Records that people put into the zone."""
    if not records:
        return Text("no records", style="dim")
    table = _table("name", "type", "value", "by")
    for each in records:
        shadowed = Text(" (not served: a node has this name)", style="yellow") if each["shadowed"] else Text("")
        table.add_row(each["name"], each["type"], Text(each["value"]) + shadowed, each["node"])
    return table


def exposure_table(exposures: list[dict[str, Any]]) -> Table:
    from overlay.node.places import shown_place

    grouped = any(exposure.get("members") for exposure in exposures)
    named = any(exposure.get("entry") for exposure in exposures)
    exposures = _joined(exposures)
    set_for = [describe_terms(exposure.get("terms", {})) for exposure in exposures]
    columns = ["id", *(["name"] if named else []), "public", "target", "tunnel", "connections"]
    table = _table(*columns, *(["group"] if grouped else []), *(["terms"] if any(set_for) else []))
    for exposure, terms in zip(exposures, set_for, strict=True):
        places = (exposure.get("url") or exposure["public"], *exposure.get("known_as", ()))
        trouble = exposure.get("problem") or exposure.get("trouble")
        entry = exposure.get("entry")
        table.add_row(
            Text(exposure["id"]),
            *((Text(entry["name"] if entry else ""),) if named else ()),
            Text("\n".join(map(shown_place, places))),
            Text.assemble(exposure["target"], *(("\n", (f"not reached: {trouble}", "yellow")) if trouble else ())),
            Text(exposure["tunnel"]),
            Text(str(exposure["connections"])),
            *((_members(exposure.get("members", ())),) if grouped else ()),
            *([Text(terms)] if any(set_for) else []),
        )
    return table


def _members(members: Iterable[dict[str, Any]]) -> Text:
    """Whom users of a place are led to, a line each."""
    lines = []
    for each in members:
        why = (
            ""
            if each["state"] == "up"
            else f" {each['state']}" + (f": {problem}" if (problem := each.get("problem")) else "")
        )
        lines.append(Text.assemble(_dot("connected" if each["state"] == "up" else "offline"), f" {each['node']}{why}"))
    return Text("\n").join(lines)


def token_table(tokens: list[dict[str, Any]]) -> RenderableType:
    if not tokens:
        return Text("no tokens", style="dim")
    table = _table("token", "nodes", "good for")
    for token in tokens:
        left = token["expires"] - time.time()
        table.add_row(
            Text(token["id"]),
            Text(" ".join(token["nodes"]) or "all"),
            Text(format_duration(left)) if left > 0 else Text("expired", style="yellow"),
        )
    return table


def _joined(exposures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run of ports of one range is one row; where one was given back in between, there are more of them."""
    runs: list[list[dict[str, Any]]] = []
    for exposure in exposures:
        last = runs[-1][-1] if runs else {}
        of_one = exposure.get("range") and exposure["range"] == last.get("range")
        if of_one and _port_pair(exposure) == [port + 1 for port in _port_pair(last)]:
            runs[-1].append(exposure)
        else:
            runs.append([exposure])
    return [_run(each) if len(each) > 1 else each[0] for each in runs]


def _port_pair(exposure: dict[str, Any]) -> list[int]:
    return [int(exposure[side].rpartition(":")[2]) for side in ("public", "target")]


def _run(run: list[dict[str, Any]]) -> dict[str, Any]:
    public, target = _port_pair(run[-1])
    return {
        **run[0],
        "id": run[0]["range"],
        "public": f"{run[0]['public']}-{public}",
        "target": f"{run[0]['target']}-{target}",
        "connections": sum(each["connections"] for each in run),
        "trouble": next((each["trouble"] for each in run if each["trouble"]), ""),
    }


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


def _why(server: dict[str, Any]) -> str:
    """Why this carrier; and which one packets take, if it is another."""
    data = server.get("data_carrier")
    parts = [server.get("carrier_why") or "", f"packets by {data}" if data and data != server["carrier"] else ""]
    told = "; ".join(part for part in parts if part)
    return f" ({told})" if told else ""


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
