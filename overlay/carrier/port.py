"""The one TCP port: what a stranger speaks is told by his first bytes, which are looked at and not taken.

    00 60           a Noise message of 96 bytes, the first one: tcp, or tls within TLS
    16 03           a TLS record with a ClientHello: once more within, by the server's certificate
    GET, POST, …    HTTP: WebSocket's upgrade, or an answer such as any web server gives
    00 01           a Binding request of STUN
    anything else   closed without a byte

All of it runs under the time and the counts that `Limits` gives to strangers. No header that a proxy may have set or
forwarded (X-Forwarded-For) is believed: anybody can write one.
"""

import ssl
from collections.abc import Callable
from typing import Final, Literal

import anyio
import h11

from overlay.carrier import websocket
from overlay.carrier.carriers import CarrierName
from overlay.carrier.http import answer, header, parse_request, read_head
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream
from overlay.carrier.stun import REQUEST as STUN
from overlay.carrier.tls import server_handshake
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import INITIATION_SIZE
from overlay.wire.stream.websocket import WebSocket

Spoken = Literal["noise", "tls", "http", "stun"]
HttpAnswer = Callable[[str], bytes | None]
"""Path below `CHALLENGES` → body; None: not known. Called for every stranger who asks: it must be quick."""

CHALLENGES: Final = "/.well-known/acme-challenge/"  # RFC 8555 §8.3
NOISE: Final = INITIATION_SIZE.to_bytes(2, "big")
TLS: Final = b"\x16\x03"  # handshake, version 3.x (RFC 8446 §5.1)
METHODS: Final = tuple(f"{name} ".encode() for name in "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT".split())
_STARTS: Final[dict[bytes, Spoken]] = {NOISE: "noise", TLS: "tls", STUN: "stun", **dict.fromkeys(METHODS, "http")}
_LINGER: Final = 1.0  # s for an answer to arrive before we close
_LINGER_BYTES: Final = 64 * 1024


def spoken(start: bytes) -> Spoken | None:
    """What begins with `start`; None: more bytes are needed. Raises `RemoteProtocolError("unknown_protocol")`."""
    for known, name in _STARTS.items():
        if start.startswith(known):
            return name
    if any(known.startswith(start) for known in _STARTS):
        return None
    raise RemoteProtocolError("unknown_protocol")


async def greet(
    tcp: TcpStream,
    tls: Callable[[], ssl.SSLContext] | None,
    http_answer: HttpAnswer | None,
    random_bytes: Callable[[int], bytes],
) -> tuple[TcpStream | CodecStream, CarrierName] | TcpStream | None:
    """→ the stream whose first bytes are those of Noise, and what it runs over; alone: STUN is spoken there. None: an
    HTTP request was served, and there is nothing more to do.

    Raises `RemoteProtocolError`: `unknown_protocol`, `tls_failed`, `http_stranger`, `bad_http`, `bad_upgrade`,
    `http_head_too_large`, or that of the frames; and what a stream raises. The caller sets the deadline and closes.
    """
    start = b""
    while (speaks := spoken(start)) is None:
        more = await tcp.peek(len(start) + 1)
        if len(more) <= len(start):
            raise anyio.EndOfStream
        start = more
    if speaks == "noise":
        return tcp, "tcp"
    if speaks == "stun":
        return tcp
    if speaks == "http":
        upgraded = await _serve_http(tcp, b"", http_answer, random_bytes)
        return None if upgraded is None else (upgraded, "ws")
    if tls is None:
        raise RemoteProtocolError("unknown_protocol", "TLS, and there is no certificate")
    secured = await server_handshake(tcp, tls())
    start = b""
    while (speaks := spoken(start)) is None:
        start += await secured.receive()
    if speaks == "noise":
        secured.unread(start)
        return secured, "tls"
    if speaks == "http":
        upgraded = await _serve_http(secured, start, http_answer, random_bytes)
        return None if upgraded is None else (upgraded, "wss")
    raise RemoteProtocolError("unknown_protocol", f"{speaks} within TLS")


async def _serve_http(
    stream: TcpStream | CodecStream, begun: bytes, http_answer: HttpAnswer | None, random_bytes: Callable[[int], bytes]
) -> CodecStream | None:
    head, behind = await read_head(stream, begun)
    request = parse_request(head)
    if request is None:
        await _say(stream, answer(400, "Bad Request", b"Bad Request\n"))
        raise RemoteProtocolError("bad_http")
    if header(request, b"upgrade").lower() == b"websocket":
        try:
            accepted = websocket.accept(head)
        except RemoteProtocolError:
            await _say(stream, answer(400, "Bad Request", b"Bad Request\n"))
            raise
        await stream.send(accepted)
        return websocket.within(stream, WebSocket(client=False, random_bytes=random_bytes), behind)
    body = _challenge(request, http_answer)
    with_body = request.method != b"HEAD"
    if body is not None:
        await _say(stream, answer(200, "OK", body, with_body=with_body))
        return None
    await _say(stream, answer(404, "Not Found", b"Not Found\n", with_body=with_body))
    raise RemoteProtocolError("http_stranger")


def _challenge(request: h11.Request, http_answer: HttpAnswer | None) -> bytes | None:
    path = request.target.decode("latin-1")
    if http_answer is None or request.method not in (b"GET", b"HEAD") or not path.startswith(CHALLENGES):
        return None
    return http_answer(path)


async def _say(stream: TcpStream | CodecStream, whole: bytes) -> None:
    await stream.send(whole)
    with anyio.move_on_after(_LINGER):
        try:
            await stream.send_eof()
            # Closing with unread bytes would send RST, which may overtake the answer.
            left = _LINGER_BYTES
            while left > 0:
                left -= len(await stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
