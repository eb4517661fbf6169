"""What holds for a control connection over TCP and over QUIC alike, on real sockets."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from overlay.carrier.connection import ControlConnection
from overlay.wire.control.channel import MAX_MESSAGE
from overlay.wire.control.messages import Endpoints, Failed, Hello, Message, Ping, Pong, Refused

from .ends import NODE_PUBLIC, SERVER_PUBLIC, WELCOME, Running, answer, answer_pings, greeted, lost, serving
from .quic_ends import RunningQuic, serving_quic

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("served", [serving, serving_quic], ids=["tcp", "udp"])]

Serving = Callable[..., Any]


async def all_gone(server: Running | RunningQuic) -> None:
    """QUIC's door forgets a connection some time after its end."""
    if isinstance(server, RunningQuic):
        await server.empty()


async def test_both_ends_know_each_other_and_talk(served: Serving) -> None:
    seen: list[ControlConnection] = []

    async def handler(connection: ControlConnection) -> None:
        seen.append(connection)
        await answer_pings(connection)

    async with served(handler) as server:
        connection = await greeted(await server.dial())
        assert connection.remote_key == SERVER_PUBLIC
        assert connection.remote_address == ("127.0.0.1", server.port)
        for seq in range(3):
            assert await answer(connection, Ping(seq=seq)) == Pong(seq=seq)
        assert seen[0].remote_key == NODE_PUBLIC
        assert seen[0].remote_address[0] == "127.0.0.1"
        await connection.aclose()
        assert await lost(connection) == "closed"
        await all_gone(server)
    assert not server.drops


async def test_large_messages_go_both_ways(served: Serving) -> None:
    big = Failed(seq=1, code="big", message="x" * (MAX_MESSAGE - 1000))
    received: list[Message] = []

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(big)
        received.append(await connection.receive())

    hello = Hello(name="a", software="y" * (MAX_MESSAGE - 1000))
    async with served(handler) as server:
        connection = await greeted(await server.dial())
        with anyio.fail_after(60):
            assert await connection.receive() == big
            await connection.send(hello)
            assert await lost(connection) == "closed_by_peer"
    assert received == [hello]


async def test_the_last_message_arrives_although_the_peer_is_still_talking(served: Serving) -> None:
    """Closing with unread bytes sends RST; it must not overtake the reason for the closing."""
    refused = Refused(code="name-taken", message="The name is taken.")

    async def handler(connection: ControlConnection) -> None:
        await connection.receive()
        await connection.send(refused)

    async with served(handler) as server:
        for _ in range(20):
            connection = await server.dial()
            await connection.send(Hello(name="a"))
            await connection.send(Endpoints(lan=("192.0.2.1:1",) * 60))
            with anyio.fail_after(5):
                assert await connection.receive() == refused
                assert await lost(connection) == "closed_by_peer"
            await connection.aclose()
        await all_gone(server)
    assert not server.drops


async def test_a_cancelled_receive_loses_nothing(served: Serving) -> None:
    async with served(answer_pings) as server:
        connection = await greeted(await server.dial())
        for seq in range(20):
            await connection.send(Ping(seq=seq))
            with anyio.move_on_after(0):
                await connection.receive()
                pytest.fail("the scope was cancelled before it began")
        with anyio.fail_after(5):
            assert [await connection.receive() for _ in range(20)] == [Pong(seq=seq) for seq in range(20)]
        await connection.aclose()
