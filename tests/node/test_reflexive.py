"""How a node learns what its NAT does: looks over real sockets, with the server's service at the other end."""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.node import reflexive
from overlay.node.inquiry import observe
from overlay.node.interface import Assigned, Machine, Route
from overlay.node.nat_report import nat_status, summary
from overlay.node.reflexive import Reflexive, observe_tcp
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour, classify
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import ErrorResponse, Request, Response, decode, encode
from tests.node.stun_server import HOST, StunServer, UdpPort, stun_server

PATIENCE = 10.0  # s; a test that waits longer has failed
PUBLIC = Machine((Assigned(HOST, "eth0"),), (Route("0.0.0.0/0", "eth0", gateway="192.0.2.1"),))
PRIVATE = Machine((Assigned("192.168.1.10", "eth0"),), (Route("0.0.0.0/0", "eth0", gateway="192.168.1.1"),))
"""What is seen from outside is not this machine's address: as if there were a NAT that keeps ports and hairpins."""


class Node:
    """A `Reflexive` with a UDP socket in the engine's place."""

    def __init__(self, machine: Machine, pauses: tuple[float, ...] = ()) -> None:
        self.machine = machine
        self.engine = UdpPort()
        self.changes: list[tuple[NatBehaviour, tuple[Endpoint, ...]]] = []
        self.looks = 0
        self.mappings: list[Endpoint] = []
        self.reflexive = Reflexive(
            self.engine.send,
            lambda: self.engine.endpoint[1],
            self._note,
            self._mapped,
            read_host=self._read_host,
            pauses=pauses,
        )
        self.engine.received = self.reflexive.received
        self._changed = anyio.Event()

    async def until(self, wanted: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not wanted():
                await self._changed.wait()

    def _note(self) -> None:
        self.changes.append((self.reflexive.nat, self.reflexive.endpoints))
        self._tell()

    def _mapped(self, endpoint: Endpoint) -> None:
        self.mappings.append(endpoint)
        self._tell()

    async def _read_host(self) -> Machine:
        self.looks += 1
        self._tell()
        return self.machine

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def looking(node: Node) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.engine.run)
        tasks.start_soon(node.reflexive.run)
        yield
        tasks.cancel_scope.cancel()


def run(main: Callable[[StunServer], Awaitable[None]]) -> None:
    async def with_server() -> None:
        async with stun_server() as server:
            await main(server)

    anyio.run(with_server)


def serve(node: Node, server: StunServer) -> None:
    node.reflexive.set_servers([server.main.endpoint], [server.second])


def test_a_public_address() -> None:
    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        serve(node, server)
        async with looking(node):
            await node.until(lambda: bool(node.changes))
            nat, endpoints = node.changes[0]  # at once
            assert (nat.translated, nat.mapping, nat.filtering) == (False, "endpoint-independent", None)
            assert endpoints == (node.engine.endpoint,)
            await node.until(lambda: node.reflexive.nat.filtering == "address-dependent")
            node.reflexive.link_changed()
            await node.until(lambda: node.looks == 2)
        # The second look found the same; then it ended.
        assert node.changes[2:] == [(UNKNOWN_NAT, ())]

    run(main)


def test_a_nat_and_the_lifetime_of_its_mappings_once_in_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflexive, "SETTLED", 0.0)
    monkeypatch.setattr(reflexive, "APART", 0.0)

    async def main(server: StunServer) -> None:
        node = Node(PRIVATE, pauses=(0.02, 0.04))
        serve(node, server)
        async with looking(node):
            await node.until(lambda: node.reflexive.nat.lifetime is not None)
            nat = node.reflexive.nat
            assert (nat.translated, nat.mapping, nat.hairpinning, nat.port_preserved) == (
                True,
                "endpoint-independent",
                True,
                True,
            )
            assert nat.lifetime == 0.04
            asked = server.main.count
            looks = node.looks
            node.reflexive.link_changed()
            await node.until(lambda: node.looks > looks)
            assert node.reflexive.nat == nat
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(PATIENCE):
                while server.main.count < asked + 4:  # a look alone: main, the second socket's, two to change
                    await anyio.lowlevel.checkpoint()
            assert node.reflexive.nat == nat and node.looks == looks + 1

    run(main)


def test_a_look_for_each_change_and_none_without_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflexive, "APART", 0.0)

    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        serve(node, server)
        serve(node, server)  # said again after a reconnection
        async with looking(node):
            await node.until(lambda: bool(node.changes))
            view, other = ("203.0.113.7", 1), ("203.0.113.7", 2)
            for sees, looks in ((view, 1), (view, 1), (other, 2), (other, 2)):
                node.reflexive.observed(sees)
                await node.until(lambda looks=looks: node.looks == looks)  # type: ignore[misc]
                await anyio.wait_all_tasks_blocked()
            assert node.looks == 2

    run(main)


def test_nobody_answers_and_then_the_relay_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflexive, "APART", 0.0)
    monkeypatch.setattr("overlay.path.observation.PATIENCE", 0.1)
    monkeypatch.setattr("overlay.path.observation.SENDS", (0.0, 0.02))

    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        silent = UdpPort()
        node.reflexive.set_servers([silent.endpoint], [])
        async with looking(node):
            await node.until(lambda: node.looks == 1)
            with anyio.fail_after(PATIENCE):
                while not node.reflexive._unanswered:
                    await anyio.lowlevel.checkpoint()
            assert node.changes == []
            silent.socket.close()
            node.reflexive.observed(("203.0.113.7", 1))
            await node.until(lambda: node.looks == 2)
            serve(node, server)
            await node.until(lambda: bool(node.changes))

    run(main)


def test_what_is_not_ours_is_let_fall() -> None:
    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        for datagram in (b"\0\1", encode(Response(bytes(12), ("203.0.113.7", 1))), encode(Request(bytes(12)))):
            node.reflexive.received(datagram, ("203.0.113.9", 5))
        assert node.changes == [] and node.engine.count == 0
        node.engine.socket.close()

    run(main)


def test_netchecks_look_by_sockets_of_its_own() -> None:
    async def main(server: StunServer) -> None:
        (seen,) = await observe([server.main.endpoint, server.second, ("2001:db8::1", 9)], ["192.168.1.10"])
        assert classify(seen).filtering == "address-dependent"
        assert seen.mapped[0][1] == (HOST, seen.port)

    run(main)


# by TCP ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def tcp_server(handle: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[Endpoint]:
    async def handled(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await handle(stream)

    async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handled)
        yield (HOST, listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


async def answering(stream: SocketStream) -> None:
    source = stream.extra(SocketAttribute.remote_address)
    while True:
        request = decode(await stream.receive())
        await stream.send(encode(Response(request.transaction_id, (str(source[0]), int(source[1])))))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def test_a_tcp_ports_mapping_stays_while_the_connection_does() -> None:
    async def main() -> None:
        port = free_port()
        node = Node(PUBLIC)
        async with tcp_server(answering) as server:
            node.reflexive.set_servers([(HOST, free_port()), server], [])  # the first one does not answer
            mapped, held = await node.reflexive.observe_tcp(port)
            assert mapped == held.getsockname() == (HOST, port)
            with held, socket.socket() as other:  # who punches uses the same port
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                other.bind(("0.0.0.0", port))
            node.engine.socket.close()

    anyio.run(main)


async def silent(stream: SocketStream) -> None:
    await anyio.sleep_forever()


async def closing(stream: SocketStream) -> None:
    await stream.receive()
    await stream.aclose()


async def talking_http(stream: SocketStream) -> None:
    await stream.receive()
    await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await anyio.sleep_forever()


async def refusing(stream: SocketStream) -> None:
    request = decode(await stream.receive())
    await stream.send(encode(ErrorResponse(request.transaction_id)))
    await anyio.sleep_forever()


async def mistaken(stream: SocketStream) -> None:
    await stream.receive()
    await stream.send(encode(Response(bytes(12), ("203.0.113.7", 1))))
    await anyio.sleep_forever()


@pytest.mark.parametrize("server", [silent, closing, talking_http, refusing, mistaken])
def test_what_is_no_stun_server_by_tcp_is_an_error(
    server: Callable[[SocketStream], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflexive, "TCP_TIMEOUT", 0.5)

    async def main() -> None:
        async with tcp_server(server) as endpoint:
            with pytest.raises(OSError):
                await observe_tcp(free_port(), endpoint)

    anyio.run(main)


def test_no_server_by_tcp() -> None:
    async def main() -> None:
        node = Node(PUBLIC)
        with pytest.raises(ConnectionError):
            await node.reflexive.observe_tcp(free_port())
        node.engine.socket.close()

    anyio.run(main)


# in words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nat", "words"),
    [
        (UNKNOWN_NAT, "Not known"),
        (NatBehaviour(translated=False), "None: this machine has a public address."),
        (NatBehaviour(translated=False, filtering="endpoint-independent"), "all peers reach it"),
        (NatBehaviour(translated=False, filtering="address-dependent"), "firewall"),
        (NatBehaviour(translated=True), "second STUN port"),
        (NatBehaviour(True, "endpoint-independent", "endpoint-independent"), "open one"),
        (NatBehaviour(True, "endpoint-independent", None), "easy one"),
        (NatBehaviour(True, "endpoint-independent", "address-and-port-dependent"), "easy one"),
        (NatBehaviour(True, "address-dependent", "address-dependent"), "hard one: direct paths to peers"),
        (NatBehaviour(True, "address-and-port-dependent", None, port_delta=1), "can be guessed"),
    ],
)
def test_a_sentence_for_each(nat: NatBehaviour, words: str) -> None:
    assert words in summary(nat)
    assert summary(nat).endswith(".")
    status = nat_status(nat, [("203.0.113.7", 5), ("2001:db8::1", 6)])
    assert status.endpoints == ("203.0.113.7:5", "[2001:db8::1]:6")
    assert (status.mapping, status.translated) == (nat.mapping, nat.translated)


def test_the_newest_mapping_is_that_of_a_socket_opened_now() -> None:
    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        serve(node, server)
        async with looking(node):
            for number in (1, 2):
                node.reflexive.want_mapping()
                await node.until(lambda number=number: len(node.mappings) == number)  # type: ignore[misc]
        assert {host for host, _ in node.mappings} == {HOST}
        assert len({*node.mappings, node.engine.endpoint}) == 3

    run(main)


def test_without_a_server_there_is_no_newest_mapping() -> None:
    async def main(server: StunServer) -> None:
        node = Node(PUBLIC)
        async with looking(node):
            node.reflexive.want_mapping()
            await anyio.wait_all_tasks_blocked()
            serve(node, server)
            await node.until(lambda: bool(node.changes))
        assert node.mappings == []

    run(main)
