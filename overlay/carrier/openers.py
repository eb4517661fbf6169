"""How each carrier is opened by a node: connect, through a proxy if need be, then TLS, then WebSocket."""

import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import anyio

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.proxy import connect_through, parse_proxy
from overlay.carrier.quic_client import open_quic
from overlay.carrier.stream import TcpStream, connect
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.carrier.tls import ALPN_ORDINARY, ALPN_WEBSOCKET, client_context, client_handshake
from overlay.carrier.websocket import upgrade
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint


def _opener(*, tls: bool, websocket: bool) -> Opener:
    async def open_stream(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
        tcp = await _connect(endpoint, options)
        opened = False
        try:
            stream: OverTcp = tcp
            if tls:
                stream = await _secured(tcp, endpoint, options, ALPN_WEBSOCKET if websocket else ALPN_ORDINARY)
            if websocket:
                stream = await upgrade(stream, endpoint, options)
            opened = True
            return stream
        except anyio.EndOfStream as error:
            raise RemoteProtocolError("closed_early", "it closed the connection") from error
        except anyio.BrokenResourceError as error:
            if isinstance(error.__cause__, RemoteProtocolError):
                raise error.__cause__ from None
            raise OSError(str(error) or "connection lost") from error
        finally:
            if not opened:
                tcp.close()

    return open_stream


OPENERS: Final[Mapping[CarrierName, Opener]] = MappingProxyType(
    {
        "udp": open_quic,
        "tcp": _opener(tls=False, websocket=False),
        "tls": _opener(tls=True, websocket=False),
        "ws": _opener(tls=False, websocket=True),
        "wss": _opener(tls=True, websocket=True),
    }
)


async def _connect(endpoint: Endpoint, options: DialOptions) -> TcpStream:
    if options.proxy is None:
        return await connect(endpoint)
    # By its name where we have one: only the proxy may be able to resolve it, or may let names through alone.
    return await connect_through(parse_proxy(options.proxy), options.host or endpoint[0], endpoint[1])


async def _secured(tcp: TcpStream, endpoint: Endpoint, options: DialOptions, alpn: tuple[str, ...]) -> CodecStream:
    try:
        context = client_context(alpn, authorities=options.authorities, ca_file=options.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise OSError(f"the CA file {options.ca_file} cannot be used: {error.strerror or error}") from error
    return await client_handshake(tcp, context, options.host or endpoint[0], options.pin)
