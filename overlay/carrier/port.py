"""The one TCP port: what a stranger speaks is told by his first bytes, which are looked at and not taken.

    00 60           a Noise message of 96 bytes, the first one: tcp, or tls within TLS
    00 10           a one-time token of 16 bytes: a connection that the server has asked a node for, on any carrier
    16 03           a TLS record with a ClientHello: of a user of a name that is exposed by TLS, not looked into; else
                    once more within, by the server's certificate
    PRI             HTTP/2, within TLS alone: a user of what is exposed
    GET, POST, …    HTTP: a user of what is exposed under that name, WebSocket's upgrade, or an answer such as any web
                    server gives
    00 01           a Binding request of STUN
    anything else   closed without a byte

All of it runs under the time that `Limits` gives to strangers. Who wants what costs a handshake has to `enter` before;
users of what is exposed are counted where they are served. No header that a proxy may have set or forwarded
(X-Forwarded-For) is believed: anybody can write one.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import anyio

from overlay.carrier import websocket
from overlay.carrier.carriers import CarrierName
from overlay.carrier.http import answer, read_head, say
from overlay.carrier.quic import QuicStream
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.carrier.stun import REQUEST as STUN
from overlay.carrier.tls import server_handshake
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import INITIATION_SIZE
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.client_hello import NO_HELLO, RECORD_HEADER, ClientHello, parse_client_hello
from overlay.wire.ingress.http1 import HttpError, RequestHead, parse_request
from overlay.wire.stream.websocket import WebSocket

Spoken = Literal["noise", "token", "tls", "http", "http2", "stun"]
UserStream = OverTcp
Stream = UserStream | QuicStream
"""With those of nodes, whom no user can be."""
TlsPlace = Literal["here", "beyond"]
ShowCertificate = Callable[[ClientHello, tuple[str, ...]], ssl.SSLContext]
"""For the answer to a ClientHello, and the protocols that are spoken here (ALPN, RFC 7301), best first."""
HttpAnswer = Callable[[str], bytes | None]
"""Path below `CHALLENGES` → body; None: not known. Called for every stranger who asks: it must be quick."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A user who speaks HTTP to a name that is exposed; `begun`: what was read of the stream."""

    stream: UserStream
    begun: bytes
    secure: bool
    http2: bool = False


@dataclass(frozen=True, slots=True)
class TlsGuest:
    """A user who came by TLS to a name that is exposed by it: all of what he has said and says, or, where TLS ends
    here, what was in it."""

    stream: UserStream
    name: str  # as he asked for it, in lower case
    protocols: tuple[bytes, ...] = ()  # that he offers (ALPN)


@dataclass(frozen=True, slots=True)
class Caller:
    """A node's connection for a user, named by its token."""

    stream: Stream
    token: bytes


class Guests(Protocol):
    """Who serves those that come to the port and are no nodes that want to talk to the server."""

    def proxies(self, request: RequestHead) -> bool:
        """Whether a request by CONNECT comes from somebody who has to do with us."""

    def exposes(self, host: str) -> bool:
        """Whether users of this host, in lower case, are served by HTTP here."""

    def tls_end(self, host: str) -> TlsPlace | None:
        """Where the TLS of users ends who ask for this host, whatever they say in it; None: they are not taken so."""

    async def serve_user(self, guest: Guest | TlsGuest, source: Endpoint) -> None:
        """Until the stream ends. Closing stays the caller's."""

    def take_caller(self, caller: Caller) -> None:
        """Closing the stream is theirs from now on."""


@dataclass(frozen=True, slots=True)
class Services:
    """What there is behind the port beside the control channel."""

    tls: ShowCertificate | None = None  # asked for each connection anew
    http_answer: HttpAnswer | None = None
    guests: Guests | None = None

    def exposes(self, host: str) -> bool:
        return self.guests is not None and bool(host) and self.guests.exposes(host)

    def tls_end(self, host: str) -> TlsPlace | None:
        return self.guests.tls_end(host) if self.guests is not None and host else None


ALPN_HTTP: Final = ("http/1.1",)
ALPN_EXPOSED: Final = ("h2", "http/1.1")
CHALLENGES: Final = "/.well-known/acme-challenge/"  # RFC 8555 §8.3
NOISE: Final = INITIATION_SIZE.to_bytes(2, "big")
TOKEN_SIZE: Final = 16
TOKEN: Final = TOKEN_SIZE.to_bytes(2, "big")
TLS: Final = b"\x16\x03"  # handshake, version 3.x (RFC 8446 §5.1)
HTTP2: Final = b"PRI "  # RFC 9113 §3.4
METHODS: Final = tuple(
    f"{name} ".encode()
    for name in (
        "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT "
        # The rest of the registry of methods (RFC 9110 §16.1.1), as of WebDAV and calendars, but for PRI.
        "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT COPY LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL "
        "MKREDIRECTREF MKWORKSPACE MOVE ORDERPATCH PROPFIND PROPPATCH QUERY REBIND REPORT SEARCH UNBIND UNCHECKOUT "
        "UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL "
        "PURGE SUBSCRIBE UNSUBSCRIBE NOTIFY M-SEARCH"  # in use, and not registered
    ).split()
)
_STARTS: Final[dict[bytes, Spoken]] = {
    NOISE: "noise",
    TOKEN: "token",
    TLS: "tls",
    STUN: "stun",
    HTTP2: "http2",
    **dict.fromkeys(METHODS, "http"),
}
LONGEST_START: Final = max(map(len, _STARTS))


def spoken(start: bytes) -> Spoken | None:
    """What begins with `start`; None: more bytes are needed. Raises `RemoteProtocolError("unknown_protocol")`."""
    for known, name in _STARTS.items():
        if start.startswith(known):
            return name
    if any(known.startswith(start) for known in _STARTS):
        return None
    raise RemoteProtocolError("unknown_protocol")


async def greet(
    tcp: TcpStream, services: Services, enter: Callable[[], None], random_bytes: Callable[[int], bytes]
) -> tuple[UserStream, CarrierName] | Guest | TlsGuest | Caller | TcpStream | None:
    """→ the stream whose first bytes are those of Noise, and what it runs over; a guest or a caller; a stream alone:
    STUN is spoken there. None: an HTTP request was served, and there is nothing more to do.

    `enter` is called before anything that costs a handshake. Raises what that raises, and `RemoteProtocolError`:
    `unknown_protocol`, `tls_failed`, `http_stranger`, `bad_http`, `bad_upgrade`, `http_head_too_large`, or that of the
    frames; and what a stream raises. The caller sets the deadline and closes.
    """
    start = b""
    while (speaks := spoken(start)) is None:
        more = await tcp.peek(len(start) + 1, LONGEST_START)
        if len(more) <= len(start):
            raise anyio.EndOfStream
        start = more
    if speaks == "stun":
        enter()
        return tcp
    if speaks != "tls":
        return await _within(tcp, b"", speaks, "tcp", "ws", services, enter, random_bytes)
    if services.tls is None:
        raise RemoteProtocolError("unknown_protocol", "TLS, and there is no certificate")
    hello = await read_client_hello(tcp)
    tls_end = services.tls_end(hello.name)
    if tls_end == "beyond":
        return TlsGuest(tcp, hello.name, hello.protocols)
    if tls_end == "here":
        return TlsGuest(await server_handshake(tcp, services.tls(hello, _whatever(hello))), hello.name)
    exposed = services.exposes(hello.name)
    if not exposed:
        enter()
    secured = await server_handshake(tcp, services.tls(hello, ALPN_EXPOSED if exposed else ALPN_HTTP))
    start = b""
    while (speaks := spoken(start)) is None:
        start += await secured.receive()
    if speaks in ("stun", "tls"):
        raise RemoteProtocolError("unknown_protocol", f"{speaks} within TLS")
    if speaks == "http2" and exposed:
        return Guest(secured, start, secure=True, http2=True)
    return await _within(
        secured, start, speaks, "tls", "wss", services, enter if exposed else (lambda: None), random_bytes
    )


async def _within(
    stream: UserStream,
    start: bytes,
    speaks: Spoken,
    carrier: CarrierName,
    upgraded: CarrierName,
    services: Services,
    enter: Callable[[], None],
    random_bytes: Callable[[int], bytes],
) -> tuple[UserStream, CarrierName] | Guest | Caller | None:
    if speaks == "noise":
        enter()
        if isinstance(stream, CodecStream):
            stream.unread(start)
        return stream, carrier
    if speaks == "token":
        return await take_caller(stream, start)
    if speaks == "http2":
        raise RemoteProtocolError("unknown_protocol", "HTTP/2 where nothing is exposed by it")
    opened = await _serve_http(stream, start, services, enter, random_bytes)
    if opened is None or isinstance(opened, Guest):
        return opened
    start = await opened.receive()
    if start.startswith(TOKEN):
        return await take_caller(opened, start)
    opened.unread(start)
    return opened, upgraded


async def take_caller(stream: Stream, start: bytes) -> Caller:
    """`start`: what was read of it, which begins with `TOKEN`. Raises what the stream raises."""
    size = len(TOKEN) + TOKEN_SIZE
    while len(start) < size:
        start += await stream.receive(size - len(start))
    if not isinstance(stream, TcpStream):
        stream.unread(start[size:])
    elif len(start) > size:
        raise RemoteProtocolError("unknown_protocol", "more than a token")
    return Caller(stream, start[len(TOKEN) : size])


def _whatever(hello: ClientHello) -> tuple[str, ...]:
    """The protocol that is agreed where the target knows which it speaks, and we do not: HTTP/1.1, if that is among
    them, since HTTP/2 is offered by whoever speaks both."""
    if not hello.protocols or b"http/1.1" in hello.protocols:
        return ALPN_HTTP
    first = hello.protocols[0]
    return (first.decode("ascii"),) if first.isascii() else ()


async def read_client_hello(stream: UserStream) -> ClientHello:
    """It stays to be read by whoever goes on; `NO_HELLO`: what comes is none. Raises as the stream does."""
    needed, data = RECORD_HEADER, b""
    while True:
        if isinstance(stream, TcpStream):
            seen = await stream.peek(needed)
            if len(seen) <= len(data):
                raise anyio.EndOfStream
            data = seen
        else:
            while len(data) < needed:
                data += await stream.receive()
        try:
            found = parse_client_hello(data)
        except RemoteProtocolError:
            found = NO_HELLO  # the handshake says what is wrong, to the client too
        if isinstance(found, ClientHello):
            if isinstance(stream, CodecStream):
                stream.unread(data)
            return found
        needed = found


async def _serve_http(
    stream: UserStream,
    begun: bytes,
    services: Services,
    enter: Callable[[], None],
    random_bytes: Callable[[int], bytes],
) -> CodecStream | Guest | None:
    try:
        head, behind = await read_head(stream, begun)
        request = parse_request(head)
    except HttpError as error:
        await say(stream, answer(error.status))
        raise
    challenge = _challenge(request, services.http_answer)
    if request.method == b"CONNECT" and services.guests is not None and services.guests.proxies(request):
        return Guest(stream, head + behind, secure=isinstance(stream, CodecStream))
    if services.exposes(request.host) and challenge is None:
        return Guest(stream, head + behind, secure=isinstance(stream, CodecStream))
    if request.upgrade == b"websocket":
        enter()
        try:
            accepted = websocket.accept(head)
        except RemoteProtocolError:
            await say(stream, answer(400))
            raise
        await stream.send(accepted)
        return websocket.within(stream, WebSocket(client=False, random_bytes=random_bytes), behind)
    with_body = request.method != b"HEAD"
    if challenge is not None:
        await say(stream, answer(200, challenge, with_body=with_body))
        return None
    await say(stream, answer(404, with_body=with_body))
    raise RemoteProtocolError("http_stranger")


def _challenge(request: RequestHead, http_answer: HttpAnswer | None) -> bytes | None:
    path = request.target.decode("latin-1")
    if http_answer is None or request.method not in (b"GET", b"HEAD") or not path.startswith(CHALLENGES):
        return None
    return http_answer(path)
