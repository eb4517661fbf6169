"""Serving nodes over real sockets: the good case, and strangers of every kind."""

import errno
import logging
import socket
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from overlay.carrier.connection import ConnectionLost, ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.tcp import serve
from overlay.errors import UserError
from overlay.wire.control.channel import BUSY
from overlay.wire.control.messages import Endpoints, Failed, Hello, Ping, Pong

from .ends import (
    NODE_PUBLIC,
    SERVER,
    WELCOME,
    answer,
    answer_pings,
    greeted,
    in_thread,
    initiation,
    lost,
    read_all,
    reset,
    serving,
)

pytestmark = pytest.mark.anyio

QUICK = replace(DEFAULT_LIMITS, handshake=0.5, admission=0.5, write=0.3, silence=0.3)


async def forget(connection: ControlConnection) -> None:
    """A handler that ends at once."""


# the good case -------------------------------------------------------------------------------------------------------


async def test_several_tasks_may_send() -> None:
    async with serving(answer_pings) as server:
        connection = await greeted(await server.dial())
        async with anyio.create_task_group() as tasks:
            for seq in range(50):
                tasks.start_soon(connection.send, Ping(seq=seq))
        with anyio.fail_after(5):
            answers = [await connection.receive() for _ in range(50)]
        assert answers == [Pong(seq=seq) for seq in range(50)]
        await connection.aclose()


async def test_stopping_the_server_closes_its_connections() -> None:
    async with serving(answer_pings) as server:
        connection = await greeted(await server.dial())
    assert await lost(connection) in ("closed_by_peer", "reset")
    with pytest.raises(ConnectionLost):
        await connection.send(Ping(seq=1))


async def test_all_of_several_listeners_are_served() -> None:
    listener = await anyio.create_tcp_listener(local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(serve, listener, SERVER, answer_pings)
        port = listener.extra(SocketAttribute.local_port)
        with anyio.fail_after(5):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                channel, first = initiation()
                await stream.send(first)
                channel.receive_data(await stream.receive())
                assert channel.established
        tasks.cancel_scope.cancel()


# strangers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting",
    [
        b"GETTING / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\xff" * 100_000,
        bytes(98),
    ],
)
async def test_other_protocols_are_closed_without_an_answer(greeting: bytes) -> None:
    async with serving(forget) as server:
        with server.raw() as stranger:
            stranger.sendall(greeting)
            assert await in_thread(read_all, stranger) == b""
        await server.dropped("unknown_protocol")


async def test_garbage_of_the_right_length_is_closed() -> None:
    async with serving(forget) as server:
        with server.raw() as stranger:
            stranger.sendall(b"\x00\x60" + b"\x09" + bytes(95))
            assert await in_thread(read_all, stranger) == b""
        await server.dropped("bad_tag")
        with server.raw() as stranger:
            stranger.sendall(b"\x00\x60" + bytes(96))
            assert await in_thread(read_all, stranger) == b""
        await server.dropped("low_order_point")


async def test_a_replayed_first_message_does_nothing() -> None:
    handled: list[bytes] = []

    async def handler(connection: ControlConnection) -> None:
        handled.append(connection.remote_key)

    channel, recorded = initiation()
    async with serving(handler, QUICK) as server:
        with server.raw() as honest:
            honest.sendall(recorded)
            channel.receive_data(await in_thread(lambda stream: stream.recv(50, socket.MSG_WAITALL), honest))
            honest.sendall(channel.data_to_send())
            await in_thread(read_all, honest)
        assert handled == [NODE_PUBLIC]
        with server.raw() as replay:
            replay.sendall(recorded)
            assert len(await in_thread(read_all, replay)) == 50  # an answer that only the holder of the key can use
        await server.dropped("handshake_timeout")
        with server.raw() as replay:
            replay.sendall(recorded + recorded)
            await in_thread(read_all, replay)
        await server.dropped("bad_length")
    assert handled == [NODE_PUBLIC]


async def test_silent_and_slow_strangers_are_closed_in_time() -> None:
    async with serving(forget, QUICK) as server:
        with server.raw() as silent:
            assert await in_thread(read_all, silent) == b""
        await server.dropped("handshake_timeout")
        _, first = initiation()
        with server.raw() as slow:
            # Each byte comes in time; all of them together do not.
            for byte in first:
                try:
                    slow.send(bytes([byte]))
                except (BrokenPipeError, ConnectionResetError):
                    break
                await anyio.sleep(0.01)
            assert await in_thread(read_all, slow) == b""
        await server.dropped("handshake_timeout", 2)


async def test_strangers_who_leave_are_noticed() -> None:
    _, first = initiation()
    async with serving(forget) as server:
        server.raw().close()
        await server.dropped("closed_early", 1)
        reset(server.raw())
        await server.dropped("closed_early", 2)
        stranger = server.raw()
        stranger.sendall(first[:50])
        stranger.close()
        await server.dropped("closed_early", 3)
        stranger = server.raw()
        stranger.sendall(first)
        reset(stranger)
        await server.dropped("closed_early", 4)


async def test_too_many_strangers_are_turned_away_and_the_others_go_on() -> None:
    limits = replace(DEFAULT_LIMITS, strangers_per_address=3)
    async with serving(answer_pings, limits) as server:
        friend = await greeted(await server.dial())
        crowd = [server.raw() for _ in range(3)]
        first = initiation()[1]
        for stranger in crowd:
            stranger.sendall(first[:50])
        with server.raw() as late:
            late.sendall(first)
            assert await in_thread(read_all, late) == BUSY
        await server.dropped("too_many_from_address")
        with pytest.raises(UserError) as caught:
            await server.dial()
        assert caught.value.code == "server-busy"
        assert await answer(friend, Ping(seq=1)) == Pong(seq=1)
        for stranger in crowd:
            stranger.close()
        await server.dropped("closed_early", 3)
        again = await greeted(await server.dial())
        await again.aclose()
        await friend.aclose()


async def test_too_many_silent_ones_are_turned_away() -> None:
    async with serving(answer_pings, replace(DEFAULT_LIMITS, silent_per_address=3)) as server:
        crowd = [server.raw() for _ in range(3)]
        with server.raw() as late:
            assert await in_thread(read_all, late) == BUSY
        await server.dropped("too_many_silent_from_address")
        for stranger in crowd:
            stranger.close()
        await server.dropped("closed_early", 3)
        again = await greeted(await server.dial())
        await again.aclose()


async def test_a_welcome_peer_is_no_stranger_any_more() -> None:
    limits = replace(DEFAULT_LIMITS, strangers=1, strangers_per_address=1)
    async with serving(answer_pings, limits) as server:
        connections = [await greeted(await server.dial()) for _ in range(5)]
        for connection in connections:
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
        for connection in connections:
            await connection.aclose()
    assert not server.drops


async def test_who_is_not_welcomed_in_time_is_closed() -> None:
    async def hesitate(connection: ControlConnection) -> None:
        while True:
            await connection.receive()

    async with serving(hesitate, replace(QUICK, silence=5.0)) as server:
        connection = await server.dial()
        assert await lost(connection) in ("closed_by_peer", "reset")
        await server.dropped("not_admitted")


async def test_a_stranger_cannot_send_much() -> None:
    async def handler(connection: ControlConnection) -> None:
        await connection.receive()

    async with serving(handler) as server:
        connection = await server.dial()
        await connection.send(Hello(name="a", software="x" * DEFAULT_LIMITS.first_message))
        assert await lost(connection) in ("closed_by_peer", "reset")
        await server.dropped("message_too_large")


# peers ---------------------------------------------------------------------------------------------------------------


async def test_a_peer_that_says_nothing_more_is_closed() -> None:
    async with serving(answer_pings, QUICK) as server:
        connection = await greeted(await server.dial())
        assert await lost(connection) in ("closed_by_peer", "reset")
        await server.dropped("silent")


async def test_a_server_that_says_nothing_more_is_left() -> None:
    async def mute(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await anyio.sleep_forever()

    async with serving(mute) as server:
        connection = await greeted(await server.dial(QUICK))
        assert await lost(connection) == "silent"


async def test_a_wrong_message_ends_the_connection() -> None:
    async with serving(answer_pings) as server:
        connection = await greeted(await server.dial())
        await connection.send(Endpoints(lan=("not an endpoint",)))
        assert await lost(connection) in ("closed_by_peer", "reset")
        await server.dropped("bad_message")


async def test_what_only_a_newer_version_knows_is_skipped() -> None:
    async with serving(answer_pings) as server:
        connection = await greeted(await server.dial())
        connection._channel.send(b'{"type":"teleport"}')
        assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
        await connection.aclose()


async def test_one_that_does_not_read_is_closed_and_the_others_are_not_slowed() -> None:
    """The handler tells all peers the same, one after the other, as a hub does."""
    peers: list[ControlConnection] = []
    flood = Failed(seq=0, code="flood", message="x" * 1_000_000)

    async def handler(connection: ControlConnection) -> None:
        peers.append(connection)
        await answer_pings(connection)

    async with serving(handler) as server:
        deaf = await greeted(await server.dial())
        friend = await greeted(await server.dial())
        with anyio.fail_after(20):
            while peers[0].lost is None or peers[1].lost is None:
                for peer in peers:
                    try:
                        await peer.send(flood)
                    except ConnectionLost as error:
                        assert error.reason == "peer_does_not_read"
                if "peer_does_not_read" in server.drops:
                    break
                assert await friend.receive() == flood
                await anyio.lowlevel.checkpoint()  # what went at once is there at once: nobody else had a turn
        await server.dropped("peer_does_not_read")
        assert server.drops == {"peer_does_not_read": 1}
        assert [peer.lost is None for peer in peers] == [False, True]
        await deaf.aclose()
        await friend.aclose()


async def test_one_that_does_not_read_is_closed_in_time_also_when_nothing_more_is_sent() -> None:
    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        for _ in range(12):
            await connection.send(Failed(seq=0, code="flood", message="x" * 1_000_000))
        await connection.receive()

    async with serving(handler, replace(QUICK, silence=60.0)) as server:
        deaf = await server.dial()
        await server.dropped("peer_does_not_read")
        await deaf.aclose()


async def test_a_node_does_not_wait_for_a_server_that_does_not_read() -> None:
    async def deaf(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await anyio.sleep_forever()

    async with serving(deaf) as server:
        connection = await greeted(await server.dial(replace(DEFAULT_LIMITS, write=0.1, outbox=10**9)))
        with pytest.raises(ConnectionLost) as caught, anyio.fail_after(10):
            while True:
                await connection.send(Hello(name="a", software="x" * 1_000_000))
        assert caught.value.reason == "peer_does_not_read"


# faults of our own ---------------------------------------------------------------------------------------------------


async def test_a_failing_handler_ends_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        message = await connection.receive()
        if message == Ping(seq=13):
            raise ZeroDivisionError("a fault")
        await connection.send(Pong(seq=1))

    async with serving(handler) as server:
        friend = await greeted(await server.dial())
        victim = await greeted(await server.dial())
        await victim.send(Ping(seq=13))
        assert await lost(victim) == "closed_by_peer"
        await server.dropped("handler_failed")
        assert await answer(friend, Ping(seq=1)) == Pong(seq=1)
        await friend.aclose()
    assert "ZeroDivisionError" in caplog.text


async def test_each_reason_is_logged_once_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="overlay.carrier.tcp")
    async with serving(forget) as server:
        for count in range(1, 6):
            with server.raw() as stranger:
                stranger.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                await in_thread(read_all, stranger)
            await server.dropped("unknown_protocol", count)
    records = [record for record in caplog.records if "unknown_protocol" in record.getMessage()]
    assert [record.levelno for record in records] == [logging.WARNING] + [logging.DEBUG] * 4


async def test_exhausted_descriptors_do_not_end_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal is injected: taking all real descriptors would break the test itself."""
    accept = socket.socket.accept
    failures = [errno.EMFILE, errno.ECONNABORTED]

    def failing(listening: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "injected")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", failing)
    async with serving(answer_pings) as server:
        connection = await greeted(await server.dial())
        assert server.drops["accept_failed"] == 2
        await connection.aclose()
