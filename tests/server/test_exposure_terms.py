"""What is set for a lease, and what the policy allows: held to, changed, over. Real sockets, real registry."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.errors import Exit, UserError
from overlay.server.policy import EVERYTHING, Policy, Rights, Rule
from overlay.wire.control.messages import Message, Withdrawn
from overlay.wire.control.terms import Access, Limits, Terms, Told
from overlay.wire.ingress.proxy_protocol import ProxyHeader, ProxyProtocol, parse_proxy_header
from tests.server.leases import HOST, NAMES, WEB, Bench, ask, on_bench, web


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


def test_whom_changed_terms_shut_out_is_cut_off(tmp_path: Path) -> None:
    """By TCP, and by UDP, where the target would go on to answer. Others stay."""
    denied = Terms(access=Access(deny=("127.0.0.2",)))

    async def test(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, hold)
            port, inner = await it.free_port(), target.extra(SocketAttribute.local_port)
            lease = await it.expose(2, public=f"{HOST}:{port}", port=inner)
            async with (
                await anyio.connect_tcp(HOST, port, local_host="127.0.0.2") as user,
                await anyio.connect_tcp(HOST, port) as other,
            ):
                assert await user.receive() == await other.receive() == b"hello"
                await it.expose(2, id=lease.id, port=inner, terms=denied)
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await user.receive()
                assert [status["connections"] for status in it.exposures.status()] == [1]
            tasks.cancel_scope.cancel()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
            service.bind((HOST, 0))
            service.setblocking(False)
            udp = {"protocol": "udp", "target": "udp://127.0.0.1:53", "port": service.getsockname()[1]}
            lease = await it.expose(2, **udp, public=f"{HOST}:{await it.free_port()}")
            there = (HOST, int(lease.public.rpartition(":")[2]))
            async with await anyio.create_connected_udp_socket(*there, local_host="127.0.0.2") as user:
                await user.send(b"?")
                await anyio.wait_readable(service)
                await it.expose(2, id=lease.id, **udp, terms=denied)
                assert [status["connections"] for status in it.exposures.status()] == [0, 0]
                await user.send(b"?")
                while not it.exposures.drops:
                    await anyio.lowlevel.checkpoint()
        assert it.exposures.drops == {"source_refused": 1}

    on_bench(tmp_path, test)


def test_why_datagrams_are_not_taken_is_told_by_name(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
            service.bind((HOST, 0))
            limits = Limits(connection_rate="1/d", quota=4)
            lease = await it.expose(
                2,
                protocol="udp",
                target="udp://127.0.0.1:53",
                port=service.getsockname()[1],
                public=f"{HOST}:{await it.free_port()}",
                terms=Terms(limits=limits),
            )
            there = (HOST, int(lease.public.rpartition(":")[2]))
            async with await anyio.create_connected_udp_socket(*there) as user:
                await user.send(b"12345")
                await anyio.wait_readable(service)
                async with await anyio.create_connected_udp_socket(*there) as other:
                    await other.send(b"?")
                    while not it.exposures.drops["connection_rate"]:
                        await anyio.lowlevel.checkpoint()
                await it.exposures.save()
                await user.send(b"?")
                while not it.exposures.drops["quota_used_up"]:
                    await anyio.lowlevel.checkpoint()
        assert it.exposures.drops == {"connection_rate": 1, "quota_used_up": 1}

    on_bench(tmp_path, test)


def test_by_http_at_a_port_a_user_too_many_is_told_so(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, swallow)
            port, inner = await it.free_port(), target.extra(SocketAttribute.local_port)
            terms = Terms(limits=Limits(connections=1))
            await it.expose(2, **WEB, public=f"{HOST}:{port}", port=inner, terms=terms)
            async with await anyio.connect_tcp(HOST, port) as user:
                await user.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                while not it.exposures.status()[0]["connections"]:
                    await anyio.lowlevel.checkpoint()
                async with await anyio.connect_tcp(HOST, port):  # who asks for nothing takes nobody's place
                    assert (await web(port)).startswith(b"HTTP/1.1 503 ")
            assert it.exposures.drops == {"too_many_users": 1}
            tasks.cancel_scope.cancel()

    on_bench(tmp_path, test)


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


def test_names_that_users_know_an_exposure_by_are_the_policys_too(tmp_path: Path) -> None:
    """In whichever way they are written, at the first claim, at a renewal, and when the policy changes."""
    rights = {2: Rights(hosts=("*.shop.test",)), 3: Rights(hosts=("xn--bcher-kva.test",))}
    told: list[str] = []

    async def leads_here(host: str) -> bool:
        return True

    async def tell(_node: int, message: Message) -> bool:
        assert isinstance(message, Withdrawn)
        told.append(message.id)
        return True

    async def test(it: Bench) -> None:
        lease = await it.expose(2, known_as=("App.Shop.test.",))
        assert lease.known_as == ("app.shop.test",)
        assert (await it.expose(3, known_as=("Bücher.test",))).known_as == ("xn--bcher-kva.test",)
        for refusal in (
            await it.refusal(2, known_as=("app.shop.test", "evil.test")),
            await it.refusal(2, id=lease.id, known_as=("evil.test",)),
        ):
            assert refusal.code == "policy-forbids" and "have the name evil.test" in refusal.message
        assert len(it.exposures.said()) == 2 and it.exposures.drops == {"policy_forbids": 2}
        rights[2] = Rights(hosts=("*.other.test",))
        await it.exposures.policy_changed()
        assert told == [lease.id]

    on_bench(tmp_path, test, leads_here=leads_here, tell=tell, rights=rights.__getitem__)


def test_a_name_is_one_name_however_it_is_written(tmp_path: Path) -> None:
    own = "xn--brse-5qa.test"

    async def test(it: Bench) -> None:
        async with await anyio.create_tcp_listener(local_host=HOST):
            lease = await it.expose(2, **WEB, host="Bücher.test/x")
            assert (lease.public, lease.url) == ("xn--bcher-kva.test/x", "https://xn--bcher-kva.test/x/")
        for host in ("BÜCHER.test./x", "xn--bcher-kva.TEST/x", "bu\u0308cher\u3002test/x/"):
            taken = await it.refusal(3, **WEB, host=host)
            assert taken.code == "host-taken" and taken.message.startswith("bücher.test/x is held by node 'a'")
        assert (await it.refusal(3, **WEB, host="Börse.test")).message == "börse.test is the server's own name."
        tls = {"protocol": "tls", "target": "tls://127.0.0.1:1"}
        assert (await it.expose(3, **tls, host="пример.рф")).public == "xn--e1afmkfd.xn--p1ai:443"

    on_bench(tmp_path, test, public_hosts=(own,), web_ports=(443,))


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
