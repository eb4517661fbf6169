"""A local port that leads to a peer's private exposure, over loopback: 127.77.0.2 is the exposing node."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.reached import REACHED
from overlay.errors import UserError
from overlay.node import connecting as module
from overlay.node.connecting import Connecting, bind_local, parse_listen
from overlay.node.guests import MOST, Guests
from overlay.wire.control.messages import Connected

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


class Peer:
    """The server's word, and the exposing node's end."""

    def __init__(self) -> None:
        self.lets_in = False  # until it is asked
        self.asked = 0
        self.refusal: UserError | None = None
        self.port = 0
        self.datagrams = False

    def let_in(self) -> Connected:
        return Connected(seq=1, node="a", address=HOST, port=self.port, datagrams=self.datagrams, seconds=600)

    async def ask(self) -> Connected:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        self.lets_in = True
        return self.let_in()

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            if not self.lets_in:
                return
            with suppress(anyio.BrokenResourceError):
                await stream.send(REACHED)
                async for chunk in stream:
                    await stream.send(chunk.upper())
                await stream.send(b"end")


@asynccontextmanager
async def connecting(peer: Peer) -> AsyncIterator[tuple[int, Connecting]]:
    async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, peer.serve)
        peer.port = peer.port or listener.extra(SocketAttribute.local_port)
        bound = bind_local((HOST, 0), datagrams=peer.datagrams)
        port = bound.getsockname()[1]
        it = Connecting(bound, peer.let_in(), peer.ask)
        tasks.start_soon(it.run)
        with anyio.fail_after(10):
            yield port, it
        tasks.cancel_scope.cancel()


async def answer(port: int) -> bytes:
    async with await anyio.connect_tcp(HOST, port) as user:
        await user.send(b"hello")
        await user.send_eof()
        data = b""
        with suppress(anyio.BrokenResourceError):
            async for chunk in user:
                data += chunk
        return data


async def test_who_was_forgotten_is_let_in_again_without_anybody_noticing() -> None:
    peer = Peer()
    async with connecting(peer) as (port, it):
        assert [await answer(port), await answer(port)] == [b"HELLOend"] * 2
        assert peer.asked == 1 and it.drops == {"not_reached": 1}
        peer.lets_in = False
        peer.refusal = UserError("server-unreachable", "The server is away.")
        assert await answer(port) == b""
        peer.refusal = None
        assert await answer(port) == b"HELLOend"


async def test_an_exposing_node_that_got_another_port_is_found() -> None:
    peer = Peer()
    with socket.create_server((HOST, 0)) as gone:
        peer.port = gone.getsockname()[1]
    async with connecting(peer) as (port, _):
        async with await anyio.create_tcp_listener(local_host=HOST) as other, anyio.create_task_group() as tasks:
            tasks.start_soon(other.serve, peer.serve)
            peer.port = other.extra(SocketAttribute.local_port)
            assert await answer(port) == b"HELLOend"
            tasks.cancel_scope.cancel()


async def test_datagrams_go_both_ways() -> None:
    peer = Peer()
    peer.datagrams = True
    async with await anyio.create_udp_socket(local_host=HOST) as target:
        peer.port = target.extra(SocketAttribute.local_port)
        async with connecting(peer) as (port, _), await anyio.create_connected_udp_socket(HOST, port) as user:
            await user.send(b"question")
            question, source = await target.receive()
            await target.sendto(question.upper(), *source)
            assert await user.receive() == b"QUESTION"


async def test_it_ends_when_the_server_says_no_and_not_when_it_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWAL", 0.0)
    monkeypatch.setattr(module, "RETRY", 0.0)
    peer = Peer()
    peer.refusal = UserError("server-unreachable", "The server is away.")

    async def until_refused() -> None:
        bound = bind_local((HOST, 0), datagrams=False)
        with pytest.raises(UserError, match="No"):
            await Connecting(bound, peer.let_in(), peer.ask).run()
        assert bound.fileno() < 0

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_refused)
            while peer.asked < 3:  # noqa: ASYNC110 - a number tells nobody
                await anyio.sleep(0.005)
            peer.refusal = UserError("private-unknown", "No.")


def test_a_place_that_cannot_be_listened_at() -> None:
    with socket.create_server((HOST, 0)) as taken:
        with pytest.raises(UserError) as caught:
            bind_local((HOST, taken.getsockname()[1]), datagrams=False)
    assert caught.value.code == "listen-failed"


async def test_guests_come_for_their_time_and_longer_while_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    monkeypatch.setattr(anyio, "current_time", clock)
    there = [True]
    guests = Guests(lambda: there[0])
    guests.let_in("10.77.0.3", 600)
    assert guests("10.77.0.3") and not guests("10.77.0.4")
    now[0] += 601
    assert not guests("10.77.0.3")
    there[0] = False
    assert guests("10.77.0.3")
    guests.let_in("10.77.0.3", 0)
    assert not guests("10.77.0.3")
    for seconds in (float("nan"), -1.0):
        guests.let_in("10.77.0.3", seconds)
        assert not guests("10.77.0.3")
    for number in range(MOST + 1):
        guests.let_in(f"10.78.{number >> 8}.{number & 255}", 600 + number)
    assert not guests("10.78.0.0") and guests("10.78.0.1")


def test_where_to_listen_as_people_write_it() -> None:
    assert parse_listen("") == (HOST, 0)
    assert parse_listen("5432") == parse_listen("localhost:5432") == parse_listen("127.0.0.1:5432") == (HOST, 5432)
    assert parse_listen("[::1]:53") == ("::1", 53)
    for wrong in ("x", "5432x", "1.2.3.4:", "host:9"):
        with pytest.raises(UserError) as caught:
            parse_listen(wrong)
        assert caught.value.code == "listen-invalid"
