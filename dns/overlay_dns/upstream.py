"""One name server: a question there, the reply back, by UDP, TCP or TLS. RFC 7766, RFC 7858.

Sockets are connected, so that the kernel drops what comes from anywhere else and tells of an unreachable port. Port and
identifier are random (RFC 5452), and a reply counts only with our identifier and question.
"""

import os
import re
import secrets
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, NamedTuple

import anyio
from anyio.abc import ByteStream, SocketStream
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

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LINK: Final = re.compile(r"[^\s/:%]{1,15}")  # IFNAMSIZ less its final zero; see dev_valid_name() of Linux

LINK_LOCAL: Final = frozenset(
    ("local", "254.169.in-addr.arpa", "8.e.f.ip6.arpa", "9.e.f.ip6.arpa", "a.e.f.ip6.arpa", "b.e.f.ip6.arpa")
)
"""Names that mean something on a link alone (RFC 6762 section 4). They are multicast's. Who asks DNS for them, because
it knows no multicast or its network has a server for them, gets what the system's name servers say, and no other's."""

UNREACHABLE = (OSError, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError)


class Upstream(NamedTuple):
    """`domains`: what it answers for (routing domains); without any: for everything that no other has.

    `link`: the interface that it is asked through. `tls`: the name in its certificate, which means DNS over TLS.
    `near`: knows names of this machine's links, too (`LINK_LOCAL`), if anybody does by DNS.
    """

    host: str
    port: int = 53
    domains: tuple[str, ...] = ()
    link: str = ""
    tls: str = ""
    near: bool = True

    def __str__(self) -> str:
        host, usual = self.host, TLS_PORT if self.tls else 53
        if self.link:
            host += f"%{self.link}"
        if self.port != usual:
            host = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        name = f"#{self.tls}" if self.tls not in ("", self.host) else ""
        domains = f"{','.join(self.domains)}=" if self.domains else ""
        return f"{domains}{'tls://' if self.tls else ''}{host}{name}"


def parse_upstream(text: str) -> Upstream:
    """`192.0.2.1`, `192.0.2.1%eth1`, `[2001:db8::1]:5353`, `tls://192.0.2.1#dns.example`, `corp.example=192.0.2.1`.

    Raises `ValueError`, a sentence without its full stop.
    """
    named, equals, server = text.rpartition("=")
    domains = tuple(_domain(domain) for domain in named.split(",")) if equals else ()
    rest = server.removeprefix("tls://")
    tls = rest != server
    rest, _, name = rest.partition("#")
    if name:
        if not tls:
            raise ValueError(f"'{text}' has a name after #, which only tls:// servers prove")
        name = _domain(name)
    host, port = rest, ""
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"'{text}' has no address in its brackets")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    host, percent, link = host.partition("%")
    if percent and not _LINK.fullmatch(link):
        raise ValueError(f"'{text}' names no network interface after %")
    try:
        host = str(ip_address(host))
    except ValueError as error:
        raise ValueError(f"'{text}' has no IP address where its name server stands") from error
    number = TLS_PORT if tls else 53
    if port:
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if not 0 < number < 65536:
        raise ValueError(f"'{text}' has no valid port")
    return Upstream(host, number, domains, link, (name or host) if tls else "")


def _domain(text: str) -> str:
    domain = text.lower().strip(".")
    if len(domain) > 253 or not all(_LABEL.fullmatch(label) for label in domain.split(".")):
        raise ValueError(f"'{text}' is no domain")
    return domain


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
            with suppress(*UNREACHABLE):
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
        stream = await _connect(upstream)
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
    with _socket(upstream, socket.SOCK_DGRAM) as udp:
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
        async with await _connect(upstream) as stream:
            return await _exchange(stream, query)
    return None


async def _connect(upstream: Upstream) -> SocketStream:
    tcp = _socket(upstream, socket.SOCK_STREAM)
    try:
        with suppress(BlockingIOError):
            tcp.connect((upstream.host, upstream.port))
        await anyio.wait_writable(tcp)
        failed = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        return await SocketStream.from_socket(tcp)
    except BaseException:
        tcp.close()
        raise


def _socket(upstream: Upstream, kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
    found = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if upstream.link:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, upstream.link.encode())
    except OSError:
        found.close()
        raise
    return found


async def _exchange(stream: ByteStream, query: bytes) -> bytes | None:
    await stream.send(len(query).to_bytes(2) + query)
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        data += await stream.receive()
    reply = data[2 : 2 + int.from_bytes(data[:2])]
    return reply if is_reply_to(reply, query) else None
