"""The whole daemon but for packets: local API, control client, member and exposures, against a server over loopback."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from anyio.abc import TaskStatus

from overlay.daemon.client import LocalClient
from overlay.daemon.process import unwrapped
from overlay.daemon.state import StateDir
from overlay.engine.api import AddLink, Observed, RelayChanged, SetPeer, SetRelay
from overlay.errors import Exit, UserError
from overlay.node.daemon import NodeDaemon
from overlay.node.joining import default_name
from overlay.node.settings import NodeSettings
from overlay.wire.control.messages import Endpoints, Leave, MapRecord, Refused
from tests.node.fake_engine import Engines
from tests.node.stub_server import NODE_ADDRESS, SERVER_ADDRESS, StubServer, map_node


class Node:
    def __init__(self, folder: Path, invite: str = "", name: str = "", carriers: str = "auto") -> None:
        self.engines = Engines()
        self.state = StateDir(folder).open()
        self.client = LocalClient(folder)
        settings = NodeSettings(
            state=str(folder),
            invite=invite,
            name=name,
            dscp="copy",
            names=False,
            carriers=carriers,
            port_mapping=False,  # a test leaves the router of who runs it alone
        )
        self.daemon = NodeDaemon(settings, self.state, start_engine=self.engines)

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(self.client.request, method, path, body)

    async def until_state(self, state: str) -> dict[str, Any]:
        with anyio.fail_after(10):
            while True:
                try:
                    status = await self.call("GET", "/v1/status")
                except UserError:  # the socket is not there yet
                    await anyio.lowlevel.checkpoint()
                    continue
                if status["state"] == state:
                    return status

    async def run(self) -> None:
        await unwrapped(self.daemon.run)


@asynccontextmanager
async def up(node: Node) -> AsyncIterator[None]:
    """The node until the block ends, then down in order."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.run)
        yield
        await node.call("POST", "/v1/down")


@asynccontextmanager
async def server_running(server: StubServer) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.run)
        yield
        tasks.cancel_scope.cancel()


def test_joins_shows_itself_and_leaves(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        server.map = type(server.map)(
            network="ab",
            version=5,
            domain="local.test",
            networks=server.map.networks,
            nodes=(map_node(1, "server", online=True), map_node(2, "a"), map_node(3, "b", online=True)),
        )
        async with server_running(server):
            node = Node(tmp_path, server.invite(), "a")
            async with up(node):
                status = await node.until_state("connected")
                assert (status["name"], status["addresses"]) == ("a", [NODE_ADDRESS])
                assert status["domain"] == "local.test"
                assert status["server"]["address"] == server.address
                assert [peer["name"] for peer in status["peers"]] == ["server", "b"]
                assert status["drops"] == {"bad_tag": 2}
                hello = server.hellos[0]
                assert (hello.name, hello.name_chosen, hello.invite) == ("a", True, bytes(16))
                assert node.engines.last.config.copy_dscp
                commands = node.engines.last.commands
                assert sorted(each.peer.number for each in commands if isinstance(each, SetPeer)) == [1, 3]
                relays = [each for each in commands if isinstance(each, SetRelay)]
                assert relays[0].endpoints == (("127.0.0.1", server.port), ("192.0.2.1", server.port))
                node.engines.last.on_event(Observed(("203.0.113.9", 4)))
                await server.until(
                    lambda: any(
                        isinstance(each, Endpoints) and each.observed == ("203.0.113.9:4",) for each in server.received
                    )
                )
            await server.until(lambda: Leave() in server.received)
        assert not node.engines.last.running
        with pytest.raises(UserError) as caught:
            node.client.request("GET", "/v1/status")
        assert caught.value.exit_code is Exit.NOT_RUNNING

    anyio.run(main)


def test_comes_back_without_an_invite_and_works_without_the_server(tmp_path: Path) -> None:
    server = StubServer()

    async def first_life() -> None:
        async with server_running(server):
            node = Node(tmp_path, server.invite(), "a")
            async with up(node):
                await node.until_state("connected")

    async def second_life() -> None:
        node = Node(tmp_path)
        async with up(node):
            status = await node.until_state("offline")
            assert (status["name"], status["addresses"]) == ("a", [NODE_ADDRESS])
            assert [peer["name"] for peer in status["peers"]] == ["server"]
            engine = node.engines.last
            assert engine.running
            async with anyio.create_task_group() as tasks:
                await tasks.start(server_on, server.port)
                await node.until_state("connected")
                assert server.hellos[-1].invite == b""
                assert server.hellos[-1].map_version == server.map.version
                assert node.engines.last is engine  # no session was dropped
                tasks.cancel_scope.cancel()

    async def server_on(port: int, *, task_status: TaskStatus[None]) -> None:
        await server.run(port=port, task_status=task_status)

    anyio.run(first_life)  # each life in a loop of its own, as it has a process of its own
    anyio.run(second_life)


def test_a_new_identity_from_the_server_restarts_the_member(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            node = Node(tmp_path, server.invite())
            async with up(node):
                await node.until_state("connected")
                welcome = server.welcome
                server.answer = lambda hello: type(welcome(hello))(
                    **{
                        field: getattr(welcome(hello), field)
                        for field in welcome(hello).__struct_fields__
                        if field not in ("number", "addresses")
                    },
                    number=9,
                    addresses=("127.77.0.9",),
                )
                await server.connections[0].aclose()
                with anyio.fail_after(10):
                    while (await node.until_state("connected"))["addresses"] != ["127.77.0.9"]:
                        await anyio.lowlevel.checkpoint()
                assert [engine.config.number for engine in node.engines.made] == [2, 9]
                assert [engine.running for engine in node.engines.made] == [False, True]

    anyio.run(main)


def test_exposures_by_the_local_api(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            node = Node(tmp_path, server.invite())
            async with up(node):
                await node.until_state("connected")
                element = await node.call("POST", "/v1/exposures", {"target": "8080", "public": "9000"})
                assert (element["id"], element["target"]) == ("x1", "tcp://127.0.0.1:8080")
                assert await node.call("GET", "/v1/exposures") == {"exposures": [element]}
                assert (await node.call("GET", "/v1/status"))["exposures"] == [element]
                for body in ({}, {"target": 8080}, {"target": "8080", "public": 1}):
                    with pytest.raises(UserError) as caught:
                        await node.call("POST", "/v1/exposures", body)
                    assert caught.value.exit_code is Exit.USAGE
                assert await node.call("DELETE", "/v1/exposures/x1") == {}
                assert server.exposures == ()
                with pytest.raises(UserError) as caught:
                    await node.call("DELETE", "/v1/exposures/x1")
                assert caught.value.code == "exposure-unknown"

    anyio.run(main)


def test_the_servers_address_comes_from_the_map(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            node = Node(tmp_path, server.invite())
            async with up(node):
                await node.until_state("connected")
                assert node.daemon._is_server(SERVER_ADDRESS)
                assert not node.daemon._is_server(NODE_ADDRESS)

    anyio.run(main)


def test_a_refused_invite_ends_it_and_nothing_is_remembered(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        server.answer = lambda _: Refused(code="invite-used-up", message="Used up.", hint="Ask for another.")
        async with server_running(server):
            node = Node(tmp_path, server.invite())
            with pytest.raises(UserError) as caught:
                await node.run()
            assert (caught.value.code, caught.value.exit_code) == ("invite-used-up", Exit.REFUSED)
            assert not node.engines.made
            with pytest.raises(UserError) as caught:
                Node(tmp_path)
            assert caught.value.code == "not-joined"

    anyio.run(main)


def test_a_removed_node_ends_and_takes_its_engine_down(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            node = Node(tmp_path, server.invite())

            async def remove() -> None:
                await node.until_state("connected")
                await server.connections[0].send(Refused(code="removed", message="Removed."))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(remove)
                with pytest.raises(UserError) as caught:
                    await node.run()
            assert caught.value.code == "removed"
            assert not node.engines.last.running

    anyio.run(main)


def test_an_unreachable_server_at_the_first_start(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            pass
        with pytest.raises(UserError) as caught:
            await Node(tmp_path, server.invite()).run()
        assert caught.value.exit_code is Exit.UNREACHABLE

    anyio.run(main)


def test_without_udp_packets_go_by_a_link_and_the_status_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with server_running(server):
            node = Node(tmp_path, server.invite(), "a", carriers="tcp")
            async with up(node):
                status = await node.until_state("connected")
                assert status["server"]["carrier"] == "tcp"
                assert status["server"]["carrier_why"] == "the only one allowed"
                engine = node.engines.last
                with anyio.fail_after(10):
                    while not any(isinstance(each, AddLink) for each in engine.commands):
                        await anyio.lowlevel.checkpoint()
                relay = next(each for each in engine.commands if isinstance(each, SetRelay))
                assert relay.endpoints == ()
                link = next(each for each in engine.commands if isinstance(each, AddLink))
                assert (link.client, link.carrier) == (None, "tcp")
                status = await node.until_state("connected")
                assert status["server"]["data_carrier"] is None
                engine.on_event(RelayChanged(("@link", link.number), suspect=False))
                await anyio.lowlevel.checkpoint()
                status = await node.until_state("connected")
                assert status["server"]["data_carrier"] == "tcp"

    anyio.run(main)


def test_a_wrong_carrier_ends_it_before_anything_is_kept(tmp_path: Path) -> None:
    server = StubServer()
    server.port = 1
    with pytest.raises(UserError) as caught:
        Node(tmp_path, server.invite(), carriers="smoke")
    assert (caught.value.code, caught.value.exit_code) == ("carrier-unknown", Exit.USAGE)
    assert not list(tmp_path.iterdir())


def test_names_that_others_have_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        server, host = StubServer(), default_name(socket.gethostname())
        record = MapRecord(name="web.local.test", rtype="TXT", value="x", node=2)
        server.map = msgspec.structs.replace(
            server.map,
            nodes=(map_node(1, "server"), map_node(2, f"{host}-2"), map_node(3, host), map_node(4, "web")),
            records=(record,),
        )
        async with server_running(server):
            node = Node(tmp_path, server.invite())
            async with up(node):
                status = await node.until_state("connected")
                first, second = status["warnings"]
                assert f"Another node is called '{host}', so this one is '{host}-2'" in first
                assert "The record web.local.test TXT of this node is not served" in second
                assert status["domains"] == ["local.test"]
                nodes = tuple(each for each in server.map.nodes if each.number < 3)
                await server.set_map(nodes=nodes)  # those who had the names are gone
                with anyio.fail_after(10):
                    while (await node.call("GET", "/v1/status"))["warnings"]:
                        await anyio.lowlevel.checkpoint()

    anyio.run(main)
