"""Connections of QUIC that the users of tunnels share: whose streams they are, and how these end. Real sockets."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier import quic_client, quic_line
from overlay.carrier.carriers import CarrierStream
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_client import SharedLines
from overlay.carrier.quic_connection import MOST_STREAMS, WINDOW, flow_of, with_flow

from .test_quic_streams import pair, whole

pytestmark = pytest.mark.anyio

Both = tuple[QuicStream, QuicStream]


@asynccontextmanager
async def shared(chance: random.Random | None = None) -> AsyncIterator[Both]:
    """Both ends of the first stream of a connection that is shared."""
    async with pair(chance) as [(client, server)]:
        client.line.share(lambda: None)
        server.admit()
        yield client, server


async def another(client: QuicStream, server: QuicStream) -> Both:
    """One more stream of the same connection."""
    while (opened := client.line.open_stream()) is None:  # noqa: ASYNC110 - nobody is told
        await anyio.sleep(0.005)
    await opened.send(b"!")
    while (served := server.line._streams.get(opened.stream_id)) is None:  # noqa: ASYNC110 - as above
        await anyio.sleep(0.005)
    assert await served.receive() == b"!"
    return opened, served


async def test_each_stream_has_its_own_bytes_ends_and_datagrams_though_the_network_loses_some() -> None:
    async with shared(random.Random(3)) as first:
        pairs = [first, *[await another(*first) for _ in range(4)]]
        found: list[list[bytes]] = [[] for _ in pairs]

        async def talk(number: int, client: QuicStream, server: QuicStream) -> None:
            said, answered = os.urandom(100_000), os.urandom(100_000)
            server.take_datagrams(found[number].append)

            async def say() -> None:
                client.send_datagram(bytes([number]))
                await client.send(said)
                await client.send_eof()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(say)
                assert await whole(server) == said
            await server.send(answered)
            await server.send_eof()
            server.close()
            assert await whole(client) == answered
            client.close()

        async with anyio.create_task_group() as tasks:
            for number, both in enumerate(pairs):
                tasks.start_soon(talk, number, *both)
        assert all(set(said) <= {bytes([number])} for number, said in enumerate(found))


@pytest.mark.parametrize("by_server", [True, False])
async def test_one_that_is_cut_off_leaves_its_neighbours_alone(by_server: bool) -> None:
    async with shared() as first:
        one = await another(*first)
        ours, theirs = reversed(one) if by_server else one
        await theirs.send(b"half of it")
        ours.cut()
        ours.close()
        assert theirs.line is first[by_server is False].line
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                await theirs.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await theirs.send(b"more")
        assert not theirs.is_quiet()
        theirs.close()
        await first[0].send(b"here")
        assert await first[1].receive() == b"here"


async def test_a_stream_that_was_not_used_ends_in_order() -> None:
    async with shared() as first:
        client, server = await another(*first)
        server.close()
        assert await whole(client) == b""
        client.close()


async def test_one_that_does_not_read_does_not_hold_up_the_others() -> None:
    async with shared() as first:
        slow, other = await another(*first), await another(*first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow[0].send, bytes(3 * WINDOW))
            tasks.start_soon(other[0].send, bytes(3 * WINDOW))
            read = 0
            while read < 3 * WINDOW:
                read += len(await other[1].receive())
            assert len(slow[1]._received) <= WINDOW
            read = 0
            while read < 3 * WINDOW:
                read += len(await slow[1].receive())


async def test_what_was_sent_before_the_end_arrives_though_the_peer_reads_late() -> None:
    async with shared() as first:
        client, server = await another(*first)
        payload = os.urandom(WINDOW + 100_000)  # more than may be on its way
        await client.send(payload)
        await client.send_eof()
        client.close()
        assert await whole(server) == payload
        assert not first[0].line.over


async def test_a_peer_that_takes_nothing_does_not_keep_what_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_line, "LINGER", 0.2)
    async with shared() as first:
        client, server = await another(*first)
        await client.send(bytes(WINDOW + 100_000))
        await client.send_eof()
        client.close()
        connection = client.line.connection
        with anyio.fail_after(10):
            while connection.has(client.stream_id):  # noqa: ASYNC110 - nobody is told
                await anyio.sleep(0.005)
        server.close()


async def test_streams_that_have_ended_leave_nothing_and_make_room_for_others() -> None:
    async with shared() as first:
        for number in range(3 * MOST_STREAMS):
            client, server = await another(*first)
            if number % 3 == 0:
                await client.send_eof()
            (client if number % 2 else server).close()
            (server if number % 2 else client).close()
        for line in (first[0].line, first[1].line):
            with anyio.fail_after(10):
                while len(line.connection._streams) > 1:
                    line.flush()
                    await anyio.sleep(0.005)
            assert list(line._streams) == [0] and not line.blocked
            assert not line.connection._read.keys() - {0} and not line.connection._due - {0}


async def test_a_connection_that_is_closed_is_no_end_in_order_for_those_who_share_it() -> None:
    async with shared() as first:
        client, server = await another(*first)
        ended = await another(*first)
        await ended[1].send_eof()
        assert await whole(ended[0]) == b""
        server.line.close()
        with pytest.raises(anyio.BrokenResourceError):
            await client.receive()
        assert await whole(ended[0]) == b""
        for each in (client, ended[0], first[0]):
            each.close()


async def test_a_connection_without_streams_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_line, "EMPTY", 0.1)
    async with shared() as (client, server):
        client.keep_alive()
        client.close()
        server.close()
        with anyio.fail_after(10):
            while not (client.line.over and server.line.over):  # noqa: ASYNC110 - nobody is told
                await anyio.sleep(0.005)


# who shares ----------------------------------------------------------------------------------------------------------


async def test_a_crowd_comes_by_few_connections() -> None:
    lines = SharedLines()
    async with pair(count=3) as pairs:
        waiting = [client for client, _ in pairs]
        servers = {client.line: server for client, server in pairs}
        found: list[QuicStream] = []

        async def dial() -> CarrierStream:
            client = waiting.pop()
            await anyio.sleep(0.01)
            servers[client.line].line._loop.call_later(0.01, servers[client.line].admit)
            return client

        async def one() -> None:
            stream = await lines.open("server", dial)
            assert isinstance(stream, QuicStream)
            found.append(stream)

        async with anyio.create_task_group() as tasks:
            for _ in range(2 * MOST_STREAMS):
                tasks.start_soon(one)
        assert len({stream.line for stream in found}) == 2 and len(waiting) == 1
        assert len({(stream.line, stream.stream_id) for stream in found}) == 2 * MOST_STREAMS
        lines.close()
        assert all(stream.line.connection._close_event is not None for stream in found)


async def test_where_no_more_are_let_in_each_has_a_connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_client, "ADMISSION", 0.1)
    lines = SharedLines()
    async with pair(count=3) as pairs:
        waiting = [client for client, _ in pairs]

        async def dial() -> CarrierStream:
            return waiting.pop()

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lines.open, "server", dial)
        assert not waiting
        lines.close()


async def test_who_cannot_connect_is_told_and_the_next_one_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = SharedLines()
    tried = 0

    async def dial() -> CarrierStream:
        nonlocal tried
        tried += 1
        await anyio.lowlevel.checkpoint()
        raise ConnectionRefusedError

    async def one() -> None:
        with pytest.raises(ConnectionRefusedError):
            await lines.open("server", dial)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(one)
    assert tried == 3


@given(st.integers(0, 2**40).map(lambda number: 4 * number), st.binary(max_size=100))
def test_a_datagram_is_its_streams(stream_id: int, datagram: bytes) -> None:
    assert flow_of(with_flow(stream_id, datagram)) == (stream_id, datagram)


@given(st.binary(max_size=12))
def test_fuzz_datagrams_of_streams(datagram: bytes) -> None:
    found = flow_of(datagram)
    assert found is None or (found[0] % 4 == 0 and datagram.endswith(found[1]))
