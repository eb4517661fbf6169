"""Peers on their way through the server: over real sockets, from a peer's command to the target of another node."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute

from overlay.carrier.streams import CodecStream
from overlay.node.by_server import open_by_server
from overlay.node.connecting import Connecting, bind_local
from overlay.server import private_ways as module
from overlay.server.access.gate import Gate
from overlay.server.private_ways import PrivateWays
from overlay.wire.control.messages import ByServer, Connected
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.carrier.streams import Certificate
from tests.server.test_callers import HOST, Bench, asked, bench

pytestmark = pytest.mark.anyio

KEY = clamp(bytes(range(32)))
PEER = 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


class Way:
    """To exposure 7 of node 2."""

    def __init__(self, it: Bench, pin: bytes, ways: PrivateWays, gate: Gate) -> None:
        self.it = it
        self.pin = pin
        self.ways = ways
        self.gate = gate

    async def open(self, ticket: bytes, key: bytes = public_key(KEY)) -> CodecStream:
        way = ByServer(ticket=ticket, key=key, pin=self.pin, servers=(f"{HOST}:{self.it.port}",))
        return await open_by_server(way)


@asynccontextmanager
async def way(certificate: Certificate) -> AsyncIterator[Way]:
    async with bench(certificate) as it, anyio.create_task_group() as tasks:
        it.key = KEY
        gate = Gate()
        node_of = {7: 2}.get
        ways = it.guests.ways = PrivateWays(it.callers, node_of, {7: gate}, os.urandom, tasks, it.drops)
        yield Way(it, certificate.pin, ways, gate)
        tasks.cancel_scope.cancel()


async def test_sealed_from_end_to_end_and_counted(certificate: Certificate) -> None:
    data = os.urandom(1_000_000)
    async with way(certificate) as to:
        ticket = to.ways.let_in(7, PEER, 600)
        assert to.ways.let_in(7, PEER, 600) == ticket != to.ways.let_in(7, PEER + 1, 600)
        for _ in range(2):
            assert await asked(await to.open(ticket), data) == hashlib.sha256(data).digest() * 100_000
        assert to.gate.meter.collect() > 2 * (len(data) + 3_200_000), "and what sealing adds"
        assert not to.it.drops


async def test_datagrams_go_sealed_too(certificate: Certificate) -> None:
    async with way(certificate) as to, await anyio.create_udp_socket(local_host=HOST) as target:
        to.it.datagrams = (HOST, target.extra(SocketAttribute.local_port))
        by_server = ByServer(
            ticket=to.ways.let_in(7, PEER, 600),
            key=public_key(KEY),
            pin=to.pin,
            servers=(f"{HOST}:{to.it.port}",),
        )
        let_in = Connected(seq=1, node="a", address="", port=0, datagrams=True, seconds=600, by_server=by_server)

        async def ask() -> Connected:
            return let_in

        bound = bind_local((HOST, 0), datagrams=True)
        port = bound.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Connecting(bound, let_in, ask).run)
            async with await anyio.create_connected_udp_socket(HOST, port) as user:
                for number in range(3):
                    await user.send(b"question %d" % number)
                    question, source = await target.receive()
                    await target.sendto(question.upper(), *source)
                    assert await user.receive() == b"QUESTION %d" % number
            tasks.cancel_scope.cancel()


async def test_another_node_than_the_one_that_exposes_it_is_not_believed(certificate: Certificate) -> None:
    async with way(certificate) as to:
        ticket = to.ways.let_in(7, PEER, 600)
        with pytest.raises(OSError, match="not the node|not lead there"):
            await to.open(ticket, public_key(clamp(bytes(32))))


async def test_who_is_not_let_in_or_no_longer(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    async with way(certificate) as to:
        with pytest.raises(OSError, match="does not lead there"):
            await to.open(os.urandom(16))
        ticket, other = to.ways.let_in(7, PEER, 600), to.ways.let_in(7, PEER + 1, 600)
        streams = [await to.open(each) for each in (ticket, other)]
        assert to.ways.connections(7) == 2
        to.ways.put_out(7, PEER)
        with pytest.raises(anyio.BrokenResourceError):
            await streams[0].receive()
        assert to.ways.connections(7) == 1
        await streams[1].send(b"still there")
        assert to.ways.let_in(7, PEER, 600) != ticket
        late = to.ways.let_in(7, PEER + 2, -1.0)
        monkeypatch.setattr(module, "MOST_PER_NODE", 1)
        to.it.drops.clear()
        for refused in (ticket, late, other):
            with pytest.raises(OSError, match="does not lead there"):
                await to.open(refused)
        to.gate.used_up = True
        with pytest.raises(OSError, match="does not lead there"):
            await to.open(to.ways.let_in(7, PEER, 600))
        to.ways.put_out(7)
        with pytest.raises(anyio.BrokenResourceError):
            await streams[1].receive()
        for stream in streams:
            stream.close()
        assert to.it.drops == {"unknown_token": 2, "too_many_users": 1, "quota_used_up": 1}


async def test_a_node_that_is_away(certificate: Certificate, tmp_path: Path) -> None:
    async with way(certificate) as to:
        to.it.online = False
        with pytest.raises(OSError, match="does not lead there"):
            await to.open(to.ways.let_in(7, PEER, 600))
        assert to.it.drops == {"target_offline": 1}
