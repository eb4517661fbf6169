"""WebSockets by HTTP/2 (RFC 8441): the h2 and wsproto libraries on the user's side, the websockets library behind."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute
from h2.errors import ErrorCodes
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.typing import Subprotocol
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from overlay.carrier.stream import reset_on_close
from overlay.server.web import http2 as module
from overlay.wire.control.terms import Access, Limits, Terms
from overlay.wire.credentials import digest_of
from tests.carrier.streams import Certificate
from tests.server.web.door import Target
from tests.server.web.http2_user import NAME, Http2User, http2_user
from tests.server.web.http2_web import meeting
from tests.server.web.shared_port import HOST, shared_port, site_to

pytestmark = pytest.mark.anyio

PROTOCOL = (b":protocol", b"websocket")
VERSION = (b"sec-websocket-version", b"13")
SIZE = 1_000_000


async def connect(user: Http2User, path: str = "/", *more: tuple[bytes, bytes]) -> int:
    return await user.ask(path, PROTOCOL, VERSION, *more, method="CONNECT", end=False)


async def opened(user: Http2User, *more: tuple[bytes, bytes]) -> int:
    number = await connect(user, "/", *more)
    while not user.answers[number].heads:
        await user.turn()
    assert user.answers[number].status == b"200"
    return number


async def say(user: Http2User, number: int, data: bytes, *, end: bool = False) -> None:
    at = 0
    while at < len(data):
        size = min(user.h2.local_flow_control_window(number), user.h2.max_outbound_frame_size, len(data) - at)
        if not size:
            await user.turn()
            continue
        user.h2.send_data(number, data[at : at + size])
        at += size
        await user.flush()
    if end:
        user.h2.end_stream(number)
        await user.flush()


async def accept(target: Target, behind: bytes = b"") -> bytes:
    """→ the request's head"""
    head = await target.head()
    key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
    token = generate_accept_token(key.partition(b": ")[2])
    await target.say(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\nX-Kept: yes\r\n\r\n" + behind
    )
    return head


async def digest(target: Target) -> None:
    """Reads to the end, and says what it was then, and more than a window."""
    await accept(target)
    seen = hashlib.sha256()
    try:
        while True:
            seen.update(await target.stream.receive())
    except anyio.EndOfStream:
        await target.say(seen.digest() + bytes(SIZE))
        await target.stream.aclose()
        raise


@asynccontextmanager
async def echo(certificate: Certificate) -> AsyncIterator[Http2User]:
    async def repeat(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(f"{connection.request.path if connection.request else ''} {message!s}")

    async with (
        shared_port(certificate) as port,
        serve_websocket(repeat, HOST, 0, subprotocols=[Subprotocol("chat")]) as server,
    ):
        (listening,) = server.sockets
        port.sites.add(NAME, "/", site_to(listening.getsockname()[1]))
        async with http2_user(port, certificate) as user:
            yield user


async def test_the_server_says_that_it_speaks_it(certificate: Certificate) -> None:
    async with echo(certificate) as user:
        await user.ping()
        assert user.h2.remote_settings.enable_connect_protocol == 1


async def test_messages_pings_and_the_end(certificate: Certificate) -> None:
    async with echo(certificate) as user:
        number = await connect(user, "/a?b", (b"sec-websocket-protocol", b"chat"))
        websocket = Connection(ConnectionType.CLIENT)
        events: list[Event] = []
        told = 0
        for sent in (TextMessage("hello"), Ping(b"1"), CloseConnection(1000)):
            await say(user, number, websocket.send(sent))
            while len(events) == told:
                await user.turn()
                data, user.answers[number].body = user.answers[number].body, b""
                websocket.receive_data(data)
                events.extend(websocket.events())
            told = len(events)
        text, pong, close = events
        assert isinstance(text, TextMessage) and text.data == "/a?b hello"
        assert isinstance(pong, Pong) and pong.payload == b"1"
        assert isinstance(close, CloseConnection) and close.code == 1000
        assert websocket.state is ConnectionState.CLOSED
        assert user.answers[number].heads[0][b"sec-websocket-protocol"] == b"chat"
        user.h2.end_stream(number)
        await user.flush()
        assert (await user.answer(number)).ended


async def test_what_target_and_user_are_told(certificate: Certificate) -> None:
    heads: list[bytes] = []

    async def target(target: Target) -> None:
        heads.append(await accept(target, b"at once"))
        await target.until(b"never")

    async with meeting(certificate, target) as (it, user):
        number = await opened(user, (b"sec-websocket-key", b"mine"), (b"x-forwarded-for", b"6.6.6.6"))
        while user.answers[number].body != b"at once":
            await user.turn()
        assert user.answers[number].heads == [{b":status": b"200", b"x-kept": b"yes"}]
        (head,) = heads
        assert head.startswith(b"GET / HTTP/1.1\r\nHost: site.test\r\n") and b"6.6.6.6" not in head
        assert b"Upgrade: websocket\r\nConnection: Upgrade\r\n" in head and b"mine" not in head
        assert head.lower().count(b"sec-websocket-key: ") == 1 and b"X-Forwarded-For: 127.0.0.1\r\n" in head
        user.h2.end_stream(number)
        await user.flush()
        assert (await user.answer(number)).ended
        await it.until(lambda: it.site.count == 1)
        assert [(entry.method, entry.path, entry.status) for entry in it.site.log] == [("GET", "/", 101)]


async def test_half_closes_are_kept_and_nothing_is_lost(certificate: Certificate) -> None:
    data = os.urandom(SIZE)
    async with meeting(certificate, digest) as (it, user):
        number = await opened(user)
        await say(user, number, data, end=True)
        answer = await user.answer(number)
        assert answer.body == hashlib.sha256(data).digest() + bytes(SIZE) and answer.reset is None
        await it.until(lambda: it.open == 0 and it.site.connections == 0)
        assert it.port.drops == {}


async def test_resets_go_both_ways(certificate: Certificate) -> None:
    broken = anyio.Event()

    async def target(target: Target) -> None:
        if b"/cut" in await accept(target):
            await target.exactly(3)
            reset_on_close(target.stream.extra(SocketAttribute.raw_socket))
            await target.stream.aclose()
            raise anyio.EndOfStream
        try:
            await target.until(b"never")
        except anyio.BrokenResourceError:
            broken.set()
            raise

    async with meeting(certificate, target) as (it, user):
        number = await opened(user)
        user.h2.reset_stream(number, ErrorCodes.CANCEL)
        await user.flush()
        await broken.wait()
        number = await connect(user, "/cut")
        await say(user, number, b"now")
        assert (await user.answer(number)).reset == ErrorCodes.CANCEL
        number = await opened(user)
        it.site.close()  # given back
        assert (await user.answer(number)).reset == ErrorCodes.CANCEL
        assert (await user.answer(await connect(user, "/%41 b"))).status == b"400"  # and the connection goes on


async def test_who_takes_nothing_holds_up_its_own_stream_alone(certificate: Certificate) -> None:
    sent = 0

    async def target(target: Target) -> None:
        nonlocal sent
        if b"/small" in await accept(target):
            await target.say(b"small")
            await target.until(b"never")
        while True:
            await target.say(bytes(65536))
            sent += 65536

    async with meeting(certificate, target) as (it, user):
        user.taking = False
        number = await opened(user)
        while user.h2.remote_flow_control_window(number):
            await user.turn()
        user.h2.increment_flow_control_window(100_000)  # of the connection, not of that stream
        await user.flush()
        small = await connect(user, "/small")
        while user.answers[small].body != b"small":
            await user.turn()
        user.h2.reset_stream(number, ErrorCodes.CANCEL)
        await user.flush()
        await it.until(lambda: it.open == 1)


REFUSALS = {
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!": b"403",
    b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n": b"426",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes": b"502",
    b"HTTP/1.1 204 No Content\r\n\r\n": b"502",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": b"502",
    b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n": b"502",
}


@pytest.mark.parametrize("said", REFUSALS, ids=range(len(REFUSALS)))
async def test_what_is_no_websocket_is_not_taken_for_one(certificate: Certificate, said: bytes) -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(said)
        await target.until(b"never")  # and nothing of what the user sent early

    async with meeting(certificate, target) as (it, user):
        number = await connect(user)
        await say(user, number, b"GET /smuggled HTTP/1.1\r\n\r\n")
        answer = await user.answer(number)
        assert answer.status == REFUSALS[said] and answer.ended
        await it.until(lambda: it.site.connections == 0)
        assert [entry.status for entry in it.site.log] == [int(REFUSALS[said])]


async def test_rules_and_limits_are_those_of_other_requests(certificate: Certificate) -> None:
    async def target(target: Target) -> None:
        await accept(target)
        await target.until(b"never")

    async with meeting(certificate, target) as (it, user), http2_user(it.port, certificate) as other:
        it.site.gate.terms = Terms(access=Access(bearers=(digest_of(b"token"),)), limits=Limits(connections=1))
        assert (await user.answer(await connect(user))).status == b"401"
        shown = (b"authorization", b"Bearer token")
        await opened(user, shown)
        assert (await other.answer(await connect(other, "/", shown))).status == b"503"
        assert it.connections == 1 and it.port.drops == {"no_credentials": 1, "too_many_users": 1}


async def test_other_protocols_and_what_is_none(certificate: Certificate) -> None:
    async with meeting(certificate, digest) as (it, user):
        number = await user.ask("/", (b":protocol", b"connect-udp"), method="CONNECT", end=False)
        assert (await user.answer(number)).status == b"501"
        number = await opened(user)
        user.h2.send_headers(number, [(b"a", b"b")], end_stream=True)  # only DATA may follow (RFC 9113 section 8.5)
        await user.flush()
        assert (await user.answer(number)).reset == ErrorCodes.PROTOCOL_ERROR
        await user.ask("/", PROTOCOL)
        assert await user.end() == ErrorCodes.PROTOCOL_ERROR
        assert it.port.drops == {"http2_protocol": 1, "bad_http": 1, "http2_error": 1}


async def test_a_user_who_does_not_take_the_end_is_given_up(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_TIMEOUT", 0.1)

    async def target(target: Target) -> None:
        await accept(target, bytes(80_000))  # more than the user's window
        await target.stream.aclose()
        raise anyio.EndOfStream

    async with meeting(certificate, target) as (it, user):
        user.taking = False
        number = await opened(user)
        await say(user, number, b"hello", end=True)
        assert (await user.answer(number)).reset == ErrorCodes.CANCEL
        await it.until(lambda: it.site.connections == 0)
