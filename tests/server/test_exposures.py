"""Leases of public ports: granted, renewed, given back, and kept over restarts. Real sockets, real registry."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.node.interface import Machine
from overlay.server import exposures as module
from overlay.server.admission import add_node
from overlay.server.claims import PICKED_PORTS, Surroundings, parse_public
from overlay.server.exposures import Exposures
from overlay.server.founding import found
from overlay.server.ingress import bind_public
from overlay.server.keys import ServerKeys
from overlay.server.policy import EVERYTHING, Policy, Rights, Rule
from overlay.server.registry import Registry
from overlay.server.settings import ServerSettings
from overlay.wire.control.messages import Expose, Message, Withdrawn
from overlay.wire.control.terms import Limits, Terms, Told
from overlay.wire.ingress.proxy_protocol import ProxyHeader, ProxyProtocol, parse_proxy_header

HOST = "127.0.0.1"
NAMES = {2: "a", 3: "b"}
KEYS = ServerKeys(node_key=b"\x08" * 31 + b"\x48", map_seed=b"m" * 32)


class Bench:
    """A registry with two nodes, one exposure service over it, and who is online."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.online = {2, 3}
        self.exposures: Exposures

    async def free_port(self) -> int:
        bound = bind_public("tcp", HOST, 0)[0]
        with bound:
            return int(bound.getsockname()[1])

    async def expose(self, node: int, **request: Any) -> Any:
        wanted = {"seq": 1, "protocol": "tcp", "target": "tcp://127.0.0.1:80", "port": 4000, **request}
        return await self.exposures.expose(node, Expose(**wanted))

    async def refusal(self, node: int, **request: Any) -> UserError:
        with pytest.raises(UserError) as caught:
            await self.expose(node, **request)
        return caught.value


@asynccontextmanager
async def bench(path: Path, **around: Any) -> AsyncIterator[Bench]:
    async def machine() -> Machine:
        return Machine()

    registry = await Registry.open(path)
    try:
        _, nodes = await found(
            registry, ServerSettings(state=str(path.parent)), KEYS, ciphers=(), machine=machine, wall=1.0
        )
        async with registry.transaction() as transaction:
            for number in () if len(nodes) > 1 else (2, 3):
                await add_node(
                    transaction,
                    bytes([number]) * 32,
                    name=NAMES[number],
                    name_chosen=True,
                    ciphers=(),
                    tags=(),
                    wall=1.0,
                    random_bytes=os.urandom,
                )
        it = Bench(registry)
        values: dict[str, Any] = {
            "public_hosts": ("203.0.113.1",),
            "own_ports": frozenset({("tcp", 443)}),
            "address_of": lambda number: HOST if number in it.online else None,
            "name_of": NAMES.__getitem__,
            "wall": lambda: 5.0,
            "randbelow": lambda below: 0,
        }
        async with anyio.create_task_group() as tasks:
            it.exposures = Exposures(registry, Surroundings(**{**values, **around}), tasks)
            await it.exposures.start()
            try:
                yield it
            finally:
                tasks.cancel_scope.cancel()
                it.exposures.close()
    finally:
        await registry.close()


def on_bench(tmp_path: Path, *tests: Callable[[Bench], Awaitable[None]], **around: Any) -> None:
    """Each test gets the service anew, over the same registry."""

    async def main() -> None:
        for test in tests:
            with anyio.fail_after(15):
                async with bench(tmp_path / "registry.sqlite", **around) as it:
                    await test(it)

    anyio.run(main)


async def answer(stream: SocketStream) -> None:
    async with stream:
        await stream.send(b"hello")


async def web(port: int, host: str = "any.test") -> bytes:
    async with await anyio.connect_tcp(HOST, port) as user:
        await user.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        return await user.receive()


async def ask(port: int) -> bytes:
    try:
        async with await anyio.connect_tcp(HOST, port) as user:
            return await user.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return b""


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


WEB = {"protocol": "http", "target": "http://127.0.0.1:80"}


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


def test_terms_hold_for_who_comes_and_can_be_changed(tmp_path: Path) -> None:
    async def first(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, hold)
            port, terms = await it.free_port(), Terms(limits=Limits(connections=1))
            inner = target.extra(SocketAttribute.local_port)
            lease = await it.expose(2, public=f"{HOST}:{port}", port=inner, terms=terms)
            assert lease.terms == terms
            async with await anyio.connect_tcp(HOST, port) as user:
                assert await user.receive() == b"hello"
                async with await anyio.connect_tcp(HOST, port) as second:
                    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                        await second.receive()
                assert it.exposures.drops["too_many_users"] == 1
                more = Terms(limits=Limits(connections=2))
                await it.expose(2, id=lease.id, port=inner, terms=more)
                async with await anyio.connect_tcp(HOST, port) as second:
                    assert await second.receive() == b"hello"
            tasks.cancel_scope.cancel()

    async def second(it: Bench) -> None:  # after a restart
        assert [each.terms for each in it.exposures.of_node(2)] == [Terms(limits=Limits(connections=2))]
        assert (await it.refusal(2, terms=Terms(limits=Limits(connections=-1)))).code == "terms-invalid"

    on_bench(tmp_path, first, second)


def test_an_exposure_ends_when_its_time_is_over(tmp_path: Path) -> None:
    told: list[tuple[int, Message]] = []
    now = [5.0]

    async def tell(node: int, message: Message) -> bool:
        told.append((node, message))
        return True

    async def first(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, hold)
            tasks.start_soon(it.exposures.run)
            port, inner = await it.free_port(), target.extra(SocketAttribute.local_port)
            lease = await it.expose(2, public=f"{HOST}:{port}", port=inner, terms=Terms(expires=1000.0))
            async with await anyio.connect_tcp(HOST, port) as user:
                assert await user.receive() == b"hello"
                now[0] = 999.99
                await it.expose(2)  # the next look at the clock
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    now[0] = 1000.0
                    await user.receive()
            while not told:
                await anyio.lowlevel.checkpoint()
            assert told == [(2, Withdrawn(id=lease.id, why="its time is over"))]
            assert (await it.refusal(2, terms=Terms(expires=999.0))).code == "exposure-expired"
            await it.expose(3, terms=Terms(expires=2000.0))
            tasks.cancel_scope.cancel()

    async def second(it: Bench) -> None:  # after a restart, meanwhile over
        assert [status["node"] for status in it.exposures.status()] == ["a"]

    on_bench(tmp_path, first, tell=tell, wall=lambda: now[0])
    now[0] = 2000.0
    on_bench(tmp_path, second, tell=tell, wall=lambda: now[0])


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_a_quota_cuts_users_off_and_is_kept(tmp_path: Path, protocol: str) -> None:
    async def first(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, swallow)
            port, inner = await it.free_port(), target.extra(SocketAttribute.local_port)
            wanted = {"protocol": protocol, "target": f"{protocol}://127.0.0.1:80"}
            await it.expose(2, **wanted, public=f"{HOST}:{port}", port=inner, terms=Terms(limits=Limits(quota=5)))
            async with await anyio.connect_tcp(HOST, port) as user:
                await user.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                while not it.exposures.status()[0]["bytes"]:
                    await it.exposures.save()
                    await anyio.lowlevel.checkpoint()
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    while True:
                        await user.receive()
            tasks.cancel_scope.cancel()

    async def second(it: Bench) -> None:
        (status,) = it.exposures.status()
        assert status["bytes"] >= 5
        port = int(status["public"].rpartition(":")[2])
        if protocol == "http":
            assert (await web(port)).startswith(b"HTTP/1.1 503 ")
        else:
            assert not await ask(port)
        assert it.exposures.drops == {"quota_used_up": 1}

    on_bench(tmp_path, first, second)


async def hold(stream: SocketStream) -> None:
    async with stream:
        await stream.send(b"hello")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()


async def swallow(stream: SocketStream) -> None:
    async with stream:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()


def test_what_policy_forbids_is_refused_and_counted(tmp_path: Path) -> None:
    policy = Policy(
        (
            Rule(("a",), frozenset(), Rights(protocols=frozenset(("http", "tcp")), hosts=("a.test",), exposures=2)),
            Rule((), frozenset(("tagged",)), Rights(ports=(range(20003, 20005), range(1, 1024)))),
        )
    )

    async def test(it: Bench) -> None:
        refusals = [
            await it.refusal(2, protocol="udp", target="udp://127.0.0.1:53"),
            await it.refusal(2, **WEB, host="b.test"),
            await it.refusal(2, **WEB, host="*.a.test"),
            await it.refusal(3, public="9000"),
        ]
        assert {(error.code, error.exit_code) for error in refusals} == {("policy-forbids", Exit.REFUSED)}
        assert "'a'" in refusals[0].message and "'b' have the public port 9000" in refusals[3].message
        picked = [int((await it.expose(3)).public.rpartition(":")[2]) for _ in range(2)]
        assert sorted(picked) == [20003, 20004]
        assert (await it.refusal(3)).code == "no-free-port"
        await it.expose(2, **WEB, host="a.test")
        await it.expose(2)
        many = await it.refusal(2)
        assert (many.code, many.exit_code) == (
            "too-many-exposures",
            Exit.REFUSED,
        ) and "lets node 'a' hold 2" in many.message
        assert it.exposures.drops == {"policy_forbids": 5}

    on_bench(tmp_path, test, rights=lambda number: policy.rights(NAMES[number], ("tagged",) if number == 3 else ()))


def test_what_a_changed_policy_forbids_is_taken_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rights = {2: EVERYTHING, 3: EVERYTHING}
    told: list[tuple[int, str]] = []

    async def tell(node: int, message: Message) -> bool:
        assert isinstance(message, Withdrawn) and message.why == "the server's policy does not allow it any more"
        told.append((node, message.id))
        return True

    async def first(it: Bench) -> None:
        port = await it.free_port()
        for node, wanted in ((2, WEB | {"host": "a.test"}), (2, {"public": str(port)}), (2, {}), (3, {})):
            await it.expose(node, **wanted)
        await it.exposures.policy_changed()
        assert not told
        rights[2] = Rights(ports=(range(port, port + 1),))
        await it.exposures.policy_changed()
        assert told == [(2, "x3")]
        rights[2] = Rights(exposures=1)
        await it.exposures.policy_changed()
        assert told == [(2, "x3"), (2, "x2")]  # the last one
        with pytest.raises(UserError):
            await it.expose(2, id="x2")
        rights[3] = Rights(protocols=frozenset(("http",)))

    async def second(it: Bench) -> None:  # changed while the server was not there
        assert told[2:] == [(3, "x4")] and [each["id"] for each in it.exposures.status()] == ["x1"]

    on_bench(tmp_path, first, second, tell=tell, rights=rights.__getitem__)


def test_a_lease_that_two_nodes_fight_over_is_the_firsts(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        port = await it.free_port()
        won: list[int] = []
        lost: list[UserError] = []

        async def claim(node: int, wanted: dict[str, Any]) -> None:
            try:
                await it.expose(node, **wanted)
            except UserError as error:
                lost.append(error)
            else:
                won.append(node)

        for wanted in ({"public": f"{HOST}:{port}"}, WEB | {"host": "fought.test"}):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    for node in (2, 3):
                        tasks.start_soon(claim, node, wanted)
        assert len(won) == 2 and len(lost) == 18
        assert {error.code for error in lost} == {"port-taken", "host-taken"}
        assert all(f"node '{NAMES[won[0]]}'" in error.message for error in lost if error.code == "port-taken")
        with pytest.raises(UserError, match="no exposure of that id"):
            await it.exposures.unexpose(5 - won[0], "x1")
        await it.exposures.unexpose(won[0], "x1")
        await it.expose(5 - won[0], public=f"{HOST}:{port}")  # the other's turn


def test_targets_are_told_who_comes_before_his_bytes(tmp_path: Path) -> None:
    """By a port, and by http; what the user says of himself comes behind."""
    lie = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"

    async def test(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, repeat)
            inner = target.extra(SocketAttribute.local_port)
            lease = await it.expose(2, public=f"{HOST}:{await it.free_port()}", port=inner, terms=telling("v1"))
            port = int(lease.public.rpartition(":")[2])
            async with await anyio.connect_tcp(HOST, port) as user:
                source = user.extra(SocketAttribute.local_port)
                await user.send(lie)
                told = b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (source, port)
                assert await receive(user, len(told + lie)) == told + lie
            await it.expose(2, id=lease.id, port=inner, terms=telling("v2-crc32c"))
            async with await anyio.connect_tcp(HOST, port) as user:
                source = user.extra(SocketAttribute.local_port)
                await user.send(lie)
                whole = await receive(user, 28 + 7 + len(lie))
                assert parse_proxy_header(whole) == (ProxyHeader((HOST, source), (HOST, port)), 28 + 7)
            web = await it.expose(
                2, protocol="http", public=f"{HOST}:{await it.free_port()}", port=inner, terms=telling("v2")
            )
            async with await anyio.connect_tcp(HOST, int(web.public.rpartition(":")[2])) as user:
                await user.send(b"GET / HTTP/1.1\r\nHost: docs.test\r\n\r\n")
                assert b"502 Bad Gateway" in await user.receive()  # a header is no answer
            told_by_http = parse_proxy_header(bytes(said[-1]))
            assert isinstance(told_by_http, tuple) and told_by_http[0].authority == "docs.test"
            tasks.cancel_scope.cancel()

    said: list[bytearray] = []  # on each connection

    async def repeat(stream: SocketStream) -> None:
        said.append(bytearray())
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    data = await stream.receive()
                    said[-1] += data
                    await stream.send(data)

    on_bench(tmp_path, test)


def telling(kind: ProxyProtocol) -> Terms:
    return Terms(told=Told(proxy_protocol=kind))


async def receive(stream: SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data


def test_datagrams_have_no_header_of_version_1(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        refusal = await it.refusal(2, protocol="udp", target="udp://127.0.0.1:53", terms=telling("v1"))
        assert refusal.code == "terms-invalid" and "--proxy-protocol v2" in refusal.message

    on_bench(tmp_path, test)


def test_each_datagram_begins_with_who_sent_it(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
            target.bind((HOST, 0))
            target.setblocking(False)
            lease = await it.expose(
                2,
                protocol="udp",
                target="udp://127.0.0.1:53",
                public=f"{HOST}:{await it.free_port()}",
                port=target.getsockname()[1],
                terms=telling("v2"),
            )
            there = (HOST, int(lease.public.rpartition(":")[2]))
            async with await anyio.create_connected_udp_socket(*there, local_host=HOST) as user:
                source = (HOST, user.extra(SocketAttribute.local_port))
                for datagram in (b"one", bytes(65507), b"two"):  # with a header the largest one is too large
                    await user.send(datagram)
                for datagram in (b"one", b"two"):
                    await anyio.wait_readable(target)
                    whole, tunnel = target.recvfrom(65535)
                    assert parse_proxy_header(whole) == (ProxyHeader(source, there, "udp"), 28)
                    assert whole[28:] == datagram
                    target.sendto(b"answer", tunnel)
                    assert await user.receive() == b"answer"
                assert it.exposures.drops.total() == 1

    on_bench(tmp_path, test)
