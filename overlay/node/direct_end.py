"""Whether peers reach an exposure straight at this node, and the listener by which they do.

A name says nothing of ports: where peers are to find an exposure at this node's overlay address, its public port must
lead to it there. Two cases:

- The public port is the target's own, on this machine. Then it is the target that must listen at all addresses; the
  port is looked at, and never taken: the service could not start any more.
- Any other target. Then the port is taken here, and forwards.

Lists of networks hold for peers by their overlay addresses, as these are what they come from; by these the target is
told of them, too. What the server alone sees to (credentials, rates, how many bytes, headers) keeps peers on the way by
the server.
"""

import errno
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from overlay.errors import UserError
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Protocol, Transport
from overlay.node.tunnel_end import TunnelEnd
from overlay.wire.control.terms import NO_TERMS, Access, Limits, Terms, Told
from overlay.wire.endpoint import Endpoint
from overlay.wire.networks import NetworkLists

_UNUSED_LOOPBACK: Final = "127.215.97.3"
"""No service is bound to this address by name: where its port is taken, somebody has taken that of all addresses."""

WELL_KNOWN: Final = {
    ("tcp", 22): "ssh",
    ("tcp", 25): "smtp",
    ("tcp", 53): "domain",
    ("udp", 53): "domain",
    ("tcp", 80): "http",
    ("udp", 123): "ntp",
    ("tcp", 443): "https",
    ("tcp", 445): "microsoft-ds",
    ("tcp", 1883): "mqtt",
    ("tcp", 3306): "mysql",
    ("tcp", 3389): "ms-wbt-server",
    ("tcp", 5432): "postgresql",
    ("tcp", 6379): "redis",
}
"""Services that a target's port tells, by the names of IANA's registry (RFC 6335)."""


class DirectEnd:
    """Of one exposure; `close` it."""

    def __init__(
        self,
        inside: TargetEnd,
        address: str,
        port: int,
        is_member: Callable[[str], bool],
        drops: Counter[str],
        terms: Terms = NO_TERMS,
    ) -> None:
        """`port`: the public one, of `address`, an overlay address. `is_member` says whose connections are taken."""
        lists = NetworkLists(terms.access.allow, terms.access.deny)
        self._refuses_some = not lists.empty
        self._servers_alone = not _holds_here(terms) or not _admits_any(lists, address, is_member)
        self._inside, self._target, self._address, self._port = inside, inside.target, address, port
        self._admits = is_member if lists.empty else (lambda host: is_member(host) and lists.admits(host))
        self._drops = drops
        self._end: TunnelEnd | None = None

    @property
    def connections(self) -> int:
        return self._end.connections if self._end is not None else 0

    def open(self) -> TunnelEnd | None:
        """A listener that is to be run, if one is wanted now."""
        if self._end is not None or self._servers_alone or self._is_the_targets_own():
            return None
        try:
            self._end = TunnelEnd(self._inside, self._address, self._port, self._admits, self._drops, peers=True)
        except UserError:
            return None  # something else has the port: the next look may find it free
        return self._end

    def listens_at(self, transport: Transport) -> Endpoint | None:
        """Where its own listener is."""
        if self._end is None or transport != self._target.transport:
            return None
        return self._address, self._port

    def leads(self) -> bool:
        """Whether peers reach the target there, as it is at this moment."""
        if self._servers_alone:
            return False
        if not self._is_the_targets_own():
            return self._end is not None
        if self._refuses_some or self._inside.told.proxy_protocol:
            return False  # the target itself knows no lists, and would miss the header
        return self._target.host == self._address or _is_taken_everywhere(self._target.protocol, self._port)

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None

    def _is_the_targets_own(self) -> bool:
        if self._target.kind != "host" or self._target.port != self._port:
            return False
        try:
            address = ip_address(self._target.host)
        except ValueError:
            return self._target.host.lower() == "localhost"
        return address.is_loopback or address.is_unspecified or str(address) == self._address


def _holds_here(terms: Terms) -> bool:
    """Whether nothing is set that the server alone sees to."""
    access, limits, told = terms.access, terms.limits, terms.told
    return terms == Terms(
        access=Access(allow=access.allow, deny=access.deny),
        limits=Limits(connections=limits.connections),
        told=Told(proxy_protocol=told.proxy_protocol, transparent=told.transparent),
    )


def _admits_any(lists: NetworkLists, address: str, is_member: Callable[[str], bool]) -> bool:
    """Whether a peer may be among those allowed: else all of them had better come by the server."""
    own = ip_address(address)
    return not lists.allow or any(is_member(str(each.network_address)) or own in each for each in lists.allow)


def _is_taken_everywhere(protocol: Protocol, port: int) -> bool:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if protocol != "udp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # in nobody's way who begins just now
        try:
            probe.bind((_UNUSED_LOOPBACK, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
