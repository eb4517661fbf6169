"""A whole server over loopback: nodes join, see each other, leave, are removed, and come back after a restart."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from overlay.carrier.carriers import Detached
from overlay.carrier.tcp import ConnectionLost
from overlay.engine.api import AddLink, LinkLost, RemoveClient, RemoveLink, SetClient, SetPeer
from overlay.errors import Exit, UserError
from overlay.server import control as control_module
from overlay.server.control import TokenBucket
from overlay.server.network import HEARTBEAT
from overlay.wire.control.messages import (
    AddRecord,
    Attach,
    Attached,
    Done,
    Endpoints,
    Expose,
    Exposed,
    Failed,
    Hello,
    Leave,
    Ping,
    Pong,
    Recorded,
    Refused,
    RemoveRecord,
    SignedMap,
    Unexpose,
    Welcome,
)
from tests.server.running import PATIENCE, Node, Running, online_names, running


def with_server(tmp_path: Path, *tests: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    """Each test gets a server with a loop of its own, as a process has, all of them over the same state folder."""

    async def main(test: Callable[[Running], Awaitable[None]]) -> None:
        with anyio.fail_after(3 * PATIENCE):
            async with running(tmp_path, **settings) as server:
                await test(server)

    for test in tests:
        anyio.run(main, test)


def test_two_nodes_see_each_other_come_and_go(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        a = await server.node().connect(invite, name="a", ciphers=("aes-256-gcm", "chacha20-poly1305"))
        b = await server.node().connect(invite, name="b", endpoints=("192.0.2.7:5",))
        assert a.welcome is not None and b.welcome is not None
        assert a.welcome.addresses[0] == "10.77.0.2" and b.welcome.addresses[0] == "10.77.0.3"
        assert a.welcome.networks[0] == "10.77.0.0/16" and a.welcome.domain == "local.test"
        assert a.welcome.ticket != b.welcome.ticket
        started = anyio.current_time()
        seen = await a.sees(lambda network: online_names(network) == {"server", "a", "b"})
        assert anyio.current_time() - started < 1.0
        nodes = {node.name: node for node in seen.nodes}
        assert nodes["b"].lan == ("192.0.2.7:5",) and nodes["b"].key == b.public_key
        assert nodes["a"].ciphers == ("aes-256-gcm", "chacha20-poly1305")
        await b.connection.send(Endpoints(lan=("192.0.2.8:5",), observed=("127.0.0.1:1", "198.51.100.1:6")))
        seen = await a.sees(lambda network: any(node.observed for node in network.nodes if node.name == "b"))
        assert {node.name: node.observed for node in seen.nodes}["b"] == ("198.51.100.1:6",)
        await b.connection.send(Leave())
        await a.sees(lambda network: online_names(network) == {"server", "a"})
        assert (await server.request("GET", "/v1/status"))["drops"]["endpoint"] == 1

    with_server(tmp_path, test)


def test_nodes_that_come_together_are_admitted_together_each_on_its_own_merits(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=8)
        nodes = [await server.node().dial(invite) for _ in range(8)]

        async def join(number: int, node: Node) -> None:
            chosen = {"name": "server", "name_chosen": True} if number == 3 else {"name": "n"}
            await node.connection.send(Hello(invite=invite.secret, **chosen))
            with anyio.fail_after(PATIENCE):
                answer = await node.connection.receive()
            answers[number] = answer

        answers: dict[int, object] = {}
        async with anyio.create_task_group() as tasks:
            for number, node in enumerate(nodes):
                tasks.start_soon(join, number, node)
        welcomes = [answer for answer in answers.values() if isinstance(answer, Welcome)]
        assert {welcome.number for welcome in welcomes} == set(range(2, 9))
        assert {welcome.name for welcome in welcomes} == {"n", *(f"n-{number}" for number in range(2, 8))}
        assert isinstance(answers[3], Refused) and answers[3].code == "name-taken"
        last = await server.node().connect(invite, name="last")  # who was refused has used up nothing
        assert last.welcome is not None
        more = await server.node().connect(invite, name="more")
        assert more.refused is not None and more.refused.code == "invite-used-up"

    with_server(tmp_path, test)


def test_a_new_node_that_comes_twice_at_once_is_one_node(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite()
        key = os.urandom(32)
        twice = [await server.node(key).dial(invite) for _ in range(2)]
        for node in twice:
            await node.connection.send(Hello(name="n", invite=invite.secret))
        answers = [await node.connection.receive() for node in twice]
        assert [answer.number for answer in answers if isinstance(answer, Welcome)] == [2, 2]

    with_server(tmp_path, test)


def test_a_connection_that_is_lost_is_a_node_offline(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        a, b = await server.node().connect(invite, name="a"), await server.node().connect(invite, name="b")
        await a.sees(lambda network: "b" in online_names(network))
        b.connection.lose("test")
        await a.sees(lambda network: "b" not in online_names(network))
        await server.node(b.private_key).connect(invite, name="b")
        await a.sees(lambda network: "b" in online_names(network))

    with_server(tmp_path, test)


def test_the_server_is_a_node_and_relays_for_the_others(tmp_path: Path) -> None:
    nodes: list[Node] = []

    async def join(server: Running) -> None:
        assert server.engine is not None and server.engine.config.relay_clients
        assert server.engine.config.copy_dscp
        assert server.engine.config.number == 1
        a = await server.node().connect(await server.invite(), name="a")
        nodes.append(a)
        seen = await a.sees(lambda network: len(network.nodes) == 2)
        assert [(node.number, node.name, node.addresses[0]) for node in seen.nodes][0] == (1, "server", "10.77.0.1")
        assert a.welcome is not None
        client = SetClient(number=2, public_key=a.public_key, ticket=a.welcome.ticket)
        assert client in server.commands
        with anyio.fail_after(PATIENCE):
            while not any(isinstance(command, SetPeer) and command.peer.number == 2 for command in server.commands):
                await a.receive(SignedMap)

    async def restarted(server: Running) -> None:
        (a,) = nodes
        assert a.welcome is not None
        # Before the node is back: its traffic goes on meanwhile, with the ticket that it has.
        assert SetClient(number=2, public_key=a.public_key, ticket=a.welcome.ticket) in server.commands

    with_server(tmp_path, join, restarted)


def test_a_restart_keeps_the_network(tmp_path: Path) -> None:
    kept: list[Node] = []

    async def before(server: Running) -> None:
        assert server.ready["invite"].startswith("ov1_")
        invite = await server.invite(uses=2)
        a = await server.node().connect(invite, name="a")
        await a.connection.send(Endpoints(lan=("192.0.2.8:5",)))
        await server.node().connect(invite, name="b")
        await a.sees(lambda network: len(network.nodes) == 3 and any(node.lan for node in network.nodes))
        kept.append(a)

    async def after(server: Running) -> None:
        (a,) = kept
        assert "invite" not in server.ready
        assert a.welcome is not None and a.map is not None
        assert (await server.request("GET", "/v1/status"))["nodes"] == 3
        invite = await server.invite()
        again = await server.node(a.private_key).connect(msgspec_invite(invite))
        assert again.welcome is not None
        before, after = a.welcome, again.welcome
        assert (after.number, after.name, after.addresses, after.ticket) == (
            before.number,
            before.name,
            before.addresses,
            before.ticket,
        )
        assert after.map_key == before.map_key
        seen = await again.sees(lambda network: True)
        assert seen.network == a.map.network and seen.version > a.map.version
        assert {node.name: node.lan for node in seen.nodes}["a"] == ("192.0.2.8:5",)

    with_server(tmp_path, before, after)


def msgspec_invite(invite: Any) -> Any:
    """The same way to the server, with a secret that no invite has: a known node needs none."""
    return type(invite)(invite.addresses, invite.server_key, bytes(16), invite.domain)


def test_a_stranger_is_refused_and_the_reason_is_said(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite()
        unknown = await server.node().connect(msgspec_invite(invite))
        assert unknown.refused is not None and unknown.refused.code == "invite-unknown" and unknown.refused.final
        taken = await server.node().connect(invite, name="server", name_chosen=True)
        assert taken.refused is not None and taken.refused.code == "name-taken"
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost):
            await taken.connection.receive()
        assert (await server.node().connect(invite, name="server")).welcome is not None
        used_up = await server.node().connect(invite)
        assert used_up.refused is not None and used_up.refused.code == "invite-used-up"

    with_server(tmp_path, test)


def test_a_removed_node_is_told_and_is_out(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        a, b = await server.node().connect(invite, name="a"), await server.node().connect(invite, name="b")
        await a.sees(lambda network: "b" in online_names(network))
        await server.request("DELETE", "/v1/nodes/b")
        refused = await b.receive(Refused)
        assert refused.code == "removed" and refused.final
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost):
            await b.connection.receive()
        await a.sees(lambda network: "b" not in {node.name for node in network.nodes})
        assert RemoveClient(b.number) in server.commands
        back = await server.node(b.private_key).connect(msgspec_invite(invite))
        assert back.refused is not None
        with pytest.raises(UserError) as caught:
            await server.request("DELETE", "/v1/nodes/b")
        assert caught.value.code == "node-unknown"
        with pytest.raises(UserError) as caught:
            await server.request("DELETE", "/v1/nodes/server")
        assert caught.value.code == "node-is-server"

    with_server(tmp_path, test)


def test_a_renamed_node_is_known_by_its_new_name(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        a, _ = await server.node().connect(invite, name="a"), await server.node().connect(invite, name="b")
        assert await server.request("PATCH", "/v1/nodes/b", {"name": "Desk"}) == {"name": "desk"}
        await a.sees(lambda network: "desk" in {node.name for node in network.nodes})
        for name, code in (("a", "name-taken"), ("a.b", "name-invalid")):
            with pytest.raises(UserError) as caught:
                await server.request("PATCH", "/v1/nodes/desk", {"name": name})
            assert (caught.value.code, caught.value.exit_code) == (code, Exit.REFUSED)
        with pytest.raises(UserError) as caught:
            await server.request("PATCH", "/v1/nodes/desk", {"name": 5})
        assert caught.value.exit_code is Exit.USAGE

    with_server(tmp_path, test)


def test_the_local_api_shows_what_there_is(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        a = await server.node().connect(await server.invite(tags=["lab"]), name="a")
        await a.sees(lambda network: "a" in online_names(network))
        nodes = (await server.request("GET", "/v1/nodes"))["nodes"]
        assert [(node["name"], node["online"], node["tags"]) for node in nodes] == [
            ("server", True, []),
            ("a", True, ["lab"]),
        ]
        status = await server.request("GET", "/v1/status")
        assert (status["state"], status["nodes"], status["online"]) == ("running", 2, 2)
        assert status["public"] == ["vpn.test:7"] and status["listen"][0].startswith("127.0.0.1:")
        assert status["relayed_bytes"] == 5 and status["drops"]["short_header"] == 1
        assert status["relay_waiting_bytes"] == 7 and status["relay_rate_bit_s"] is None
        for wrong in ({"uses": "1"}, {"uses": True}, {"expires_s": "x"}, {"tags": "x"}, {"uses": 0}):
            with pytest.raises(UserError) as caught:
                await server.request("POST", "/v1/invites", wrong)
            assert caught.value.exit_code is Exit.USAGE

    # The name is for invites only here: nodes of the test dial what the server listens on.
    async def listening(server: Running) -> None:
        real = server.invite

        async def invite(**wish: Any) -> Any:
            made = await real(**wish)
            status = await server.request("GET", "/v1/status")
            return type(made)(tuple(status["listen"]), made.server_key, made.secret, made.domain)

        server.invite = invite  # type: ignore[method-assign]
        await test(server)

    with_server(tmp_path, listening, public=("vpn.test:7",))


def test_what_a_node_may_send_through_the_server_can_be_bounded(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        assert server.engine is not None and server.engine.config.relay_rate == 12.5e6
        assert (await server.request("GET", "/v1/status"))["relay_rate_bit_s"] == 100e6

    with_server(tmp_path, test, relay_rate=12.5e6)


def test_several_domains_and_names_that_others_have(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=3)
        one = await server.node().connect(invite, name="web")
        two = await server.node().connect(invite, name="web")
        assert one.welcome is not None and two.welcome is not None
        assert (one.welcome.domain, one.welcome.more_domains) == ("local.test", ("corp.example",))
        assert (one.welcome.name, two.welcome.name) == ("web", "web-2")
        network_map = await two.sees(lambda network_map: len(network_map.nodes) == 3)
        assert network_map.domains == ("local.test", "corp.example")
        await two.connection.send(AddRecord(seq=1, name="db.corp.example", rtype="TXT", value="x"))
        assert (await two.receive(Recorded)).record.name == "db.corp.example"
        await server.node().connect(invite, name="db", name_chosen=True)
        status = await server.request("GET", "/v1/status")
        assert status["domains"] == ["local.test", "corp.example"]
        suffixed, shadowed = status["warnings"]
        assert "wished to be 'web'" in suffixed and "is called 'web-2'" in suffixed
        assert "The record db.corp.example TXT of node 'web-2' is not served" in shadowed

    with_server(tmp_path, test, domains=("local.test", "corp.example"))


def test_exposures_over_the_control_connection(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        a, b = await server.node().connect(invite, name="a"), await server.node().connect(invite, name="b")
        await a.connection.send(Expose(seq=1, protocol="tcp", target="tcp://127.0.0.1:1", port=4000))
        lease = (await a.receive(Exposed)).exposure
        port = lease.public.rpartition(":")[2]
        await b.connection.send(Expose(seq=9, protocol="tcp", public=port, target="tcp://127.0.0.1:1", port=4000))
        failed = await b.receive(Failed)
        assert (failed.seq, failed.code) == (9, "port-taken")
        assert "'a'" in failed.message and lease.id in failed.message
        (shown,) = (await server.request("GET", "/v1/status"))["exposures"]
        assert (shown["id"], shown["node"], shown["public"], shown["connections"]) == (lease.id, "a", lease.public, 0)
        again = await server.node(a.private_key).connect(invite)
        assert again.welcome is not None and again.welcome.exposures == (lease,)
        await again.connection.send(Unexpose(seq=2, id=lease.id))
        assert (await again.receive(Done)).seq == 2
        await again.connection.send(Unexpose(seq=3, id=lease.id))
        assert (await again.receive(Failed)).code == "exposure-unknown"

    with_server(tmp_path, test)


def test_pings_are_answered_and_floods_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "MESSAGE_BURST", 5.0)

    async def test(server: Running) -> None:
        a = await server.node().connect(await server.invite(), name="a")
        assert a.welcome is not None and a.welcome.heartbeat == HEARTBEAT
        await a.connection.send(Ping(seq=7))
        assert (await a.receive(Pong)).seq == 7
        for seq in range(50):
            await a.connection.send(Ping(seq=seq))
        refused = await a.receive(Refused)
        assert refused.code == "too-many-messages" and not refused.final
        assert (await server.request("GET", "/v1/status"))["drops"]["too_many_messages"] == 1

    with_server(tmp_path, test)


async def attached(server: Running, key: bytes) -> AddLink:
    """A data link of the node with this key, as the engine got it. Bytes behind the answer arrive there."""
    link = await server.node(key).dial(await server.invite())
    before = len(links(server))
    await link.connection.send(Attach())
    with anyio.fail_after(PATIENCE):
        assert await link.connection.receive() == Attached()
        detached = await link.connection.detach()
        assert isinstance(detached, Detached)
        while len(links(server)) == before:
            await anyio.lowlevel.checkpoint()
    made = links(server)[-1]
    with detached.socket as ours:
        ours.send(b"frame")
        await anyio.wait_readable(made.handed.socket)
        assert made.handed.received + made.handed.socket.recv(100) == b"frame"
    return made


def links(server: Running) -> list[AddLink]:
    return [each for each in server.commands if isinstance(each, AddLink)]


def test_a_registered_node_attaches_data_links_and_no_more_than_it_needs(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        node = await server.node().connect(await server.invite(), name="a")
        made = [await attached(server, node.private_key) for _ in range(3)]
        assert [each.client for each in made] == [node.number] * 3
        assert [each.carrier for each in made] == ["tcp"] * 3
        assert len({each.number for each in made}) == 3
        removed = [each.number for each in server.commands if isinstance(each, RemoveLink)]
        assert removed == [made[0].number]
        assert server.engine is not None
        server.engine.on_event(LinkLost(made[1].number, "silent"))
        await server.request("DELETE", "/v1/nodes/a")
        removed = [each.number for each in server.commands if isinstance(each, RemoveLink)]
        assert removed == [made[0].number, made[2].number]

    with_server(tmp_path, test)


def test_a_stranger_attaches_nothing(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        stranger = await server.node().dial(await server.invite())
        await stranger.connection.send(Attach())
        with anyio.fail_after(PATIENCE):
            answer = await stranger.connection.receive()
        assert isinstance(answer, Refused) and answer.code == "not-registered"
        assert not links(server)
        assert (await server.request("GET", "/v1/status"))["drops"]["attach_refused"] == 1

    with_server(tmp_path, test)


def test_a_node_that_says_hello_again_takes_its_own_place_and_nobody_hears_of_it(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite(uses=2)
        other = await server.node().connect(invite, name="b")
        first = await server.node().connect(invite, name="a")
        await other.sees(lambda network: online_names(network) == {"server", "a", "b"})
        before = other.map
        second = await server.node(first.private_key).connect(invite, name="a")
        assert second.number == first.number
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionLost):
            while True:
                await first.connection.receive()
        await second.sees(lambda network: "a" in online_names(network))
        await other.connection.send(Ping(seq=1))
        assert await other.receive(Pong) == Pong(seq=1)
        assert other.map == before

    with_server(tmp_path, test)


def test_what_is_not_hello_or_not_ours_is_refused(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite()
        old = await server.node().connect(invite, version=0)
        assert old.refused is not None and old.refused.code == "version"
        rude = await server.node().dial(invite)
        await rude.connection.send(Ping(seq=1))
        assert (await rude.receive(Refused)).code == "protocol"

    with_server(tmp_path, test)


def test_garbage_at_the_port_leaves_the_server_well(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        invite = await server.invite()
        host, _, port = invite.addresses[0].rpartition(":")
        for garbage in (b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\x00\x60" + os.urandom(96)):
            async with await anyio.connect_tcp(host, int(port)) as stream:
                await stream.send(garbage) if garbage else None
                await stream.send_eof()
                with anyio.fail_after(PATIENCE):
                    try:
                        while await stream.receive():
                            pass
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        continue
        assert (await server.node().connect(invite, name="a")).welcome is not None

    with_server(tmp_path, test)


def test_a_second_server_on_the_same_port_is_refused(tmp_path: Path) -> None:
    async def test(server: Running) -> None:
        status = await server.request("GET", "/v1/status")
        port = int(status["listen"][0].rpartition(":")[2])
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(tmp_path / "other", port=port):
                raise AssertionError("it started")
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, UserError) and error.code == "port-taken"

    with_server(tmp_path, test)


def test_the_rate_of_messages() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.4)
    assert bucket.take(100.6)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_settings_travel_as_json() -> None:
    from overlay.server.settings import ServerSettings

    settings = ServerSettings(state="/x", listen=("0.0.0.0:443",), tun=False)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=ServerSettings) == settings


def test_records_reach_all_are_kept_and_go_with_their_node(tmp_path: Path) -> None:
    keys: list[bytes] = []

    async def before(server: Running) -> None:
        invite = await server.invite(uses=2)
        a, b = await server.node().connect(invite, name="a"), await server.node().connect(invite, name="b")
        keys.extend((a.private_key, b.private_key))
        await a.connection.send(AddRecord(seq=1, name="api", rtype="A", value="192.0.2.1"))
        assert (await a.receive(Recorded)).record.name == "api.local.test"
        started = anyio.current_time()
        seen = await b.sees(lambda network: bool(network.records))
        assert anyio.current_time() - started < 1.0
        assert [(each.name, each.value, each.node) for each in seen.records] == [
            ("api.local.test", "192.0.2.1", a.number)
        ]
        await b.connection.send(AddRecord(seq=2, name="api", rtype="A", value="192.0.2.2"))
        failed = await b.receive(Failed)
        assert (failed.seq, failed.code) == (2, "record-name-taken")
        await b.connection.send(RemoveRecord(seq=3, name="api"))
        assert (await b.receive(Failed)).code == "record-not-yours"
        await b.connection.send(AddRecord(seq=4, name="www.b", rtype="CNAME", value="b"))
        await b.receive(Recorded)
        record = await server.request("POST", "/v1/dns/records", {"name": "host", "type": "TXT", "value": "x"})
        assert record == {"name": "host.local.test", "type": "TXT", "value": "x", "node": "server", "shadowed": False}

    async def after(server: Running) -> None:
        invite = await server.invite()
        b = await server.node(keys[1]).connect(invite, name="b")
        seen = await b.sees(lambda network: True)  # the first map has them
        assert [each.name for each in seen.records] == ["api.local.test", "host.local.test", "www.b.local.test"]
        await b.connection.send(RemoveRecord(seq=5, name="www.b"))
        await b.receive(Done)
        await b.sees(lambda network: len(network.records) == 2)
        await server.request("DELETE", "/v1/nodes/a")
        await b.sees(lambda network: [each.name for each in network.records] == ["host.local.test"])
        await server.request("DELETE", "/v1/dns/records?name=host&type=TXT")
        await b.sees(lambda network: not network.records)
        assert await server.request("GET", "/v1/dns/records") == {"records": []}

    with_server(tmp_path, before, after)
