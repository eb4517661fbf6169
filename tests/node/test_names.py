"""Names on one machine: the real resolver on loopback, and a resolver file of the test's own."""

import socket
from ipaddress import ip_address
from pathlib import Path

import anyio
from dnslib import QTYPE, DNSLabel, DNSRecord

from overlay.daemon.state import StateDir
from overlay.node.names import Names, build_zones
from overlay.wire.control.messages import MapNode, NetworkMap
from overlay_dns.osconfig.system import SystemDns

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


def test_serves_takes_the_system_over_and_puts_it_back(tmp_path: Path) -> None:
    async def main() -> None:
        state, file = StateDir(tmp_path / "state").open(), tmp_path / "resolv.conf"
        file.write_text("nameserver 192.0.2.53\n")
        names = Names(state, system=SystemDns(state, file), port=0)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), "local.test")
            assert names.warning == ""
            assert file.read_text().splitlines()[1:] == [
                "search local.test",
                "nameserver 127.77.0.2",
                "nameserver 192.0.2.53",
            ]
            assert names.port is not None
            assert names.upstreams == (("192.0.2.53", 53),)  # whom to ask for the way to the server
            assert await ask(names.port, "b.local.test") == []
            names.set_map(MAP)
            assert await ask(names.port, "b.local.test") == ["127.77.0.3"]
            tasks.cancel_scope.cancel()
        assert file.read_text() == "nameserver 192.0.2.53\n"
        assert names.port is None and names.upstreams == ()

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
                await tasks.start(names.run, (OWN,), "local.test")
                assert "in use" in names.warning
                assert file.read_text() == "nameserver 192.0.2.53\n"
                tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_resolver_file_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    async def main() -> None:
        state = StateDir(tmp_path / "state").open()
        names = Names(state, system=SystemDns(state, tmp_path / "missing" / "resolv.conf"), port=0)
        async with anyio.create_task_group() as tasks:
            await tasks.start(names.run, (OWN,), "local.test")
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
            await tasks.start(names.run, (OWN,), "local.test")
            assert names.warning
            assert file.read_text() == "nameserver 192.0.2.53\n"
            tasks.cancel_scope.cancel()

    anyio.run(main)
