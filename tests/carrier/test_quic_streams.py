"""A QUIC stream as a tunnel for one user: how it ends, datagrams beside it, and silence. Real sockets."""

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from overlay.carrier import quic_connection, quic_line
from overlay.carrier.carriers import DialOptions
from overlay.carrier.limits import DEFAULT_LIMITS, Door, Visit
from overlay.carrier.quic import EARLY_DATAGRAMS, LARGEST_DATAGRAM, QuicStream
from overlay.carrier.quic_client import open_quic
from overlay.carrier.quic_door import QuicDoor
from overlay.wire.endpoint import Endpoint

from .ends import SERVER
from .quic_ends import CERTIFICATE, Network, reading, udp_socket

pytestmark = pytest.mark.anyio


class Host:
    """Takes whoever comes."""

    def __init__(self) -> None:
        self.door = Door(DEFAULT_LIMITS)
        self.streams: list[QuicStream] = []

    def count(self, reason: str, peer: str, detail: str = "") -> None:
        raise AssertionError(reason)

    def start(self, stream: QuicStream, endpoint: Endpoint, visit: Visit) -> None:
        visit.leave()
        self.streams.append(stream)


@asynccontextmanager
async def pair(
    chance: random.Random | None = None, count: int = 1
) -> AsyncIterator[list[tuple[QuicStream, QuicStream]]]:
    """Client's and server's end of each; `chance` decides what the network loses, and what comes late."""
    opened, host = udp_socket(), Host()

    def send(datagrams: Sequence[bytes], endpoint: Endpoint) -> None:
        for each in datagrams:
            opened.sendto(each, endpoint)

    def fate(_number: int) -> str:
        return "pass" if chance is None else chance.choices(("pass", "lose", "late"), (8, 1, 1))[0]

    door = QuicDoor(send, lambda: CERTIFICATE, SERVER)
    network = Network(opened.getsockname()[1], fate)
    with reading(opened, door.received):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(door.run, host)
            await anyio.wait_all_tasks_blocked()
            with network.running(), anyio.fail_after(30):
                pairs = []
                for _ in range(count):
                    port = network.port if count == 1 else opened.getsockname()[1]
                    client = await open_quic(("127.0.0.1", port), DialOptions())
                    await client.send(b"!")
                    server = host.streams[-1]
                    assert await server.receive() == b"!"
                    pairs.append((client, server))
                yield pairs
                for client, server in pairs:
                    client.line.close()
                    server.line.close()
                    while not client.line.over:  # noqa: ASYNC110 - who has closed a stream is told nothing more
                        await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()


async def whole(stream: QuicStream) -> bytes:
    """To its end. Raises what `receive` raises if that is none in order."""
    data = b""
    with pytest.raises(anyio.EndOfStream):
        while True:
            data += await stream.receive()
    return data


async def test_what_was_sent_before_the_end_arrives_though_the_stream_is_closed_at_once() -> None:
    payload = os.urandom(600_000)
    async with pair(random.Random(5)) as [(client, server)]:

        async def say() -> None:
            await client.send(payload)
            await client.send_eof()
            client.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say)
            assert await whole(server) == payload


async def test_a_half_close_leaves_the_other_direction_open() -> None:
    async with pair() as [(client, server)]:
        await client.send_eof()
        assert await whole(server) == b""
        await server.send(b"still")
        assert await client.receive() == b"still"


async def test_who_is_cut_off_does_not_take_it_for_the_end() -> None:
    async with pair() as [(client, server)]:
        await client.send(b"half of it")
        assert await server.receive() == b"half of it"
        client.cut()
        client.close()
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


@pytest.mark.parametrize("size", [1, LARGEST_DATAGRAM])
async def test_datagrams_go_beside_the_stream(size: int) -> None:
    async with pair() as [(client, server)]:
        payload = os.urandom(size)
        assert client.send_datagram(payload) and not client.send_datagram(bytes(LARGEST_DATAGRAM + 1))
        await client.send(b"?")  # behind it
        assert await server.receive() == b"?"
        found: list[bytes] = []
        server.take_datagrams(found.append)
        assert found == [payload], "it came before anybody took it"
        assert server.send_datagram(payload)
        came = anyio.Event()
        client.take_datagrams(lambda datagram: came.set())
        await came.wait()


async def test_datagrams_that_nobody_takes_are_bounded() -> None:
    async with pair() as [(client, server)]:
        for number in range(3 * EARLY_DATAGRAMS):
            while not client.send_datagram(bytes([number])):
                await anyio.lowlevel.checkpoint()
        await client.send(b"?")
        assert await server.receive() == b"?"
        found: list[bytes] = []
        server.take_datagrams(found.append)
        assert 0 < len(found) <= EARLY_DATAGRAMS


async def test_silence_ends_a_connection_that_is_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_connection, "IDLE_TIMEOUT", 0.5)
    monkeypatch.setattr(quic_line, "KEEP_ALIVE", 0.1)
    async with pair(count=2) as [(kept, kept_server), (_, server)]:
        kept.keep_alive()
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await server.receive()
        assert kept.is_quiet() and kept_server.is_quiet() and not server.is_quiet()
        await kept.send(b"here")
        assert await kept_server.receive() == b"here"
