"""Leases of public ports: granted, renewed, given back, and kept over restarts. Real sockets, real registry."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier import stream
from overlay.carrier.stream import TcpStream
from overlay.errors import UserError
from overlay.server import exposures as module
from overlay.server.claims import PICKED_PORTS, parse_public
from overlay.wire.control.terms import Terms
from overlay.wire.endpoint import Endpoint
from tests.server.leases import HOST, WEB, Bench, answer, ask, on_bench, web


def test_a_lease_outlives_the_server_and_follows_the_node(tmp_path: Path) -> None:
    leases: list[tuple[str, int]] = []

    async def grant(it: Bench) -> None:
        port = await it.free_port()
        exposure = await it.expose(2, public=f"{HOST}:{port}", port=4000)
        assert (exposure.id, exposure.public) == ("x1", f"{HOST}:{port}")
        leases.append((exposure.id, port))

    async def renew(it: Bench) -> None:
        name, port = leases[0]
        assert [each.id for each in it.exposures.of_node(2)] == [name]
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            assert await ask(port) == b""  # the node is back at another port
            inside = listener.extra(SocketAttribute.local_port)
            renewed = await it.expose(2, id=name, port=inside, target="tcp://127.0.0.1:81")
            assert (renewed.port, renewed.target, renewed.public) == (inside, "tcp://127.0.0.1:81", f"{HOST}:{port}")
            assert await ask(port) == b"hello"
            it.online.clear()
            assert await ask(port) == b""
            it.online.add(2)
            assert await ask(port) == b"hello"
            await it.exposures.unexpose(2, name)
            assert await ask(port) == b""
            tasks.cancel_scope.cancel()
        await listener.aclose()

    async def forgotten(it: Bench) -> None:
        assert it.exposures.status() == []

    on_bench(tmp_path, grant, renew, forgotten)


def test_names_on_the_shared_port(tmp_path: Path) -> None:
    async def grant(it: Bench) -> None:
        site = await it.expose(2, **WEB, host="Docs.test/a")
        assert (site.public, site.url, site.port) == ("docs.test/a", "http://docs.test:8443/a/", 4000)
        taken = await it.refusal(3, **WEB, host="docs.test/a/")
        assert taken.code == "host-taken" and "'a'" in taken.message and site.id in taken.message
        assert (await it.expose(3, **WEB, host="docs.test")).public == "docs.test"
        assert (await it.refusal(3, **WEB, host="vpn.test")).code == "host-taken"
        assert (await it.refusal(3, **WEB, host="nothing")).code == "host-invalid"

    async def kept(it: Bench) -> None:
        assert it.exposures.guests.exposes("docs.test") and not it.exposures.guests.exposes("vpn.test")
        for node, name in ((2, "x1"), (3, "x2")):
            await it.exposures.unexpose(node, name)
        assert not it.exposures.guests.exposes("docs.test")

    on_bench(tmp_path, grant, kept, public_hosts=("vpn.test",), web_ports=(8443,))


TLS = {"protocol": "tls", "target": "tls://127.0.0.1:443"}


def test_names_by_tls_on_the_shared_port(tmp_path: Path) -> None:
    async def grant(it: Bench) -> None:
        db = await it.expose(2, **TLS, host="DB.test")
        assert (db.protocol, db.public, db.url) == ("tls", "db.test:8443", "")
        assert (await it.expose(3, **TLS, host="*.db.test")).public == "*.db.test:8443"
        await it.expose(3, **WEB, host="docs.test/a")
        twice = await it.refusal(3, **TLS, host="db.test")
        assert twice.code == "host-taken" and twice.message == "db.test is held by node 'a' (exposure x1)."
        web = await it.refusal(3, **WEB, host="db.test/a")
        assert web.message == "All that comes for db.test by TLS, https too, goes to node 'a' (exposure x1)."
        other = await it.refusal(2, **TLS, host="docs.test")
        assert other.code == "host-taken" and "its https: it is held by node 'b' (exposure x3)" in other.message
        assert (await it.refusal(2, **TLS, host="vpn.test")).code == "host-taken"
        assert "no path" in (await it.refusal(2, **TLS, host="a.test/b")).message
        for nameless in ({}, {"public": "9000"}):
            assert "--host db.example.com" in (await it.refusal(2, **TLS, **nameless)).hint
        ended = Terms(tls_end="server")
        assert (await it.refusal(2, terms=ended)).code == "terms-invalid"
        assert (await it.refusal(2, **{**WEB, "terms": Terms(tls_end="target")}, host="a.test")).code == "terms-invalid"
        assert (await it.expose(2, **TLS, host="inside.test", terms=ended)).terms == ended

    async def kept(it: Bench) -> None:
        guests = it.exposures.guests
        assert guests.tls_end("db.test") == guests.tls_end("any.db.test") == "beyond"
        assert guests.tls_end("inside.test") == "here"
        assert guests.tls_end("docs.test") is None and not guests.exposes("db.test")
        await it.exposures.unexpose(2, "x1")
        await it.exposures.unexpose(3, "x2")
        assert guests.tls_end("db.test") is None

    on_bench(tmp_path, grant, kept, public_hosts=("vpn.test",), web_ports=(8443,))


def test_a_name_is_picked_where_there_is_a_domain_for_it(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        assert (await it.expose(2, **WEB)).url == "https://a-aaaaaa.apps.test/"

    on_bench(tmp_path, test, web_domain="apps.test", web_ports=(443,))


def test_http_at_a_port_of_its_own_and_its_log(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    async def test(it: Bench) -> None:
        port = await it.free_port()
        site = await it.expose(2, **WEB, public=f"{HOST}:{port}", port=1)
        assert site.url == f"http://{HOST}:{port}/"
        assert (await it.refusal(3, public=str(port))).code == "port-taken"
        it.exposures.watch(2, site.id, lambda name, entry: heard.append((name, entry.status)))
        assert (await web(port)).startswith(b"HTTP/1.1 502 ")
        it.exposures.watch(2, site.id, None)
        it.online.clear()
        assert (await web(port)).startswith(b"HTTP/1.1 502 ")
        assert heard == [("x1", 502)]
        assert it.exposures.drops == {"target_refused": 1, "target_offline": 1}
        with pytest.raises(UserError):
            it.exposures.watch(3, site.id, None)

    on_bench(tmp_path, test)


def test_a_taken_port_names_its_holder(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        port = await it.free_port()
        first = await it.expose(2, public=str(port))
        by_node = await it.refusal(3, public=str(port))
        by_address = await it.refusal(3, public=f"{HOST}:{port}")
        by_itself = await it.refusal(2, public=str(port))
        for error in (by_node, by_address, by_itself):
            assert error.code == "port-taken"
            assert "'a'" in error.message and first.id in error.message and str(port) in error.message
        udp = await it.expose(3, public=str(port), protocol="udp", target="udp://127.0.0.1:53")
        assert udp.public == f"203.0.113.1:{port}"
        assert "server's own" in (await it.refusal(3, public="443")).message
        with socket.socket() as holder:
            holder.bind((HOST, 0))
            holder.listen()
            error = await it.refusal(3, public=f"{HOST}:{holder.getsockname()[1]}")
            assert error.code == "port-taken" and "another program" in error.message

    on_bench(tmp_path, test)


def test_a_port_that_nobody_asked_for_is_picked(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        ports = [int((await it.expose(2)).public.rpartition(":")[2]) for _ in range(3)]
        assert len(set(ports)) == 3 and set(ports) <= set(PICKED_PORTS)

    on_bench(tmp_path, test)


def test_only_its_own_exposures_are_a_nodes_business(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        lease = await it.expose(2)
        assert (await it.refusal(3, id=lease.id)).code == "exposure-unknown"
        for name in (lease.id, "x99", "nonsense"):
            with pytest.raises(UserError) as caught:
                await it.exposures.unexpose(3, name)
            assert caught.value.code == "exposure-unknown"
        assert [each.id for each in it.exposures.of_node(2)] == [lease.id]

    on_bench(tmp_path, test)


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_NODE", 2)

    async def test(it: Bench) -> None:
        wrong: tuple[dict[str, Any], ...] = (
            {"port": 0},
            {"port": 65536},
            {"target": ""},
            {"target": "x" * 257},
            {"target": "a\nb"},
        )
        for bad in wrong:
            assert (await it.refusal(2, **bad)).code == "expose-invalid"
        for text in ("x", "0", "65536", "1.2.3.4:", "[::1", "host:9000", ":"):
            assert (await it.refusal(2, public=text)).code == "public-invalid"
        assert (await it.refusal(2, public="192.0.2.77:9000")).code == "public-not-here"
        await it.expose(2)
        await it.expose(2)
        assert (await it.refusal(2)).code == "too-many-exposures"
        await it.expose(3)

    on_bench(tmp_path, test)


def test_a_server_without_a_tun_says_so(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        assert (await it.refusal(2)).code == "no-tunnel"

    on_bench(tmp_path, test, tunnel=False)


def test_tunnels_of_their_own_kind(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        assert (await it.expose(2, protocol="udp", target="udp://127.0.0.1:53", tunnel="tls")).tunnel == "tls"
        port = await it.free_port()
        exposure = await it.expose(2, public=f"{HOST}:{port}", tunnel="tls")
        assert exposure.tunnel == "tls" and it.exposures.status()[0]["tunnel"] == "tls"
        assert await ask(port) == b""  # nobody is told to call: the node is away in the end
        assert it.exposures.drops == {"target_offline": 1}

    on_bench(tmp_path, test, tunnel=False)


def test_a_removed_nodes_ports_are_free(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        port = await it.free_port()
        await it.expose(2, public=str(port))
        async with it.registry.transaction() as transaction:
            await transaction.remove_node(2)
        await it.exposures.forget_node(2)
        assert (await it.expose(3, public=str(port))).public == f"203.0.113.1:{port}"

    on_bench(tmp_path, test)


def test_a_port_that_is_taken_at_the_start_is_opened_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.01)
    holder = socket.socket()
    holder.bind((HOST, 0))
    port = holder.getsockname()[1]

    async def grant(it: Bench) -> None:
        holder.close()
        await it.expose(2, public=f"{HOST}:{port}")

    async def blocked(it: Bench) -> None:
        (status,) = it.exposures.status()
        assert "another program" in status["problem"]
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        await it.expose(2, id="x1", port=listener.extra(SocketAttribute.local_port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            tasks.start_soon(it.exposures.run)
            again.close()
            while it.exposures.status()[0]["problem"]:
                await anyio.lowlevel.checkpoint()
            assert await ask(port) == b"hello"
            tasks.cancel_scope.cancel()
        await listener.aclose()

    on_bench(tmp_path, grant)
    again = socket.socket()
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    again.bind((HOST, port))
    again.listen()
    on_bench(tmp_path, blocked)


def test_the_public_side_as_people_write_it() -> None:
    hosts = ("203.0.113.1", "vpn.example.org")
    assert parse_public("", hosts) == ("", 0)
    assert parse_public("9000", hosts) == ("", 9000)
    assert parse_public("203.0.113.1:9000", hosts) == ("", 9000)
    assert parse_public("vpn.example.org:9000", hosts) == ("", 9000)
    assert parse_public("0.0.0.0:9000", hosts) == parse_public("[::]:9000", hosts) == ("", 9000)
    assert parse_public("192.0.2.5:9000", hosts) == ("192.0.2.5", 9000)
    assert parse_public("[2001:db8::1]:9000", hosts) == ("2001:db8::1", 9000)


@given(st.text(max_size=40))
def test_whatever_is_written_as_the_public_side(text: str) -> None:
    try:
        _, port = parse_public(text, ("203.0.113.1",))
    except UserError as error:
        assert error.code == "public-invalid"
    else:
        assert (port == 0) == (text == "")


def test_users_of_a_node_that_is_offline_are_watched_closely(tmp_path: Path) -> None:
    """What has been sent to a machine that is gone is repeated for a quarter of an hour otherwise."""
    inside: list[TcpStream] = []

    async def connect(endpoint: Endpoint) -> TcpStream:
        inside.append(await stream.connect(endpoint))
        return inside[-1]

    def patience() -> list[int]:
        sockets = [each.extra(SocketAttribute.raw_socket) for each in inside]
        return [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for each in sockets]

    async def test(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, repeat)
            users = []
            for node in (2, 3):
                port = await it.free_port()
                place = {"public": f"{HOST}:{port}", "port": listener.extra(SocketAttribute.local_port)}
                await it.expose(node, **place)
                users.append(await anyio.connect_tcp(HOST, port))
                await users[-1].send(b"hello")
                assert await users[-1].receive() == b"hello"
            it.exposures.node_changed(2, online=False)
            assert patience() == [1500, 0]
            it.exposures.node_changed(2, online=True)
            assert patience() == [0, 0]
            for user in users:
                await user.aclose()
            tasks.cancel_scope.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("overlay.server.tunnels.connect", connect)
        on_bench(tmp_path, test)


async def repeat(user: SocketStream) -> None:
    async with user:
        with suppress(anyio.BrokenResourceError):
            async for chunk in user:
                await user.send(chunk)
