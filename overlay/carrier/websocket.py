"""WebSocket's upgrade (RFC 6455 §4) on either end, by wsproto; the frames after it are ours (overlay/wire/stream)."""

import os
from collections.abc import Callable
from typing import Final

import anyio
import h11
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import ProtocolError as WsprotoError

from overlay.carrier.carriers import DialOptions
from overlay.carrier.http import header, read_head
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.websocket import WebSocket

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))


def host_field(host: str, port: int, default_port: int) -> str:
    """The Host header (RFC 9110 §7.2): an IPv6 address in brackets, a port only where it is not the usual one."""
    name = f"[{host}]" if ":" in host else host
    return name if port == default_port else f"{name}:{port}"


async def upgrade(
    stream: OverTcp,
    endpoint: Endpoint,
    options: DialOptions,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> CodecStream:
    """The client's end. Raises `RemoteProtocolError`: `websocket_refused` with the answer's status, `not_websocket`,
    `http_head_too_large`."""
    handshake = H11Handshake(ConnectionType.CLIENT)
    default_port = 443 if isinstance(stream, CodecStream) else 80
    host = host_field(options.host or endpoint[0], endpoint[1], default_port)
    path = options.path if options.path.startswith("/") else f"/{options.path}"
    try:
        request = handshake.send(Request(host=host, target=path))
    except (UnicodeError, h11.LocalProtocolError) as error:
        raise RemoteProtocolError("not_websocket", f"{host}{path} cannot be asked for") from error
    await stream.send(request)
    try:
        head, behind = await read_head(stream)
    except anyio.EndOfStream as error:
        raise RemoteProtocolError("not_websocket", "it closed the connection instead of an answer") from error
    _check_answer(head)
    try:
        handshake.receive_data(head)
    except (WsprotoError, UnicodeError) as error:
        raise RemoteProtocolError("not_websocket", str(error)) from error
    if handshake.connection is None:
        raise RemoteProtocolError("not_websocket", "the answer is no upgrade")
    return within(stream, WebSocket(client=True, random_bytes=random_bytes), behind)


def _check_answer(head: bytes) -> None:
    # Read once more on its own: wsproto takes any answer to a request that it believes it has sent.
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x"), ("Upgrade", "websocket")]))
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise RemoteProtocolError("not_websocket", "the answer is no HTTP") from error
    if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
        return
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise RemoteProtocolError("not_websocket", "the answer is no HTTP")
    status = f"{event.status_code} {event.reason.decode('latin-1')[:80]}".strip()
    if event.status_code in _REDIRECTS:
        where = header(event, b"location").decode("latin-1")[:200]
        raise RemoteProtocolError("websocket_refused", f"it redirects to {where!r} ({status}), which is not followed")
    raise RemoteProtocolError("websocket_refused", f"it answers {status}")


def accept(head: bytes) -> bytes:
    """The server's end. `head` is a request that asks for an upgrade. → the answer.

    Any path will do: what a reverse proxy puts in front of it is its own business. Raises
    `RemoteProtocolError("bad_upgrade")`.
    """
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.receive_data(head)
        if not any(isinstance(event, Request) for event in handshake.events()):
            raise RemoteProtocolError("bad_upgrade", "no whole request")
        return handshake.send(AcceptConnection())
    except (WsprotoError, h11.ProtocolError, UnicodeError) as error:
        raise RemoteProtocolError("bad_upgrade", str(error)) from error


def within(stream: OverTcp, codec: WebSocket, behind: bytes) -> CodecStream:
    """The frames inside what the head came over; `behind` came behind it. Raises `RemoteProtocolError`."""
    if isinstance(stream, TcpStream):
        return CodecStream(stream, codec, codec.decode(behind))
    stream.unread(behind)
    return stream.around(codec)
