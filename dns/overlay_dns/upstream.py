"""One name server: a question there, the reply back, by UDP, TCP or TLS. RFC 7766, RFC 7858.

Sockets are connected, so that the kernel drops what comes from anywhere else and tells of an unreachable port. Port and
identifier are random (RFC 5452), and a reply counts only with our identifier and question.
"""

import secrets
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, NamedTuple

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from overlay_dns.message import is_reply_to, is_truncated

UDP_TIMEOUT: Final = 2.0
"""Seconds for one name server over UDP; glibc's own patience is five, so that two can be tried within it."""
STREAM_TIMEOUT: Final = 4.0
TLS_PORT: Final = 853
IDLE_STREAMS: Final = 4
"""TLS connections kept open for the next questions (RFC 7858 section 3.4); closed with the forwarder."""
LARGEST_REPLY: Final = 4096
"""Bytes read of a datagram; we offer 1,232."""

UNREACHABLE = (OSError, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError)


class Upstream(NamedTuple):
    """`domains`: what it answers for (routing domains); without any: for everything that no other has.

    `link`: the interface that it is asked through. `tls`: the name in its certificate, which means DNS over TLS.
    """

    host: str
    port: int = 53
    domains: tuple[str, ...] = ()
    link: str = ""
    tls: str = ""

    def __str__(self) -> str:
        host, usual = self.host, TLS_PORT if self.tls else 53
        if self.port != usual:
            host = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        name = f"#{self.tls}" if self.tls not in ("", self.host) else ""
        return ("tls://" if self.tls else "") + host + (f"%{self.link}" if self.link else "") + name


def parse_upstream(text: str) -> Upstream:
    """`192.0.2.1`, `192.0.2.1:5353`, `[2001:db8::1]:53`, `tls://192.0.2.1#dns.example`. Raises `ValueError`."""
    rest = text.removeprefix("tls://")
    tls = rest != text
    rest, _, name = rest.partition("#")
    host, port = rest, ""
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text} is no name server")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    host = str(ip_address(host))
    number = int(port) if port else TLS_PORT if tls else 53
    if not 0 < number < 65536:
        raise ValueError(f"{text} has no valid port")
    return Upstream(host, number, tls=(name or host) if tls else "")


class Transport:
    """Asks upstreams. Keeps TLS connections for the next question; `aclose` ends them."""

    def __init__(self, tls_context: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> None:
        self._make_context = tls_context
        self._context: ssl.SSLContext | None = None
        self._idle: OrderedDict[Upstream, list[TLSStream]] = OrderedDict()

    async def ask(self, query: bytes, upstream: Upstream) -> bytes | None:
        """The reply to `query` (under any identifier), or None: no valid one in time. Raises one of `UNREACHABLE`."""
        ours = secrets.token_bytes(2) + query[2:]
        if upstream.tls:
            return await self._ask_tls(ours, upstream)
        reply = await _ask_udp(ours, upstream)
        if reply is not None and is_truncated(reply):
            return await _ask_tcp(ours, upstream) or reply
        return reply

    async def aclose(self) -> None:
        idle, self._idle = self._idle, OrderedDict()
        for streams in idle.values():
            for stream in streams:
                await anyio.aclose_forcefully(stream)

    async def _ask_tls(self, query: bytes, upstream: Upstream) -> bytes | None:
        streams = self._idle.setdefault(upstream, [])
        while streams:
            stream = streams.pop()
            try:
                return await self._through(stream, query, upstream)
            except UNREACHABLE:
                continue  # the server has closed it meanwhile: the next, or a new one
        with anyio.move_on_after(STREAM_TIMEOUT):
            return await self._through(await self._open_tls(upstream), query, upstream)
        return None

    async def _open_tls(self, upstream: Upstream) -> TLSStream:
        if self._context is None:
            self._context = self._make_context()
        stream = await anyio.connect_tcp(upstream.host, upstream.port)
        try:
            return await TLSStream.wrap(
                stream, hostname=upstream.tls, ssl_context=self._context, standard_compatible=False
            )
        except BaseException as error:
            await anyio.aclose_forcefully(stream)
            if isinstance(error, ssl.SSLError):
                raise OSError(str(error)) from error
            raise

    async def _through(self, stream: TLSStream, query: bytes, upstream: Upstream) -> bytes | None:
        reply = None
        try:
            with anyio.move_on_after(STREAM_TIMEOUT):
                reply = await _exchange(stream, query)
        except ssl.SSLError as error:
            raise OSError(str(error)) from error
        finally:
            if reply is not None and len(self._idle.get(upstream, ())) < IDLE_STREAMS:
                self._idle.setdefault(upstream, []).append(stream)
            else:
                with anyio.CancelScope(shield=True):
                    await anyio.aclose_forcefully(stream)
        return reply


async def _ask_udp(query: bytes, upstream: Upstream) -> bytes | None:
    family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as udp:
        if upstream.link:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, upstream.link.encode())
        udp.connect((upstream.host, upstream.port))
        udp.send(query)
        with anyio.move_on_after(UDP_TIMEOUT):
            while True:
                await anyio.wait_readable(udp)
                reply = udp.recv(LARGEST_REPLY)
                if is_reply_to(reply, query):
                    return reply
    return None


async def _ask_tcp(query: bytes, upstream: Upstream) -> bytes | None:
    with anyio.move_on_after(STREAM_TIMEOUT):
        async with await anyio.connect_tcp(upstream.host, upstream.port) as stream:
            return await _exchange(stream, query)
    return None


async def _exchange(stream: ByteStream, query: bytes) -> bytes | None:
    await stream.send(len(query).to_bytes(2) + query)
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        data += await stream.receive()
    reply = data[2 : 2 + int.from_bytes(data[:2])]
    return reply if is_reply_to(reply, query) else None
