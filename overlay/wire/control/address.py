"""A server's address as a person writes it: a name or a numeric address, and a port. Nothing is looked up here.

Two ways to write one: `vpn.example.org:443` for every carrier at that host and port, and `wss://vpn.example.org/prefix`
for one carrier alone, behind a reverse proxy say.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from overlay.wire.endpoint import format_endpoint, parse_endpoint

Scheme = Literal["udp", "tcp", "tls", "ws", "wss"]
SCHEME_PORTS: Final[dict[str, int]] = {"udp": 443, "tcp": 443, "tls": 443, "ws": 80, "wss": 443}
"""Schemes, each with the port that is meant without one."""

_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_NAME: Final = 253  # RFC 1035 §2.3.4, in text
_MAX_PATH: Final = 512  # characters
# RFC 3986 §3.3 without `;` and the like that no prefix of a proxy needs; no query, no fragment.
_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where to look for the server, and by which carriers."""

    host: str  # a name in lower case, or a numeric address in canonical form
    port: int
    carrier: Scheme | None = None  # the only one; None: every carrier
    path: str = "/"  # of the WebSocket upgrade

    def __str__(self) -> str:
        where = format_endpoint((self.host, self.port))
        if self.carrier is None:
            return where
        return f"{self.carrier}://{where}{self.path if self.path != '/' else ''}"


def parse_address(text: str) -> tuple[str, int]:
    """`server.example.org:443`, `192.0.2.1:443` or `[2001:db8::1]:443` → host and port.

    A numeric host comes back in canonical form. Raises `ValueError` with a sentence for a person.
    """
    host, _, port_text = text.rpartition(":")
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_NAME or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        return parse_endpoint(text)  # not a name: numeric, or it knows best what to say
    if not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text[:6]) < 65536:
        raise ValueError(f"'{text}': the port must be a number from 1 to 65535")
    return name.lower(), int(port_text)


def parse_server_address(text: str) -> ServerAddress:
    """What `parse_address` takes, or a URL: `wss://vpn.example.org/prefix`, `ws://…`, `tls://…`, `tcp://…`, `udp://…`.

    The port may be left out of a URL; a path may stand in one of ws and wss. Raises `ValueError` with a sentence for
    a person.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        host, port = parse_address(text)
        return ServerAddress(host, port)
    carrier = _scheme(scheme.lower())
    if carrier is None:
        raise ValueError(f"'{text}': the carriers are {', '.join(SCHEME_PORTS)}, as in wss://vpn.example.org/prefix")
    authority, slash, path = rest.partition("/")
    path = slash + path or "/"
    if path != "/" and carrier not in ("ws", "wss"):
        raise ValueError(f"'{text}': only ws:// and wss:// take a path")
    if len(path) > _MAX_PATH or not _PATH.fullmatch(path):
        raise ValueError(f"'{text}': the path holds characters that a path cannot have")
    if not authority or "@" in authority:
        raise ValueError(f"'{text}': write it as {carrier}://host or {carrier}://host:port")
    has_port = ":" in authority.rpartition("]")[2]
    host, port = parse_address(authority if has_port else f"{authority}:{SCHEME_PORTS[carrier]}")
    return ServerAddress(host, port, carrier, path)


def _scheme(text: str) -> Scheme | None:
    match text:
        case "udp" | "tcp" | "tls" | "ws" | "wss":
            return text
    return None
