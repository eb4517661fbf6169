"""Dynamic tunnels over real loopback sockets: the server's port and pools, and the node's calls, by every carrier."""

import hashlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import anyio
import pytest
from anyio.abc import Listener, SocketAttribute, SocketStream

from overlay.carrier.carriers import CarrierStream, DialOptions
from overlay.carrier.flows import UdpFlows
from overlay.carrier.forward import forward_streams
from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.openers import OPENERS
from overlay.carrier.outlets import MOST_WAITING, SocketOutlet, StreamOutlet, join
from overlay.carrier.port import TOKEN, TOKEN_SIZE, Services, Stream
from overlay.carrier.quic_door import QuicDoor
from overlay.carrier.stream import TcpStream, connect
from overlay.carrier.tcp import serve
from overlay.node.calls import Calls
from overlay.server import callers as module
from overlay.server.callers import Callers, DynamicTunnel
from overlay.server.tunnels import TunnelError, Visitor
from overlay.server.web.door import WebDoor, make_room
from overlay.server.web.guests import WebGuests
from overlay.server.web.sites import Sites
from overlay.server.web.tls_door import TlsDoor
from overlay.wire.control.messages import Message, Supply, TunnelCarrier
from overlay.wire.endpoint import Endpoint
from tests.carrier.ends import SERVER, answer_pings
from tests.carrier.quic_ends import reading, udp_socket
from tests.carrier.streams import Certificate

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
VISITOR = Visitor((HOST, 5), (HOST, 80))
CARRIERS: tuple[TunnelCarrier, ...] = get_args(TunnelCarrier)


class Bench:
    """Node 2 with exposure 7, whose target is `target`."""

    def __init__(self, port: int, pin: bytes) -> None:
        self.port = port
        self.pin = pin
        self.drops: Counter[str] = Counter()
        self.target = 0
        self.datagrams: Endpoint | None = None  # where they go, if the exposure is one by UDP
        self.online = True
        self.expected: set[Endpoint] = set()  # whose datagrams the server expects many of
        self.supplies: list[Supply] = []
        self.calls = Calls(self._dial, self._serve, self.drops)
        self.callers = Callers(self._tell, lambda: pin, os.urandom, self.drops)

    def tunnel(self, carrier: TunnelCarrier) -> DynamicTunnel:
        return DynamicTunnel(self.callers, 2, 7, carrier, lambda: self.online)

    async def _tell(self, node: int, message: Message) -> bool:
        assert node == 2 and isinstance(message, Supply)
        self.supplies.append(message)
        if self.online:
            self.calls.supply(message)
        return self.online

    async def _dial(self, carrier: TunnelCarrier, pin: bytes) -> CarrierStream:
        return await OPENERS[carrier]((HOST, self.port), DialOptions(pin=pin))

    async def _serve(self, name: str, stream: Stream) -> None:
        assert name == "x7"
        if self.datagrams is None:
            await forward_streams(stream, await connect((HOST, self.target)))
            return

        async def given() -> Stream:
            return stream

        to_target = SocketOutlet.open(lambda: self.datagrams, self.drops)
        assert to_target is not None
        await join(StreamOutlet(given, self.drops), to_target)

    async def ready(self, count: int, carrier: TunnelCarrier = "tcp") -> None:
        with anyio.fail_after(5):
            while len(self.callers._pools[2, carrier].ready) < count:  # noqa: ASYNC110 - a pool tells nobody
                await anyio.sleep(0.005)


async def shout(stream: SocketStream) -> None:
    """Reads to the end, then answers: half-closes have to come through."""
    async with stream:
        digest = hashlib.sha256()
        try:
            async for piece in stream:
                digest.update(piece)
            await stream.send(digest.digest() * 100_000)
        except anyio.BrokenResourceError:
            return


async def two_ports() -> tuple[socket.socket, Listener[SocketStream]]:
    """UDP and TCP of one number."""
    while True:
        listener = await anyio.create_tcp_listener(local_host=HOST)
        try:
            return udp_socket(listener.extra(SocketAttribute.local_port)), listener
        except OSError:  # somebody has it by UDP
            await listener.aclose()


@asynccontextmanager
async def bench(certificate: Certificate) -> AsyncIterator[Bench]:
    opened, listener = await two_ports()

    def send(datagrams: Sequence[bytes], endpoint: Endpoint) -> None:
        for each in datagrams:
            opened.sendto(each, endpoint)

    def expect(endpoint: Endpoint, expected: bool) -> None:
        (it.expected.add if expected else it.expected.remove)(endpoint)

    door = QuicDoor(
        send,
        lambda: (Path(certificate.chain_file).read_bytes(), Path(certificate.key_file).read_bytes()),
        SERVER,
        expect,
    )
    async with (
        listener,
        await anyio.create_tcp_listener(local_host=HOST) as target,
        anyio.create_task_group() as tasks,
    ):
        it = Bench(listener.extra(SocketAttribute.local_port), certificate.pin)
        it.target = target.extra(SocketAttribute.local_port)
        guests = WebGuests(Sites(), WebDoor(it.drops), TlsDoor(it.drops, make_room()), it.callers)
        services = Services(tls=certificate.context, guests=guests)

        async def run() -> None:
            await serve(listener, SERVER, answer_pings, DEFAULT_LIMITS, drops=it.drops, services=services, quic=door)

        tasks.start_soon(run)
        tasks.start_soon(target.serve, shout)
        await tasks.start(it.calls.run)
        with anyio.fail_after(30), reading(opened, door.received):
            yield it
        it.callers.close()
        tasks.cancel_scope.cancel()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


async def asked(stream: Stream, data: bytes) -> bytes:
    async def send() -> None:
        await stream.send(data)
        await stream.send_eof()

    answer = b""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        with pytest.raises(anyio.EndOfStream):
            while True:
                answer += await stream.receive()
    stream.close()
    return answer


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_both_ways_with_half_closes(certificate: Certificate, carrier: TunnelCarrier) -> None:
    data = os.urandom(3_000_000)
    async with bench(certificate) as it:
        for _ in range(3):
            stream = await it.tunnel(carrier).open(VISITOR)
            assert await asked(stream, data) == hashlib.sha256(data).digest() * 100_000
        assert not it.drops
        await it.ready(module.READY, carrier)


async def test_many_at_once_and_every_token_counts_once(certificate: Certificate) -> None:
    async with bench(certificate) as it:
        answers: list[bytes] = []

        async def one(number: int) -> None:
            answers.append(await asked(await it.tunnel("tcp").open(VISITOR), b"%d" % number))

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(one, number)
        assert len(set(answers)) == 100
        used = it.supplies[0].tokens[0]
        for token in (used, bytes(TOKEN_SIZE)):
            stranger = await connect((HOST, it.port))
            await stranger.send(TOKEN + token)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stranger.receive()
            stranger.close()
        assert it.drops == {"unknown_token": 2}


async def test_much_is_expected_by_quic_of_who_has_shown_a_token_alone(certificate: Certificate) -> None:
    async with bench(certificate) as it:
        stranger = await OPENERS["udp"]((HOST, it.port), DialOptions(pin=it.pin))
        await stranger.send(TOKEN + bytes(TOKEN_SIZE))
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stranger.receive()
        assert not it.expected
        await asked(await it.tunnel("udp").open(VISITOR), b"said")
        assert it.expected
        it.callers.close()
        while it.expected:  # noqa: ASYNC110 - nobody is told
            await anyio.sleep(0.005)


async def test_a_ready_connection_that_has_died_is_not_used(certificate: Certificate) -> None:
    async with bench(certificate) as it:
        await asked(await it.tunnel("tcp").open(VISITOR), b"first")
        await it.ready(module.READY)
        for stream in it.callers._pools[2, "tcp"].ready:
            assert isinstance(stream, TcpStream)
            stream.close()
        assert (
            await asked(await it.tunnel("tcp").open(VISITOR), b"second") == hashlib.sha256(b"second").digest() * 100_000
        )


async def test_a_node_that_is_away_or_does_not_call(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)

    def status(error: pytest.ExceptionInfo[TunnelError]) -> tuple[int, str]:
        return error.value.status, error.value.reason

    async with bench(certificate) as it:
        it.online = False
        with pytest.raises(TunnelError) as caught:
            await it.tunnel("tcp").open(VISITOR)
        assert status(caught) == (502, "target_offline")
        it.online, port, it.port = True, it.port, 1
        with pytest.raises(TunnelError) as caught:
            await it.tunnel("tcp").open(VISITOR)
        assert status(caught) == (504, "node_does_not_call")
        assert it.drops["call_failed"] > 0
        it.port = port
        it.callers.forget_node(2)
        assert await asked(await it.tunnel("tcp").open(VISITOR), b"x")


async def test_a_certificate_of_somebody_else_is_not_taken(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    async with bench(certificate) as it:
        wrong: Callable[[], bytes] = lambda: bytes(32)  # noqa: E731
        it.callers = Callers(it._tell, wrong, os.urandom, it.drops)
        with pytest.raises(TunnelError):
            await it.tunnel("tls").open(VISITOR)
        assert it.drops["call_failed"] > 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_datagrams_of_each_user_by_a_tunnel_of_its_own(certificate: Certificate, carrier: TunnelCarrier) -> None:
    sizes = (1, 1100, 1101, 1400, 60_000)
    async with bench(certificate) as it:
        with udp_socket() as listening, udp_socket() as target, udp_socket() as one, udp_socket() as other:
            it.datagrams, tunnel = target.getsockname(), it.tunnel(carrier)
            flows = UdpFlows(listening, lambda source, local: tunnel.outlet(Visitor(source, local)), drops=it.drops)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flows.run)
                sources = []
                for user in (one, other):
                    for size in sizes:
                        user.sendto(os.urandom(size), listening.getsockname())
                        await anyio.wait_readable(target)
                        data, source = target.recvfrom(65536)
                        assert len(data) == size
                        target.sendto(data[::-1], source)
                        await anyio.wait_readable(user)
                        assert user.recv(65536) == data[::-1]
                    sources.append(source)
                assert sources[0] != sources[1] and flows.count == 2 and not it.drops
                one.sendto(b"", listening.getsockname())
                while not it.drops["datagram_empty"]:  # noqa: ASYNC110 - a counter tells nobody
                    await anyio.sleep(0.005)
                it.callers.close()
                it.online = False
                tasks.cancel_scope.cancel()


async def test_datagrams_for_a_node_that_is_away_are_dropped(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    async with bench(certificate) as it:
        it.online = False
        assert it.tunnel("tcp").outlet(VISITOR) is None and it.drops["target_offline"] == 1
        it.online = True
        it.calls.supply = lambda wish: None  # type: ignore[method-assign]
        outlet = it.tunnel("tcp").outlet(VISITOR)
        assert outlet is not None
        assert all(outlet.send(memoryview(b"x")) for _ in range(MOST_WAITING)) and not outlet.send(memoryview(b"x"))
        assert it.drops["tunnel_full"] == 1
        await outlet.run(lambda datagram: None)
        assert it.drops["node_does_not_call"] == 1


async def test_as_many_wait_as_users_come_and_fewer_when_they_do_not(certificate: Certificate) -> None:
    async with bench(certificate) as it:
        tunnel = it.tunnel("tcp")

        async def one() -> None:
            assert await asked(await tunnel.open(VISITOR), b"x")

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one)
        pool = it.callers._pools[2, "tcp"]
        assert pool.wanted == module.MOST_READY
        assert len(it.supplies) < 10, "they are asked for together"
        await it.ready(module.MOST_READY // 2 + 1)
        it.callers.rest()
        assert pool.wanted == module.MOST_READY, "there were too few, since the last look"
        for left in (32, 16, 8, 4, 4):
            it.callers.rest()
            assert pool.wanted == left
            assert len(pool.ready) <= left
        await one()
        assert not it.drops
