"""A member over an engine without packets, and over the real one without TUN."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from overlay.daemon.capture import CaptureReader, CaptureWish, Counts, Started
from overlay.daemon.state import StateDir
from overlay.engine.api import (
    EngineConfig,
    EngineFailed,
    LinkChanged,
    Observed,
    PathSnapshot,
    PeerConfig,
    PeerSnapshot,
    RemovePeer,
    SetPeer,
    SetReach,
    SetRelay,
    StartTap,
)
from overlay.errors import UserError
from overlay.node.interface import Assigned, Machine
from overlay.node.member import FLOOR_FILE, FLOOR_INTERVAL, Identity, Member, MemberSettings, Relay
from overlay.node.peer_configs import peer_configs
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.wire.control.messages import MapNode, NetworkMap
from overlay.wire.disco import Offer
from overlay.wire.endpoint import Endpoint
from tests.node.fake_engine import Engines

KEY = bytes(range(32))
IDENTITY = Identity.parse(
    number=2,
    name="a",
    addresses=["10.77.0.2", "fd12::2"],
    networks=["10.77.0.0/16", "fd12::/48"],
    domains=("local.test",),
)
AES_FIRST = ("aes-256-gcm", "chacha20-poly1305")


def node(number: int, **fields: Any) -> MapNode:
    values: dict[str, Any] = {
        "number": number,
        "name": f"n{number}",
        "key": bytes([number]) * 32,
        "addresses": (f"10.77.0.{number}", f"fd12::{number}"),
    }
    return MapNode(**(values | fields))


def network_map(*nodes: MapNode, version: int = 1) -> NetworkMap:
    return NetworkMap(
        network="ab", version=version, domain="local.test", networks=("10.77.0.0/16", "fd12::/48"), nodes=nodes
    )


class Setup:
    def __init__(self, folder: Path) -> None:
        self.engines = Engines()
        self.state = StateDir(folder).open()
        self.endpoint_changes = 0
        self.link_changes = 0
        self.observed: list[Endpoint] = []
        self.member = Member(
            MemberSettings(private_key=KEY, interface=None),
            self.state,
            on_endpoints=self._count_endpoints,
            on_link_changed=self._count_links,
            on_observed=self.observed.append,
            start_engine=self.engines,
        )

    def _count_endpoints(self) -> None:
        self.endpoint_changes += 1

    def _count_links(self) -> None:
        self.link_changes += 1


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Setup]:
    setup = Setup(folder)
    async with anyio.create_task_group() as tasks:
        await tasks.start(setup.member.run, IDENTITY)
        yield setup
        tasks.cancel_scope.cancel()
    assert not setup.engines.last.running
    assert setup.member.port is None


def test_peers_of_a_map() -> None:
    peers = peer_configs(
        network_map(
            node(1),
            node(2, ciphers=AES_FIRST),
            node(3, ciphers=AES_FIRST, lan=("192.168.1.3:5",), observed=("203.0.113.3:6", "192.168.1.3:5")),
        ),
        2,
    )
    assert sorted(peers) == [1, 3]
    assert peers[1].cipher == "chacha20-poly1305"
    assert peers[3] == PeerConfig(
        number=3,
        public_key=bytes([3]) * 32,
        allowed=(ip_network("10.77.0.3/32"), ip_network("fd12::3/128")),
        cipher="aes-256-gcm",
        endpoints=(("192.168.1.3", 5), ("203.0.113.3", 6)),
        lan_endpoints=(("192.168.1.3", 5),),
    )


@pytest.mark.parametrize("copy_dscp", [False, True])
def test_the_engine_is_told_whether_to_show_the_dscp(tmp_path: Path, copy_dscp: bool) -> None:
    engines = Engines()
    settings = MemberSettings(private_key=KEY, interface=None, copy_dscp=copy_dscp)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(Member(settings, StateDir(tmp_path).open(), start_engine=engines).run, IDENTITY)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert engines.last.config.copy_dscp == copy_dscp


def test_addresses_outside_the_networks_are_nobodys() -> None:
    peers = peer_configs(network_map(node(3, addresses=("10.77.0.3", "192.168.1.1", "2001:db8::1"))), 2)
    assert peers[3].allowed == (ip_network("10.77.0.3/32"),)


@pytest.mark.parametrize("text", ["n3", "N3", "n3.local.test", "n3.local.test.", "10.77.0.3", "FD12:0::3", "3"])
def test_a_peer_is_found_by_all_its_names(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            setup.member.apply_map(network_map(node(2), node(3)))
            assert setup.member.find_peer(text)["number"] == 3

    anyio.run(main)


def test_addresses_of_peers_where_the_resolver_is_off(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            assert setup.member.look_up("n3.local.test") is None
            setup.member.apply_map(network_map(node(2), node(3)))
            assert setup.member.look_up("N3.local.test.") == node(3).addresses
            assert setup.member.look_up("n4.local.test") == ()
            assert setup.member.look_up("www.example.org") is None

    anyio.run(main)


@pytest.mark.parametrize("text", ["", "n", "n4", "10.77.0.4", "n2", "2", "10.77.0.2"])
def test_who_is_no_peer_is_one_sentence(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            setup.member.apply_map(network_map(node(2), node(3)))
            with pytest.raises(UserError, match="peer") as caught:
                setup.member.find_peer(text)
            assert caught.value.code == "peer-unknown"

    anyio.run(main)


def test_a_capture_ends_when_the_engine_does_and_there_is_none_without(tmp_path: Path) -> None:
    async def main() -> None:
        written = bytearray()

        async def write(data: bytes | bytearray) -> None:
            written.extend(data)

        async with anyio.create_task_group() as tasks:
            async with running(tmp_path) as setup:
                engine = setup.engines.last
                tasks.start_soon(setup.member.capture(CaptureWish(outer=True)), write)
                await anyio.wait_all_tasks_blocked()
                (start,) = (command for command in engine.take() if isinstance(command, StartTap))
                assert start.tap.outer and not start.tap.inner
        assert [type(message) for message in CaptureReader().feed(written)] == [Started, Counts, Counts]
        with pytest.raises(UserError) as caught:
            setup.member.capture(CaptureWish(outer=True))
        assert caught.value.code == "not-up"

    anyio.run(main)


def test_a_map_becomes_commands_and_only_changes_are_posted(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            engine = setup.engines.last
            assert engine.config == EngineConfig(private_key=KEY, number=2, interface=None)
            setup.member.apply_map(network_map(node(1), node(2), node(3)))
            posted = [command.peer.number for command in engine.take() if isinstance(command, SetPeer)]
            assert posted == [1, 3]
            setup.member.apply_map(network_map(node(1), node(2), node(3), version=2))
            assert engine.take() == []
            changed = node(3, observed=("203.0.113.3:6",))
            setup.member.apply_map(network_map(node(2), changed, version=3))
            assert engine.take() == [RemovePeer(1), SetPeer(peer_configs(network_map(changed), 2)[3])]

    anyio.run(main)


def test_a_map_that_came_before_the_start_is_posted_at_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        setup.member.apply_map(network_map(node(3)))
        async with anyio.create_task_group() as tasks:
            await tasks.start(setup.member.run, IDENTITY)
            assert [type(command) for command in setup.engines.last.take()] == [SetReach, SetPeer]
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:  # and again under another identity
            await tasks.start(setup.member.run, replace(IDENTITY, number=9))
            assert setup.engines.last.config.number == 9
            assert [type(command) for command in setup.engines.last.take()] == [SetReach, SetPeer]
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_relay_is_set_once_the_map_tells_its_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            relay = Relay((("203.0.113.1", 443),), 1, 7)
            setup.engines.last.take()
            setup.member.set_relay(relay)
            assert setup.engines.last.take() == []
            setup.member.apply_map(network_map(node(1)))
            wanted = SetRelay(relay.endpoints, 1, bytes([1]) * 32, 7)
            assert wanted in setup.engines.last.take()
            setup.member.apply_map(network_map(node(1)))
            assert setup.engines.last.take() == []
            setup.member.set_relay(relay)
            assert setup.engines.last.take() == [wanted], "a relay that started anew asks nobody by itself"

    anyio.run(main)


def test_observed_endpoints_one_for_each_family(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            before = setup.endpoint_changes
            for endpoint in (("203.0.113.2", 1), ("2001:db8::2", 1), ("203.0.113.2", 5), ("203.0.113.2", 5)):
                setup.engines.last.on_event(Observed(endpoint))
                await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            assert setup.member.observed == ("203.0.113.2:5", "[2001:db8::2]:1")
            assert setup.endpoint_changes == before + 3

    anyio.run(main)


def test_the_engine_is_told_of_the_nat_and_of_all_own_endpoints(tmp_path: Path) -> None:
    def reaches(setup: Setup) -> list[SetReach]:
        return [each for each in setup.engines.last.take() if isinstance(each, SetReach)]

    async def main() -> None:
        async with running(tmp_path) as setup:
            (first,) = reaches(setup)
            assert first.nat == UNKNOWN_NAT
            outside, mapped = ("203.0.113.2", 5), ("203.0.113.2", 41641)
            setup.member.set_nat(NatBehaviour(translated=True))
            setup.member.set_outside("stun", (outside,))
            setup.member.set_outside("stun", (outside,))
            setup.member.set_outside("mapped", (mapped,))
            assert [(each.nat.translated, each.offers) for each in reaches(setup)] == [
                (True, first.offers),
                (True, (*first.offers, Offer(outside, "observed"))),
                (True, (*first.offers, Offer(mapped, "mapped"), Offer(outside, "observed"))),
            ]
            setup.engines.last.on_event(Observed(outside))  # the relay says the same
            await anyio.lowlevel.checkpoint()
            assert setup.observed[-1:] == [outside]
            assert reaches(setup) == []
            told = [setup.member.observed]
            setup.member.set_outside("mapped", ())
            told.append(setup.member.observed)
        told.append(setup.member.observed)
        assert told == [("203.0.113.2:41641", "203.0.113.2:5"), ("203.0.113.2:5",), ()]

    anyio.run(main)


def test_a_changed_machine_is_told_to_the_engine_and_to_the_owner(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            setup.member._machine_changed(Machine((Assigned("192.0.2.99", "eth0"),)))
            assert LinkChanged() in setup.engines.last.take()
            assert setup.link_changes == 1
            assert setup.member.lan == ("192.0.2.99:41641",)

    anyio.run(main)


def test_peers_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as setup:
            setup.member.apply_map(network_map(node(2), node(3, online=True), node(4)))
            path = PathSnapshot("udp", ("198.51.100.7", 41641), 1764000000.0, 1444)
            setup.engines.last.peers = (PeerSnapshot(3, path, 0.0031, 41.0, 1, 2),)
            online, offline = setup.member.peers(await setup.member.snapshot())
            assert msgspec.to_builtins(online) == {
                "name": "n3",
                "addresses": ("10.77.0.3", "fd12::3"),
                "online": True,
                "path": {"kind": "udp", "endpoint": "198.51.100.7:41641", "since": 1764000000.0, "mtu": 1444},
                "rtt_ms": 3.1,
                "last_handshake_s": 41.0,
                "rx_bytes": 1,
                "tx_bytes": 2,
            }
            assert (offline.name, offline.online, offline.path, offline.rtt_ms) == ("n4", False, None, None)

    anyio.run(main)


def test_an_engine_that_fails_ends_the_member(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        caught: list[UserError] = []

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with pytest.raises(UserError) as error:
                await setup.member.run(IDENTITY, task_status=task_status)
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            await tasks.start(run)
            setup.engines.last.on_event(EngineFailed(ValueError("boom")))
        assert caught[0].code == "engine-failed"
        assert "boom" in caught[0].message
        assert not setup.engines.last.running

    anyio.run(main)


def test_the_timestamp_floor_is_kept_ahead(tmp_path: Path) -> None:
    async def main() -> None:
        now = 1_764_000_000_000_000_000
        async with running(tmp_path) as setup:
            setup.engines.last.timestamp = now
        ahead = now + int(2 * FLOOR_INTERVAL * 1e9)
        assert setup.state.read(FLOOR_FILE) == str(ahead).encode()
        async with running(tmp_path) as setup:
            assert setup.engines.last.config.timestamp_floor == ahead
            setup.engines.last.timestamp = ahead  # nothing above the floor was given out
        assert setup.state.read(FLOOR_FILE) == str(ahead).encode()

    anyio.run(main)


@pytest.mark.parametrize("content", [b"", b"-1", b"x", b"9" * 21])
def test_a_damaged_floor_is_named(tmp_path: Path, content: bytes) -> None:
    async def main() -> None:
        (tmp_path / FLOOR_FILE).write_bytes(content)
        with pytest.raises(UserError) as caught:
            await Setup(tmp_path).member.run(IDENTITY)
        assert caught.value.code == "state-corrupt"

    anyio.run(main)


def test_the_real_engine_without_tun(tmp_path: Path) -> None:
    async def main() -> None:
        member = Member(MemberSettings(private_key=KEY, interface=None), StateDir(tmp_path).open())
        async with anyio.create_task_group() as tasks:
            await tasks.start(member.run, IDENTITY)
            assert member.interface is None
            assert member.port
            assert all(endpoint.endswith(f":{member.port}") for endpoint in member.lan)
            snapshot = await member.snapshot()
            assert snapshot is not None
            assert snapshot.port == member.port
            tasks.cancel_scope.cancel()
        assert await member.snapshot() is None

    anyio.run(main)
