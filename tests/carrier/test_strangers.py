"""Who comes to the one port and is no node: web clients, slow ones, and those who upgrade and then break the rules."""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import anyio
import pytest

from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.port import CHALLENGES, spoken
from overlay.carrier.tls import ALPN_ORDINARY, client_context
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import BUSY, NoiseChannel
from overlay.wire.control.messages import Ping, Pong
from overlay.wire.ingress.client_hello import ClientHello

from .ends import Running, answer, answer_pings, greeted, in_thread, initiation, read_all, serving
from .streams import PLAIN_OPTIONS, Certificate, connected

pytestmark = pytest.mark.anyio

QUICK = replace(DEFAULT_LIMITS, handshake=0.5)
UPGRADE = (
    b"GET /any/path HTTP/1.1\r\nHost: server.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\0\0\0\0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    yield Certificate(tmp_path_factory.mktemp("tls"))


def frame(first: int, payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes([first, 0x80 | len(payload)]) + MASK + payload


async def curl(*arguments: str) -> tuple[str, str]:
    """→ the head and the body of the answer."""
    with anyio.fail_after(10):
        done = await anyio.run_process(
            ["curl", "--silent", "--show-error", "--noproxy", "*", "--dump-header", "-", *arguments], check=False
        )
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    return head, body


async def upgraded(server: Running) -> socket.socket:
    """A WebSocket of somebody who then speaks what he likes."""

    def read(stream: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            head += stream.recv(1)
        return head

    stranger = server.raw()
    stranger.sendall(UPGRADE)
    head = await in_thread(read, stranger)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 §1.3
    return stranger


# HTTP ----------------------------------------------------------------------------------------------------------------


async def test_a_web_client_gets_an_ordinary_404(certificate: Certificate) -> None:
    async with serving(answer_pings, tls=certificate.context) as server:
        plain = f"http://127.0.0.1:{server.port}"
        secure = f"https://127.0.0.1:{server.port}"
        for number, arguments in enumerate(
            [
                (f"{plain}/",),
                (f"{plain}/admin?x=y", "-X", "DELETE"),
                (f"{plain}/", "--data", "x" * 20_000),
                (f"{plain}/", "--http1.0"),
                (f"{secure}/", "--cacert", certificate.ca_file),
            ]
        ):
            head, body = await curl(*arguments)
            lines = head.split("\r\n")
            assert lines[0] == "HTTP/1.1 404 Not Found"
            names = {line.partition(":")[0] for line in lines[1:]}
            assert names == {"Date", "Content-Type", "Content-Length", "Connection"}
            assert f"Content-Length: {len(body)}" in lines
            assert "Connection: close" in lines
            assert "overlay" not in (head + body).lower()
            await server.dropped("http_stranger", number + 1)
        head, body = await curl("--head", f"{plain}/")
        assert head.startswith("HTTP/1.1 404")
        assert "Not Found" not in body


async def test_a_challenge_is_answered(certificate: Certificate) -> None:
    known = {CHALLENGES + "token": b"token.thumbprint"}
    async with serving(answer_pings, tls=certificate.context, http_answer=known.get) as server:
        head, body = await curl(f"http://127.0.0.1:{server.port}{CHALLENGES}token")
        assert head.startswith("HTTP/1.1 200")
        assert body == "token.thumbprint"
        assert not server.drops
        head, _ = await curl(f"http://127.0.0.1:{server.port}{CHALLENGES}other")
        assert head.startswith("HTTP/1.1 404")
        await server.dropped("http_stranger")


@pytest.mark.parametrize(
    ("request_head", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400", "bad_http"),  # no Host
        (b"GET /\r\n\r\n", b"400", "bad_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: no\r\n\r\n", b"400", "bad_http"),
        (UPGRADE.replace(b"13", b"8"), b"400", "bad_upgrade"),
        (UPGRADE.replace(b"Connection: Upgrade\r\n", b""), b"404", "http_stranger"),
        (UPGRADE.replace(b"GET", b"POST"), b"400", "bad_upgrade"),
        (UPGRADE.replace(b"server.test", b"xn--\xff"), b"400", "bad_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000, b"431", "http_head_too_large"),
    ],
)
async def test_wrong_requests(request_head: bytes, status: bytes, reason: str) -> None:
    async with serving(answer_pings) as server:
        with server.raw() as stranger:
            stranger.sendall(request_head)
            stranger.shutdown(socket.SHUT_WR)
            said = await in_thread(read_all, stranger)
        assert said[9:12] == status
        await server.dropped(reason)


async def test_forwarded_addresses_are_not_believed() -> None:
    async with serving(answer_pings) as server:
        with server.raw() as stranger:
            stranger.sendall(UPGRADE.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"))
            channel, first = initiation()
            stranger.sendall(frame(0x82, first))
            assert await in_thread(lambda stream: stream.recv(12), stranger) == b"HTTP/1.1 101"
        assert isinstance(channel, NoiseChannel)


# slow ones -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"\x16",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a ClientHello cut short
        b"GE",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"\x00",
        UPGRADE,
    ],
)
async def test_who_does_not_go_on_is_closed_in_time(start: bytes, certificate: Certificate) -> None:
    async with serving(answer_pings, QUICK, tls=certificate.context) as server:
        with server.raw() as stranger:
            stranger.sendall(start)
            said = await in_thread(read_all, stranger)
            assert said == b"" or start == UPGRADE
        await server.dropped("handshake_timeout")


async def test_slow_headers_are_limited_in_time_and_number_and_others_go_on(certificate: Certificate) -> None:
    limits = replace(QUICK, silent_per_address=4)
    async with serving(answer_pings, limits, tls=certificate.context) as server:
        friend = await greeted(await connected("wss", ("127.0.0.1", server.port), PLAIN_OPTIONS))
        slow = [server.raw() for _ in range(4)]
        for stranger in slow:
            stranger.sendall(b"GET / HTTP/1.1\r\n")
        with server.raw() as late:
            assert await in_thread(read_all, late) in (b"", BUSY)
        await server.dropped("too_many_silent_from_address")
        assert await answer(friend, Ping(seq=1)) == Pong(seq=1)
        await server.dropped("handshake_timeout", 4)
        for stranger in slow:
            stranger.close()
        await friend.aclose()


# WebSocket -----------------------------------------------------------------------------------------------------------


async def test_pings_and_fragments_are_understood() -> None:
    channel, first = initiation()
    async with serving(answer_pings) as server:
        with await upgraded(server) as stranger:
            pieces = frame(0x89, b"are you there")
            pieces += frame(0x02, first[:10]) + frame(0x89, b"and now") + frame(0x00, first[10:50])
            stranger.sendall(pieces + frame(0x80, first[50:]))

            def read(stream: socket.socket) -> bytes:
                data = b""
                while not data.endswith(b"\x8a\x07and now") and b"\x82\x32" not in data:
                    data += stream.recv(1000)
                while b"\x82\x32" not in data or len(data) < data.index(b"\x82\x32") + 52:
                    data += stream.recv(1000)
                return data

            data = await in_thread(read, stranger)
            assert data.startswith(b"\x8a")  # a pong: of the last ping that was read in one piece
            start = data.index(b"\x82\x32") + 2
            channel.receive_data(data[start : start + 50])
            assert channel.established


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x82\x05hello", "websocket_unmasked"),
        (frame(0x81, b"text"), "websocket_opcode"),
        (frame(0xF2, b"x"), "websocket_reserved_bits"),
        (frame(0x80, b"x"), "websocket_fragment"),
        (b"\x89\xfe\x01\x00", "websocket_control_frame"),
        (b"\x82\xff" + b"\xff" * 8 + MASK, "websocket_length"),
        (frame(0x82, b"GET / HTTP/1.1\r\n"), "bad_length"),
        (frame(0x88, b"\x03\xe8"), "closed_early"),
    ],
)
async def test_wrong_frames_are_closed_and_counted(sent: bytes, reason: str) -> None:
    async with serving(answer_pings) as server:
        with await upgraded(server) as stranger:
            stranger.sendall(sent)
            assert await in_thread(read_all, stranger) == b""
        await server.dropped(reason)
        assert sum(server.drops.values()) == 1


async def test_a_wrong_frame_later_ends_that_connection_alone() -> None:
    async with serving(answer_pings) as server:
        friend = await greeted(await connected("ws", ("127.0.0.1", server.port), PLAIN_OPTIONS))
        victim = await greeted(await connected("ws", ("127.0.0.1", server.port), PLAIN_OPTIONS))
        raw = victim._stream.extra(anyio.abc.SocketAttribute.raw_socket)  # type: ignore[attr-defined]
        raw.send(b"\x82\x05hello")
        await server.dropped("websocket_unmasked")
        assert await answer(friend, Ping(seq=1)) == Pong(seq=1)
        await friend.aclose()
        await victim.aclose()


# first bytes ---------------------------------------------------------------------------------------------------------


def test_first_bytes() -> None:
    for start, name in (
        (b"\x00\x60rest", "noise"),
        (b"\x16\x03\x01", "tls"),
        (b"GET /", "http"),
        (b"OPTIONS *", "http"),
        (b"PROPFIND /", "http"),  # as WebDAV's clients begin
        (b"VERSION-CONTROL /", "http"),
    ):
        assert spoken(start) == name
    for start in (b"", b"\x00", b"\x16", b"P", b"PO", b"PATCH"):
        assert spoken(start) is None
    for start in (b"\x00\x61", b"\x16\x02", b"get ", b"PUSH", b"\xff", b"GETX"):
        with pytest.raises(RemoteProtocolError, match="unknown_protocol"):
            spoken(start)


async def test_a_certificate_that_cannot_be_read_ends_only_that_connection() -> None:
    def unreadable(_hello: ClientHello, _protocols: tuple[str, ...]) -> ssl.SSLContext:
        raise PermissionError("injected")

    async with serving(answer_pings, tls=unreadable) as server:
        with server.raw() as stranger:
            with pytest.raises((ssl.SSLError, OSError)):
                await anyio.to_thread.run_sync(client_context(ALPN_ORDINARY).wrap_socket, stranger)
        await server.dropped("greeting_failed")
        friend = await greeted(await server.dial())
        assert await answer(friend, Ping(seq=1)) == Pong(seq=1)
        await friend.aclose()
