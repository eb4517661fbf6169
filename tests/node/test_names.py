"""Names on one machine: the real resolver on loopback, and a resolver file of the test's own."""

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import msgspec
from dnslib import QTYPE, DNSLabel, DNSRecord

from overlay.daemon.state import StateDir
from overlay.node.names import Names, build_zones, choose_upstreams
from overlay.wire.control.messages import MapNode, MapRecord, NetworkMap
from overlay_dns.osconfig.system import SystemDns
from overlay_dns.upstream import Upstream
from overlay_dns.zone import Zones

OWN = ip_address("127.77.0.2")
MAP = NetworkMap(
    network="ab",
    version=3,
    domain="local.test",
    networks=("127.77.0.0/16",),
    nodes=(MapNode(number=3, name="b", key=bytes(32), addresses=("127.77.0.3", "fd12::3")),),
)


async def ask(port: int, name: str) -> list[str]:
    async with await anyio.create_connected_udp_socket(str(OWN), port, local_host=str(OWN)) as udp:
        await udp.send(DNSRecord.question(name).pack())
        with anyio.fail_after(5):
            reply = DNSRecord.parse(await udp.receive())
    return [str(record.rdata) for record in reply.rr]


def test_zone_of_a_map() -> None:
    zones = build_zones(MAP)
    for name, kind, value in (("b.local.test", "A", "127.77.0.3"), ("3.0.77.127.in-addr.arpa", "PTR", "b.local.test.")):
        answer = zones.answer(DNSLabel(name), getattr(QTYPE, kind))
        assert answer is not None and [str(record.rdata) for record in answer.records] == [value]


def test_zones_are_made_anew_only_when_names_change(tmp_path: Path) -> None:
    names = Names(StateDir(tmp_path).open(), system=SystemDns(StateDir(tmp_path)))
    names.set_map(MAP)
    first = names._zones
    (node,) = MAP.nodes
    small: list[dict[str, Any]] = [{"online": True}, {"observed": ("192.0.2.1:5",)}, {"epoch": 7}]
    for number, change in enumerate(small):
        node = msgspec.structs.replace(node, **change)
        names.set_map(msgspec.structs.replace(MAP, version=4 + number, nodes=(node,)))
        assert names._zones is first
    renamed = msgspec.structs.replace(node, name="c")
    moved = msgspec.structs.replace(node, addresses=("127.77.0.9",))
    record = MapRecord(name="api.local.test", rtype="A", value="192.0.2.1", node=3)
    changes: list[dict[str, Any]] = [
        {"nodes": (renamed,)},
        {"nodes": (moved,)},
        {"nodes": ()},
        {"records": (record,)},
        {"domain": "other.test"},
        {"more_domains": ("more.test",)},
        {"networks": ("127.0.0.0/8",)},
    ]
    for change in changes:
        before = names._zones
        names.set_map(msgspec.structs.replace(MAP, version=10, **change))
        assert names._zones is not before, change


def answers(zones: Zones, name: str, kind: str) -> list[str]:
    answer = zones.answer(DNSLabel(name), getattr(QTYPE, kind))
    assert answer is not None
    return [str(record.rdata) for record in answer.records]


def test_records_of_people_stand_beside_the_nodes_names() -> None:
    records = [
        ("api.local.test", "A", "192.0.2.1", 3),
        ("api.local.test", "AAAA", "2001:db8::1", 3),
        ("www.local.test", "CNAME", "b.local.test", 4),
        ("_ssh._tcp.b.local.test", "SRV", "0 5 22 b.local.test", 3),
        ("b.local.test", "TXT", "hello", 3),
        ("b.local.test", "A", "192.0.2.66", 3),  # the node's addresses are the network's
        ("db.b.local.test", "A", "192.0.2.66", 4),  # another node's name
        ("api.example.org", "A", "192.0.2.66", 3),  # no address of the node's
        ("app.example.org", "A", "127.77.0.3", 4),  # nor this
        ("svc.local.test", "HTTPS", "1 .", 3),  # of a later version
    ]
    made = [MapRecord(name=name, rtype=rtype, value=value, node=node) for name, rtype, value, node in records]
    zones = build_zones(msgspec.structs.replace(MAP, records=tuple(made)))
    assert answers(zones, "api.local.test", "A") == ["192.0.2.1"]
    assert answers(zones, "api.local.test", "AAAA") == ["2001:db8::1"]
    assert answers(zones, "www.local.test", "A") == ["b.local.test.", "127.77.0.3"]
    assert answers(zones, "_ssh._tcp.b.local.test", "SRV") == ["0 5 22 b.local.test."]
    assert answers(zones, "b.local.test", "TXT") == ['"hello"']
    assert answers(zones, "b.local.test", "A") == ["127.77.0.3"]
    assert answers(zones, "db.b.local.test", "A") == ["127.77.0.3"]
    assert answers(zones, "svc.local.test", "A") == []
    assert zones.answer(DNSLabel("api.example.org"), QTYPE.A) is None
    assert zones.answer(DNSLabel("app.example.org"), QTYPE.A) is None


def test_public_names_of_exposures_lead_to_their_nodes_and_the_servers_own_does_not() -> None:
    names = ("app.example.org", "vpn.example.org")
    made = tuple(MapRecord(name=name, rtype="A", value="127.77.0.3", node=3) for name in names)
    zones = build_zones(msgspec.structs.replace(MAP, records=made), frozenset({"vpn.example.org"}))
    assert answers(zones, "app.example.org", "A") == ["127.77.0.3"]
    assert zones.answer(DNSLabel("vpn.example.org"), QTYPE.A) is None
    assert zones.elsewhere == ("app.example.org",)


def test_each_domain_has_all_names_and_reverse_names_are_of_the_first() -> None:
    record = MapRecord(name="api.corp.example", rtype="A", value="192.0.2.1", node=3)
    zones = build_zones(msgspec.structs.replace(MAP, more_domains=("corp.example",), records=(record,)))
    for domain in ("local.test", "corp.example"):
        for name in (f"b.{domain}", f"any.b.{domain}"):
            assert answers(zones, name, "A") == ["127.77.0.3"]
    assert answers(zones, "api.corp.example", "A") == ["192.0.2.1"] and answers(zones, "api.local.test", "A") == []
    assert answers(zones, "3.0.77.127.in-addr.arpa", "PTR") == ["b.local.test."]
    assert {"local.test", "corp.example"} < set(zones.origins)


def test_all_names_below_a_node_are_the_nodes() -> None:
    zones = build_zones(MAP)
    assert answers(zones, "anything.at.all.b.local.test", "A") == ["127.77.0.3"]
    assert answers(zones, "x.b.local.test", "AAAA") == ["fd12::3"]
    wish = MapRecord(name="*.b.local.test", rtype="CNAME", value="api.local.test", node=3)
    zones = build_zones(msgspec.structs.replace(MAP, records=(wish,)))
    assert answers(zones, "x.b.local.test", "A") == ["api.local.test."]


def test_serves_takes_the_system_over_and_puts_it_back(tmp_path: Path) -> None:
    async def main() -> None:
        state, file = StateDir(tmp_path / "state").open(), tmp_path / "resolv.conf"
        file.write_text("nameserver 192.0.2.53\n")
        names = Names(state, system=SystemDns(state, file), port=0)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), ("local.test",))
            assert names.warning == ""
            assert file.read_text().splitlines()[1:] == [
                "search local.test",
                "nameserver 127.77.0.2",
                "nameserver 192.0.2.53",
                "options timeout:1 attempts:2",
            ]
            assert names.port is not None
            assert names.upstreams == (Upstream("192.0.2.53"),)  # whom to ask for the way to the server
            assert await ask(names.port, "b.local.test") == []
            names.set_map(MAP)
            assert await ask(names.port, "b.local.test") == ["127.77.0.3"]
            tasks.cancel_scope.cancel()
        assert file.read_text() == "nameserver 192.0.2.53\n"
        assert names.port is None and names.upstreams == ()

    anyio.run(main)


def test_what_a_person_chose_comes_before_the_systems() -> None:
    corp, private = Upstream("192.0.2.1", domains=("corp.example",)), Upstream("192.0.2.2", 853, tls="192.0.2.2")
    assert choose_upstreams(["192.0.2.53"], []) == (Upstream("192.0.2.53"),)
    assert choose_upstreams(["192.0.2.53"], [corp]) == (corp, Upstream("192.0.2.53"))
    *chosen, system = choose_upstreams(["192.0.2.53"], [corp, private])
    assert chosen == [corp, private] and "local" in system.domains, "the system's is left the names of the link"


def test_it_never_asks_itself_whatever_the_system_names(tmp_path: Path) -> None:
    async def main() -> None:
        state, file = StateDir(tmp_path / "state").open(), tmp_path / "resolv.conf"
        file.write_text(f"nameserver {OWN}\n")  # left by somebody
        names = Names(state, [Upstream(str(OWN), 1)], system=SystemDns(state, file), port=0)
        names.set_map(MAP)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), "local.test")
            names._chosen = (Upstream(str(OWN), names.port or 0),)  # now that the port is known
            names._take_upstreams([str(OWN)], str(OWN))
            answer = await names.query("a.example", "A")
            assert (answer.rcode, answer.upstreams) == ("SERVFAIL", ())
            assert names.status().drops == {"no_upstream": 1}
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_taken_port_is_a_warning_and_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        state, file = StateDir(tmp_path / "state").open(), tmp_path / "resolv.conf"
        file.write_text("nameserver 192.0.2.53\n")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
            taken.bind((str(OWN), 0))
            taken.listen()
            names = Names(state, system=SystemDns(state, file), port=taken.getsockname()[1])
            async with anyio.create_task_group() as tasks:
                await tasks.start(names.run, (OWN,), ("local.test",))
                assert "in use" in names.warning
                assert file.read_text() == "nameserver 192.0.2.53\n"
                tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_resolver_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    async def main() -> None:
        state = StateDir(tmp_path / "state").open()
        names = Names(state, system=SystemDns(state, tmp_path / "missing" / "resolv.conf"), port=0)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), ("local.test",))
            assert names.warning
            assert names.port is None
            tasks.cancel_scope.cancel()
        assert not state.read("resolv-conf.json")

    anyio.run(main)


def test_a_state_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    async def main() -> None:
        state, file = StateDir(tmp_path / "state").open(), tmp_path / "resolv.conf"
        file.write_text("nameserver 192.0.2.53\n")
        state.path.rmdir()  # nobody may write there, not even root
        names = Names(state, system=SystemDns(state, file), port=0)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), ("local.test",))
            assert names.warning
            assert file.read_text() == "nameserver 192.0.2.53\n"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_addresses_of_a_name_of_the_network(tmp_path: Path) -> None:
    names = Names(StateDir(tmp_path).open(), system=SystemDns(StateDir(tmp_path)))
    assert names.addresses("b.local.test") is None
    records = [
        MapRecord(name="alias.local.test", rtype="CNAME", value="b.local.test.", node=3),
        MapRecord(name="away.local.test", rtype="CNAME", value="www.example.org.", node=3),
    ]
    names.set_map(msgspec.structs.replace(MAP, records=tuple(records)))
    for name in ("b.local.test", "B.Local.Test.", "any.b.local.test", "alias.local.test"):
        assert names.addresses(name) == ("127.77.0.3", "fd12::3"), name
    assert names.addresses("c.local.test") == ()
    for name in ("away.local.test", "www.example.org", "b", "", "a..b", "x" * 300):
        assert names.addresses(name) is None, name
