"""What `overlay.node.interface` does to a real kernel, and reads from one."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import anyio
import pytest

from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.interface import Assigned, Interface, Machine, Route, local_candidates, read_machine, watch_machine
from overlay.node.member import Identity, Member, MemberSettings
from overlay.wire.record.buffers import SUPERPACKET_SIZE
from tests.lab.conftest import inside
from tests.lab.netns import Namespace

pytestmark = pytest.mark.lab

IDENTITY = Identity.parse(
    number=2,
    name="a",
    addresses=["10.77.0.2", "fd12:3456:789a::2"],
    networks=["10.77.0.0/16", "fd12:3456:789a::/48"],
    domains=("local.test",),
)


def test_reads_addresses_and_routes(host: Namespace) -> None:
    async def main() -> None:
        machine = await read_machine()
        assert machine == Machine(
            (Assigned("192.0.2.2", "eth0"), Assigned("2001:db8::2", "eth0")) + machine.addresses[2:],
            (Route("192.0.2.0/24", "eth0"), Route("2001:db8::/64", "eth0")),
        )
        assert local_candidates(machine, 5) == (("192.0.2.2", 5), ("2001:db8::2", 5))

    inside(host, main)


def test_watches_changes_and_ignores_the_overlays_own(host: Namespace) -> None:
    async def main() -> None:
        changes: list[Machine] = []
        changed = anyio.Event()

        def take(machine: Machine) -> None:
            changes.append(machine)
            changed.set()

        async def watch(*, task_status: anyio.abc.TaskStatus[Machine]) -> None:
            await watch_machine(take, ignore="own0", task_status=task_status)

        async with anyio.create_task_group() as tasks:
            await tasks.start(watch)
            await anyio.to_thread.run_sync(host.run, ["ip", "link", "add", "own0", "type", "veth", "peer", "own1"])
            await anyio.to_thread.run_sync(host.run, ["ip", "address", "add", "192.0.2.77/32", "dev", "own0"])
            await anyio.to_thread.run_sync(host.run, ["ip", "address", "add", "192.0.2.9/32", "dev", "eth0"])
            with anyio.fail_after(5):
                await changed.wait()
            tasks.cancel_scope.cancel()
        assert Assigned("192.0.2.9", "eth0") in changes[-1].addresses
        assert all(assigned.interface != "own0" for change in changes for assigned in change.addresses)

    inside(host, main)


def of(interface: str, machine: Machine) -> tuple[list[Assigned], list[Route]]:
    addresses = [each for each in machine.addresses if each.interface == interface]
    return addresses, [each for each in machine.routes if each.interface == interface]


def test_configures_and_configures_anew(host: Namespace) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(host.run, ["ip", "link", "add", "own0", "type", "veth", "peer", "own1"])
        await anyio.to_thread.run_sync(host.run, ["ip", "link", "set", "own1", "up"])
        own = Interface("own0")
        await own.configure(IDENTITY.addresses, IDENTITY.networks)
        before = await read_machine()
        assert {each.address for each in before.addresses if each.interface == "own0"} == {
            "10.77.0.2",
            "fd12:3456:789a::2",
        }
        assert Route("10.77.0.0/16", "own0") in before.routes
        assert Route("fd12:3456:789a::/48", "own0") in before.routes
        link = host.run(["ip", "-d", "link", "show", "own0"]).stdout
        assert "mtu 1380" in link
        assert f"gso_max_size {SUPERPACKET_SIZE}" in link
        await own.configure(IDENTITY.addresses, IDENTITY.networks)
        again = await read_machine()
        assert of("own0", again) == of("own0", before)  # of others, addresses of the link itself may come meanwhile
        await own.configure([ip_address("10.78.0.9")], [ip_network("10.78.0.0/16")])
        after = await read_machine()
        assert {each.address for each in after.addresses if each.interface == "own0"} == {"10.78.0.9"}

    inside(host, main)


def test_an_interface_that_is_not_there(host: Namespace) -> None:
    async def main() -> None:
        with pytest.raises(UserError) as caught:
            await Interface("nosuch0").configure(IDENTITY.addresses, IDENTITY.networks)
        assert caught.value.code == "interface-failed"

    inside(host, main)


def test_a_member_without_ipv6_works_and_warns(host: Namespace, tmp_path: Path) -> None:
    host.set("net.ipv6.conf.default.disable_ipv6", 1)

    async def main() -> None:
        member = Member(MemberSettings(private_key=bytes(range(32)), names=False), StateDir(tmp_path).open())
        async with anyio.create_task_group() as tasks:
            await tasks.start(member.run, IDENTITY)
            assert member.interface == "overlay0"
            assert "IPv6" in member.warnings[0]
            assert Assigned("10.77.0.2", "overlay0") in (await read_machine()).addresses
            tasks.cancel_scope.cancel()
        assert all(assigned.interface != "overlay0" for assigned in (await read_machine()).addresses)

    inside(host, main)


def test_a_member_refuses_a_range_that_is_routed_elsewhere(host: Namespace, tmp_path: Path) -> None:
    host.run(["ip", "route", "add", "10.77.4.0/24", "via", "192.0.2.1"])

    async def main() -> None:
        member = Member(MemberSettings(private_key=bytes(range(32)), names=False), StateDir(tmp_path).open())
        with pytest.raises(UserError) as caught:
            await member.run(IDENTITY)
        assert caught.value.code == "range-overlaps"
        assert "10.77.4.0/24 through eth0" in caught.value.message

    inside(host, main)
