"""What people see of the local API's documents."""

import io
import time
from typing import Any, get_args

import pytest
from rich.console import Console, RenderableType

from overlay.node.places import shown_place
from overlay.path.types import Origin
from overlay_cli.tables import (
    exposure_table,
    net_report,
    node_summary,
    node_table,
    server_summary,
    token_table,
    why_report,
)

NAT: dict[str, Any] = {
    "summary": "A hard one.",
    "endpoints": ["203.0.113.7:5000"],
    "translated": True,
    "mapping": "address-and-port-dependent",
    "filtering": "address-dependent",
    "hairpinning": False,
    "port_preserved": False,
    "port_delta": 2,
    "lifetime_s": 40.0,
}
MAPPED = {"protocol": "upnp", "gateway": "192.168.1.1", "external": "203.0.113.7:41641", "why": ""}
NODE: dict[str, Any] = {
    "state": "connected",
    "name": "a",
    "addresses": ["10.77.0.2", "fd00::2"],
    "domain": "local.test",
    "interface": "overlay0",
    "server": {"address": "203.0.113.1:443", "carrier": "tcp", "rtt_ms": 1.2},
    "peers": [
        {
            "name": "b",
            "addresses": ["10.77.0.3"],
            "online": True,
            "path": {"kind": "udp", "endpoint": "[2001:db8::7]:41641", "since": 1764000000.0, "mtu": 1444},
            "rtt_ms": 3.14,
            "last_handshake_s": 41.0,
            "rx_bytes": 1,
            "tx_bytes": 2_500_000,
        },
        {
            "name": "c",
            "addresses": ["10.77.0.4"],
            "online": False,
            "path": None,
            "rtt_ms": None,
            "last_handshake_s": None,
            "rx_bytes": 0,
            "tx_bytes": 0,
        },
    ],
    "exposures": [
        {
            "id": "x1",
            "public": "203.0.113.1:9000",
            "url": None,
            "target": "tcp://[::1]:8080",
            "tunnel": "single",
            "connections": 2,
        }
    ],
    "warnings": ["The names of the network do not resolve here."],
    "nat": NAT,
    "port_mapping": MAPPED,
    "drops": {"bad_tag": 3, "short_header": 0},
    "features": {"udp_gso": True, "tun_uso": False},
    "version": "0.1.0",
}
SERVER: dict[str, Any] = {
    "state": "running",
    "name": "server",
    "domain": "local.test",
    "public": ["203.0.113.1:443"],
    "listen": ["0.0.0.0:443", "[::]:443"],
    "port": 443,
    "stun_port": 3478,
    "addresses": ["10.77.0.1"],
    "networks": ["10.77.0.0/16"],
    "nodes": 3,
    "online": 2,
    "exposures": [],
    "relayed_bytes": 1500,
    "relay_waiting_bytes": 0,
    "relay_rate_bit_s": None,
    "warnings": [],
    "drops": {},
    "features": {},
    "version": "0.1.0",
}


def drawn(renderable: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=200, markup=False, highlight=False).print(renderable)
    return file.getvalue()


def test_a_node() -> None:
    text = drawn(node_summary(NODE))
    for shown in ("a.local.test", "overlay0", "203.0.113.1:443 by tcp, 1.2 ms", "udp [2001:db8::7]:41641", "41 s ago"):
        assert shown in text
    assert "tcp://[::1]:8080" in text, "brackets are an address, not markup"
    assert "2.5 MB" in text and "do not resolve here" in text
    assert "bad_tag" not in text


def test_a_node_in_detail() -> None:
    text = drawn(node_summary(NODE, verbose=True))
    assert "bad_tag 3" in text and "short_header" not in text and "+udp_gso  -tun_uso" in text


def test_the_nat_in_words() -> None:
    lines = [line.rstrip() for line in drawn(node_summary(NODE, verbose=True)).splitlines()]
    at = lines.index("nat        A hard one.")
    words = (
        "mapping address-and-port-dependent, filtering address-dependent, no hairpinning, another port, port delta 2"
    )
    assert lines[at + 1].strip() == f"{words}, mappings last 40 s at least"
    assert lines[at + 2] == "           seen from outside as 203.0.113.7:5000"
    assert "A hard one" not in drawn(node_summary(NODE))
    unknown = dict.fromkeys(NAT) | {"summary": "Not known.", "endpoints": []}
    text = drawn(node_summary({**NODE, "nat": unknown}, verbose=True))
    assert "nat        Not known.\n" in text and "hairpinning" not in text
    assert "nat " not in drawn(node_summary({**NODE, "nat": None}, verbose=True))


def test_the_port_mapping_in_words() -> None:
    def shown(**others: Any) -> str:
        return drawn(node_summary({**NODE, "port_mapping": {**MAPPED, **others}}, verbose=True))

    assert "mapping    203.0.113.7:41641 by upnp of 192.168.1.1\n" in shown()
    assert "           Nobody gets in.\n" in shown(why="Nobody gets in.")
    assert "mapping    The router says no.\n" in shown(external=None, protocol=None, why="The router says no.")
    assert "mapping  " not in drawn(node_summary({**NODE, "port_mapping": None}, verbose=True))
    assert "mapping  " not in drawn(node_summary(NODE))


def test_a_node_without_peers() -> None:
    assert "no peers yet" in drawn(node_summary({**NODE, "peers": [], "exposures": [], "server": None}))


def test_a_server() -> None:
    text = drawn(server_summary(SERVER, verbose=True))
    assert "3, 2 online" in text and "1.5 kB\n" in text and "no interface" in text
    assert "TCP 443; UDP 443, 3478\n" in text
    assert "TCP 443; UDP 443\n" in drawn(server_summary({**SERVER, "stun_port": None}))
    assert "1.5 kB, 100 Mbit/s per node at most" in drawn(server_summary({**SERVER, "relay_rate_bit_s": 1e8}))


def test_nodes() -> None:
    nodes = [
        {"name": "a", "addresses": ["10.77.0.2"], "tags": ["x"], "online": True, "last_seen": 0.0, "key": "KEY="},
        {"name": "b", "addresses": ["10.77.0.3"], "tags": [], "online": False, "last_seen": None, "key": "KEY="},
    ]
    text = drawn(node_table(nodes))
    assert "now" in text and "never" in text


def test_why_a_carrier_is_used_is_told() -> None:
    def shown(**server: Any) -> str:
        return drawn(node_summary({**NODE, "server": {**NODE["server"], **server}}))

    assert "203.0.113.1:443 by tcp, 1.2 ms" in shown()
    assert "by tls (udp: no answer; packets by tcp), 1.2 ms" in shown(
        carrier="tls", carrier_why="udp: no answer", data_carrier="tcp"
    )
    assert "by udp (first choice), 1.2 ms" in shown(carrier="udp", carrier_why="first choice", data_carrier="udp")
    assert "server     203.0.113.1:443, 1.2 ms" in shown(carrier="")


def test_a_network_report() -> None:
    report: dict[str, Any] = {
        "addresses": ["vpn.example.org:443"],
        "network": "192.0.2.1 192.0.2.10",
        "ipv4": True,
        "ipv6": False,
        "proxy": "http://proxy:3128",
        "nat": NAT,
        "port_mapping": MAPPED,
        "udp": "blocked",
        "captive_portal": None,
        "best": "tls",
        "carriers": [
            {"carrier": "udp", "works": False, "address": None, "latency_ms": None, "why": "no answer within 5 s"},
            {"carrier": "tls", "works": True, "address": "203.0.113.1:443", "latency_ms": 31.4, "why": ""},
        ],
    }
    text = drawn(net_report(report))
    assert "reached by tls" in text and "IPv4 yes, IPv6 no" in text and "udp        blocked" in text
    assert "no answer within 5 s" in text and "31.4 ms" in text and "http://proxy:3128" in text
    assert "mapping    203.0.113.7:41641 by upnp" in text
    lost = {**report, "best": None, "proxy": None, "captive_portal": "HTTP/1.1 302 Found", "network": ""}
    text = drawn(net_report(lost))
    assert "the server is not reached" in text and "HTTP/1.1 302 Found" in text and "no default route" in text


def test_tokens_tell_what_they_are_good_for() -> None:
    now = time.time()
    tokens = [
        {"id": "t1", "nodes": ["b"], "expires": now + 7 * 86400},
        {"id": "t2", "nodes": [], "expires": now - 1},
    ]
    text = drawn(token_table(tokens))
    assert "t1" in text and "all" in text and "expired" in text and "no tokens" in drawn(token_table([]))


def test_names_are_shown_as_people_read_them() -> None:
    places = {
        "https://xn--bcher-kva.example.com:8443/xn--a": "https://bücher.example.com:8443/xn--a",
        "db.xn--p1ai:443": "db.рф:443",
        "http://192.0.2.1:80/": "http://192.0.2.1:80/",
        "xn--a.test": "xn--a.test",  # it stands for nothing
    }
    assert [shown_place(place) for place in places] == list(places.values())
    text = drawn(exposure_table([{**NODE["exposures"][0], "url": "https://xn--bcher-kva.example.com/"}]))
    assert "https://bücher.example.com/" in text


def test_members_of_a_group_stand_beside_what_they_share() -> None:
    exposure = NODE["exposures"][0]
    members = [{"node": "a", "state": "up"}, {"node": "b", "state": "unwell", "problem": "it answers 500"}]
    text = drawn(exposure_table([{**exposure, "members": members, "problem": "it answers 500"}, exposure]))
    assert "● a" in text and "● b unwell: it answers 500" in text and text.count("it answers 500") == 2
    assert "group" not in drawn(exposure_table([exposure]))


@pytest.mark.parametrize("origin", get_args(Origin))
def test_how_an_endpoint_is_known_is_told_in_words(origin: str) -> None:
    asked = {"endpoint": "192.0.2.7:1", "kind": "tcp", "state": "silent", "pings": 3}
    unknown = dict.fromkeys(("answered_s", "rtt_ms", "next_try_s"))
    report = {
        **{
            "name": "b",
            "online": True,
            "path": None,
            "rtt_ms": None,
            "sentence": "Why.",
            "own_nat": "",
            "peer_nat": "",
        },
        "candidates": [{**asked, **unknown, "origin": origin}],
    }
    text = drawn(why_report(report))
    assert "192.0.2.7:1" in text and "never" in text and f"  {origin} " not in text, "a word of the program's"


def test_a_range_of_ports_is_one_row_while_it_is_whole() -> None:
    def exposure(number: int) -> dict[str, Any]:
        return {
            "id": f"x{number}",
            "public": f"192.0.2.1:{9000 + number}",
            "target": f"tcp://127.0.0.1:{8000 + number}",
            "tunnel": "single",
            "connections": 1,
            "range": "x1-x4",
            "trouble": "connection refused" if number == 2 else "",
        }

    shown = drawn(exposure_table([exposure(number) for number in (1, 2, 3, 4)]))
    assert "x1-x4  192.0.2.1:9001-9004  tcp://127.0.0.1:8001-8004" in shown and "refused" in shown
    assert shown.count("192.0.2.1") == 1
    shown = drawn(exposure_table([exposure(number) for number in (1, 3, 4)]))
    assert "x1 " in shown and "192.0.2.1:9003-9004" in shown
