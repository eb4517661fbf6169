"""What a person may write as the target of an exposure, and what it means. No sockets, no files."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

import msgspec

from overlay.errors import Exit, UserError

_HINT: Final = (
    "Write a port (8080), http://127.0.0.1:8080, https://…, tls://127.0.0.1:443, tcp://127.0.0.1:22, "
    "udp://127.0.0.1:53, unix:/run/app.sock, or a folder (./dist)."
)
_LONGEST_HOST: Final = 253  # RFC 1035 section 2.3.4, as text
_LONGEST_SOCKET_PATH: Final = 107  # bytes: sun_path less its final zero, unix(7)
_LONGEST_PATH: Final = 4095  # bytes: PATH_MAX less its final zero
_LONGEST_TOLD: Final = 256  # characters, as the server takes them
_LONGEST_CA: Final = 512 * 1024  # characters: what a system has, twice
_HOST_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_HTTP_PORTS: Final = {"http": "80", "https": "443"}
Protocol = Literal["tcp", "udp", "http", "tls"]
Transport = Literal["tcp", "udp"]
Kind = Literal["host", "unix", "folder"]
_PROTOCOLS: Final[dict[str, Protocol]] = {
    "tcp": "tcp",
    "udp": "udp",
    "http": "http",
    "https": "http",
    "tls": "tls",
}
_SOCKETS: Final[dict[str, Protocol | None]] = {"unix": None, "http+unix": "http", "tcp+unix": "tcp", "tls+unix": "tls"}


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person sets for the way to a target. It stays on this node."""

    listing: bool = False  # of a folder: what is in it is shown where there is no index.html
    insecure: bool = False  # by https: its certificate is not verified
    proxy: str = ""  # URL of the proxy that leads to it; may hold a password
    ca: str = ""  # by https: certificates (PEM) that it is verified by; "": those of the system

    def check(self, target: "Target") -> None:
        """Raises `UserError`, exit 2, for what does not fit."""
        if self.listing and target.kind != "folder":
            raise _unfit("--listing is for folders", target)
        if self.proxy and (target.protocol == "udp" or target.kind != "host"):
            raise _unfit("--target-proxy is for targets by tcp, http and https", target)
        if (self.insecure or self.ca) and not target.secure:
            raise _unfit("--insecure-target and --target-ca are for targets by https://", target)
        if self.insecure and self.ca:
            raise UserError(
                "bad-target", "With --insecure-target there is no use for --target-ca.", "Leave one out.", Exit.USAGE
            )
        if len(self.ca) > _LONGEST_CA:
            raise UserError(
                "bad-target", "The file that --target-ca names is too large.", "Name one certificate.", Exit.USAGE
            )


NO_OPTIONS: Final = TargetOptions()


@dataclass(frozen=True, slots=True)
class Target:
    """Where an exposure leads: a host (a name is looked up for each connection) and a port of this node's world, a unix
    socket, or a folder that this node serves itself. `protocol`: what users speak to it."""

    protocol: Protocol
    host: str = ""
    port: int = 0
    kind: Kind = "host"
    path: str = ""  # of a socket or a folder: absolute
    secure: bool = False  # https: TLS from this node to the target

    @property
    def text(self) -> str:
        """The canonical form: `tcp://127.0.0.1:8080`, `unix:/run/app.sock`, `/srv/www`."""
        if self.kind == "folder":
            return self.path
        if self.kind == "unix":
            return f"unix:{self.path}" if self.protocol == "http" else f"{self.protocol}+unix:{self.path}"
        return f"{'https' if self.secure else self.protocol}://{self.address}:{self.port}"

    @property
    def transport(self) -> Transport:
        return "udp" if self.protocol == "udp" else "tcp"

    @property
    def address(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def told(self) -> str:
        """What the server is told for show: of a very long one, the end."""
        return self.text if len(self.text) <= _LONGEST_TOLD else f"…{self.text[1 - _LONGEST_TOLD :]}"

    @classmethod
    def parse(cls, text: str, default: Protocol = "http") -> "Target":
        """`http://host:port`, `https://…`, `tls://…`, `tcp://…`, `udp://…`, `host:port`, `port` (of this machine),
        `unix:/path`, `/path` of a folder; without a scheme that tells it, `default` is spoken. Raises `UserError`,
        exit 2."""
        text = text.strip()
        scheme, colon, path = text.partition(":")
        if text.startswith("/"):
            return cls("http", kind="folder", path=_parse_path(text, text, _LONGEST_PATH))
        if colon and scheme.lower() in _SOCKETS:
            protocol = _SOCKETS[scheme.lower()] or default
            if path.startswith("//"):
                path = path[2:]
            return cls(protocol, kind="unix", path=_parse_path(text, path, _LONGEST_SOCKET_PATH))
        return cls._parse_host_and_port(text, default)

    @classmethod
    def _parse_host_and_port(cls, text: str, default: Protocol) -> "Target":
        scheme, separator, rest = text.rpartition("://")
        scheme = scheme.lower() if separator else default
        protocol = _PROTOCOLS.get(scheme)
        if protocol is None:
            raise _invalid(text, f"'{scheme}' is no kind of target that this version serves")
        if protocol == "http" and separator:
            rest = rest.removesuffix("/")
            if rest and not rest.rpartition("]")[2].partition(":")[1]:
                rest += f":{_HTTP_PORTS[scheme]}"
        host, separator, port_text = rest.rpartition(":")
        if not separator:
            host = "127.0.0.1"
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:6]) < 65536):
            raise _invalid(text, "it must end in a port, a number from 1 to 65535")
        return cls(protocol, _parse_host(text, host), int(port_text), secure=scheme == "https")


def _parse_path(text: str, path: str, longest: int) -> str:
    if not path.startswith("/"):
        raise _invalid(text, "the path must be absolute: begin it with a slash")
    if not path.isprintable():
        raise _invalid(text, "the path holds characters that cannot be shown")
    if len(path.encode()) > longest:
        raise _invalid(text, f"the path is longer than {longest} bytes")
    return path.rstrip("/") or "/"


def _parse_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ip_address(host[1:-1]))
        except ValueError as error:
            raise _invalid(text, f"'{host[1:-1]}' is not an IPv6 address") from error
    if ":" in host:
        raise _invalid(text, "an IPv6 address stands in brackets, as in tcp://[::1]:8080")
    if not host:
        raise _invalid(text, "the host is missing")
    if len(host) > _LONGEST_HOST or not _HOST_CHARACTERS.issuperset(host):
        raise _invalid(text, f"'{host[:64]}' is neither an address nor a host name")
    return host


def _unfit(why: str, target: Target) -> UserError:
    return UserError("bad-target", f"{why}, and {target.text[:200]} is none.", "Leave it out.", Exit.USAGE)


def _invalid(text: str, why: str) -> UserError:
    return UserError("bad-target", f"'{text[:200]}' is not a target: {why}.", _HINT, Exit.USAGE)
