"""What the starter of a node's daemon hands over. Imported by the command line: it costs msgspec alone."""

from typing import TYPE_CHECKING, Literal

import msgspec

from overlay.errors import Exit, UserError

if TYPE_CHECKING:
    from overlay.carrier.carriers import CarrierName


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    state: str  # the state folder, absolute
    invite: str = ""  # needed the first time
    name: str = ""  # for this machine; "": its host name
    interface: str = ""  # "": the first free overlay0, overlay1, …
    port: int = 0  # of the engine, UDP; 0: the kernel picks
    dscp: Literal["hide", "copy"] = "hide"  # of packets inside, in the headers outside
    carriers: str = "auto"  # or one, or several with commas, best first
    proxy: str = ""  # http://[user:password@]host:port
    no_proxy: str = ""  # hosts that it is not for, as in NO_PROXY
    ca_file: str = ""  # that wss:// and tls:// addresses are verified by, instead of the system's CAs
    names: bool = True  # resolve the network's names on this machine
    verbosity: int = 0  # −1 quiet, 0, 1, 2

    def __repr__(self) -> str:
        return f"NodeSettings(state={self.state!r}, name={self.name!r})"  # invite and proxy hold secrets


def check_ways(carriers: str, proxy: str) -> "tuple[tuple[CarrierName, ...], str | None]":
    """Carriers in order, and the proxy in full. Raises `UserError` ("carrier-unknown", "proxy-invalid", exit 2)."""
    from overlay.carrier.choice import parse_carriers

    try:
        found = parse_carriers(carriers)
    except ValueError as error:
        raise UserError("carrier-unknown", f"{error}.", "As in --carrier udp,tls.", Exit.USAGE) from error
    try:
        return found, parse_proxy(proxy) if proxy else None
    except ValueError as error:
        raise UserError(
            "proxy-invalid", f"In '--proxy', {error}.", "As in --proxy http://proxy:3128.", Exit.USAGE
        ) from error


def parse_proxy(text: str) -> str:
    """A proxy as `http://[user:password@]host:port`, in full. Raises `ValueError` with a sentence for a person."""
    from urllib.parse import urlsplit

    given = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"the proxy's address is wrong ({error})") from error
    if parts.scheme != "http":
        raise ValueError(f"a proxy is reached by http://, not by {parts.scheme[:20]}://")
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("the proxy's address must be a host and a port, and no more")
    if any(character.isspace() or not character.isprintable() for character in given):
        raise ValueError("the proxy's address holds white space")
    user = parts.netloc.rpartition("@")[0]
    where = f"[{host}]" if ":" in host else host
    return f"http://{user}{'@' if user else ''}{where}:{port or 80}"
