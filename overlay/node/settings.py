"""What the starter of a node's daemon hands over. Imported by the command line: it costs msgspec alone."""

from typing import TYPE_CHECKING, Literal

import msgspec

from overlay.errors import Exit, UserError

if TYPE_CHECKING:
    from overlay.carrier.carriers import CarrierName
    from overlay.wire.endpoint import Endpoint
    from overlay_dns.upstream import Upstream


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    state: str  # the state folder, absolute
    invite: str = ""  # needed the first time
    name: str = ""  # for this machine; "": its host name
    tun: bool = True  # False: only publish, by dynamic tunnels; that needs no rights on this machine
    interface: str = ""  # "": the first free overlay0, overlay1, …
    port: int = 0  # of the engine, UDP; 0: the kernel picks
    endpoints: tuple[str, ...] = ()  # where a person says that `port` is reached from outside
    dscp: Literal["hide", "copy"] = "hide"  # of packets inside, in the headers outside
    carriers: str = "auto"  # or one, or several with commas, best first
    proxy: str = ""  # http://[user:password@]host:port
    no_proxy: str = ""  # hosts that it is not for, as in NO_PROXY
    ca_file: str = ""  # that wss:// and tls:// addresses are verified by, instead of the system's CAs
    port_mapping: bool = True  # ask the router to pass on what comes for the UDP port
    upstreams: tuple[str, ...] = ()  # name servers that a person chose, as `parse_upstreams` takes them
    names: bool = True  # resolve the network's names on this machine
    verbosity: int = 0  # −1 quiet, 0, 1, 2

    def __repr__(self) -> str:
        return f"NodeSettings(state={self.state!r}, name={self.name!r})"  # invite and proxy hold secrets


def check_ways(carriers: str, proxy: str) -> "tuple[tuple[CarrierName, ...], str | None]":
    """Carriers in order, and the proxy. Raises `UserError` ("carrier-unknown", "proxy-invalid", exit 2)."""
    from overlay.carrier.choice import parse_carriers
    from overlay.carrier.proxy import parse_proxy

    try:
        found = parse_carriers(carriers)
    except ValueError as error:
        raise UserError("carrier-unknown", f"{error}.", "As in --carrier udp,tls.", Exit.USAGE) from error
    if proxy:
        parse_proxy(proxy)
    return found, proxy or None


def parse_endpoints(texts: tuple[str, ...]) -> "tuple[Endpoint, ...]":
    """Where peers may reach this machine. Raises `UserError` ("endpoint-invalid", exit 2)."""
    from overlay.path.offers import is_usable
    from overlay.wire.endpoint import parse_endpoint

    found = []
    for text in texts:
        hint = "As in --endpoint 203.0.113.7:41641: the address and UDP port that a router passes on to this machine."
        try:
            endpoint = parse_endpoint(text)
        except ValueError as error:
            raise UserError("endpoint-invalid", f"--endpoint: {error}.", hint, Exit.USAGE) from error
        if not is_usable(endpoint):
            raise UserError("endpoint-invalid", f"--endpoint {text}: no peer can reach that.", hint, Exit.USAGE)
        found.append(endpoint)
    return tuple(dict.fromkeys(found))


def parse_upstreams(texts: tuple[str, ...]) -> "tuple[Upstream, ...]":
    """Name servers for other names than the network's. Raises `UserError` ("upstream-invalid", exit 2)."""
    if not texts:
        return ()  # what follows costs more to import than most commands take
    from overlay_dns.upstream import parse_upstream

    hint = "As in --upstream tls://9.9.9.9#dns.quad9.net for all names, or --upstream corp.example=10.0.0.53 for some."
    try:
        return tuple(dict.fromkeys(parse_upstream(text)._replace(near=False) for text in texts))
    except ValueError as error:
        raise UserError("upstream-invalid", f"--upstream: {error}.", hint, Exit.USAGE) from error
