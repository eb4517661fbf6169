"""What a person may write as the target of an exposure, and what it means. No sockets."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from overlay.errors import Exit, UserError

_HINT = (
    "Write http://127.0.0.1:8080, tls://127.0.0.1:443, tcp://127.0.0.1:22, udp://127.0.0.1:53, localhost:8080 or 8080."
)
_LONGEST_HOST = 253  # RFC 1035 section 2.3.4, as text
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
Protocol = Literal["tcp", "udp", "http", "tls"]
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "http": "http", "tls": "tls"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where an exposure leads: a host (a name is looked up for each connection) and a port of this node's world."""

    protocol: Protocol
    host: str
    port: int

    @property
    def text(self) -> str:
        """The canonical form: `tcp://127.0.0.1:8080`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default: Protocol = "http") -> "Target":
        """`http://host:port`, `tls://…`, `tcp://…`, `udp://…`, `host:port`, `port` (of this machine); without a scheme
        `default`. Raises `UserError`, exit 2."""
        scheme, separator, rest = text.strip().rpartition("://")
        protocol = _PROTOCOLS.get(scheme.lower() if separator else default)
        if protocol is None:
            raise _invalid(text, f"'{scheme}' is no kind of target that this version serves")
        if protocol == "http" and separator:
            rest = rest.removesuffix("/")
            if rest and not rest.rpartition("]")[2].partition(":")[1]:
                rest += ":80"
        host, separator, port_text = rest.rpartition(":")
        if not separator:
            host = "127.0.0.1"
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:6]) < 65536):
            raise _invalid(text, "it must end in a port, a number from 1 to 65535")
        return cls(protocol, _parse_host(text, host), int(port_text))


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


def _invalid(text: str, why: str) -> UserError:
    return UserError("bad-target", f"'{text[:200]}' is not a target: {why}.", _HINT, Exit.USAGE)
