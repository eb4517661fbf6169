"""Through an HTTP proxy by CONNECT (RFC 9110 §9.3.6), with a password (Basic, RFC 7617) or without.

The password is in no log, error text or argument list: it comes by the configuration or the environment.
"""

import base64
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import anyio
import h11

from overlay.carrier.http import read_head
from overlay.carrier.stream import TcpStream, connect, errno_text
from overlay.carrier.websocket import host_field
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint

PATIENCE: Final = 8.0  # s for the proxy to reach the server and say so
_DEFAULT_PORTS: Final = {"http": 80, "socks5": 1080, "socks5h": 1080}
_WORDS: Final = {
    403: "refuses this destination",
    407: "asks for a user name and password",
    502: "cannot reach the server",
    503: "cannot reach the server",
    504: "gets no answer from the server",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    scheme: str = "http"

    def __str__(self) -> str:
        return host_field(self.host, self.port, 0)


def parse_proxy(url: str, schemes: tuple[str, ...] = ("http",)) -> Proxy:
    """`http://[user:password@]host[:port]`, or without `http://`; `schemes`: which are taken. Raises `UserError`
    (`proxy-invalid`), which does not repeat the text: a password may be in it."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise _wrong("The proxy's address is wrong.") from error
    if parts.scheme not in schemes:
        ways = " or ".join(f"{scheme}://" for scheme in schemes[:2])
        raise _wrong(f"A proxy is reached by {ways}, not by {parts.scheme[:20]}://.")
    if not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise _wrong("The proxy's address must be a host and a port, and no more.")
    if not url.isprintable() or " " in url:
        raise _wrong("The proxy's address holds white space.")
    return Proxy(host, port, unquote(parts.username or ""), unquote(parts.password or ""), parts.scheme)


def _wrong(sentence: str) -> UserError:
    return UserError(
        "proxy-invalid", sentence, "Write it as http://host:port or http://user:password@host:port.", Exit.USAGE
    )


def excepted(no_proxy: str, host: str, port: int) -> bool:
    """Whether NO_PROXY says that `host` is reached directly: a list of names (with all below them), `name:port`,
    addresses, networks in CIDR notation, or `*`."""
    return any(_excepts(entry, host, port) for entry in no_proxy.replace(",", " ").split())


def _excepts(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    host = host.strip("[]").rstrip(".").lower()
    name, colon, number = entry.lower().rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.startswith("[")):
        if int(number) != port:
            return False
        entry = name
    entry = entry.lower().strip("[]").removeprefix("*").lstrip(".").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        return host == entry or host.endswith(f".{entry}")
    try:
        return address in ip_network(entry, strict=False)
    except ValueError:
        return False


async def connect_through(proxy: Proxy, host: str, port: int) -> TcpStream:
    """A connection to the server `host`, as `open_tunnel`."""
    stream, behind = await open_tunnel(proxy, host, port)
    if behind:
        stream.close()
        # A server of ours never speaks first, so this is no tunnel to one.
        raise OSError(f"the proxy {proxy} sends more than its answer")
    return stream


async def open_tunnel(proxy: Proxy, host: str, port: int) -> tuple[TcpStream, bytes]:
    """A connection to `host` (a name, which the proxy resolves, or an address) as if it were direct, and what came of
    it behind the proxy's answer.

    Raises `OSError`, whose text is the end of a sentence.
    """
    stream = await _reach(proxy)
    connected = False
    try:
        with anyio.fail_after(PATIENCE):
            await stream.send(_request(proxy, host, port))
            head, behind = await read_head(stream)
        _check(proxy, head)
        connected = True
        return stream, behind
    except TimeoutError as error:
        raise OSError(f"the proxy {proxy} does not answer within {PATIENCE:g} s") from error
    except anyio.EndOfStream as error:
        raise OSError(f"the proxy {proxy} closed the connection") from error
    except anyio.BrokenResourceError as error:
        raise OSError(f"the connection to the proxy {proxy} broke: {error}") from error
    except RemoteProtocolError as error:
        raise OSError(f"what answers at {proxy} is no HTTP proxy") from error
    finally:
        if not connected:
            stream.close()


async def _reach(proxy: Proxy) -> TcpStream:
    try:
        endpoints = [canonical_endpoint(proxy.host, proxy.port)]
    except ValueError:
        endpoints = await _look_up(proxy)
    problem = f"the proxy {proxy} has no address"
    for endpoint in endpoints:
        try:
            return await connect(endpoint)
        except OSError as error:
            why = errno_text(error.errno) if error.errno else str(error)
            problem = f"the proxy {format_endpoint(endpoint)} cannot be reached: {why}"
    raise OSError(problem)


async def _look_up(proxy: Proxy) -> list[Endpoint]:
    try:
        answers = await anyio.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"the name of the proxy {proxy} is not found") from error
    return list(dict.fromkeys(canonical_endpoint(address[0], address[1]) for *_, address in answers))


def _request(proxy: Proxy, host: str, port: int) -> bytes:
    target = host_field(host, port, 0).encode("idna" if host.isascii() is False else "ascii")
    lines = [b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target]
    if proxy.user or proxy.password:
        secret = base64.b64encode(f"{proxy.user}:{proxy.password}".encode())
        lines.append(b"Proxy-Authorization: Basic " + secret)
    return b"\r\n".join([*lines, b"", b""])


def _check(proxy: Proxy, head: bytes) -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="CONNECT", target="x:1", headers=[("Host", "x:1")]))
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise RemoteProtocolError("not_http", str(error)) from error
    if not isinstance(event, h11.Response):
        raise RemoteProtocolError("not_http", "no answer to CONNECT")
    status = event.status_code
    if 200 <= status < 300:
        return
    words = _WORDS.get(status, "refuses the connection")
    if status == 407 and (proxy.user or proxy.password):
        words = "refuses the user name or password"
    raise OSError(f"the proxy {proxy} {words} ({status} {event.reason.decode('latin-1')[:80]})")
