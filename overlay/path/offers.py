"""Which endpoints that somebody says are a node's may be asked at all. Pure; used by the server for what it passes on,
and by nodes for what peers offer them.

Every one of these gets probes, so that who names them could aim us at somebody: the number is bounded, and what cannot
be another machine's endpoint is left out.
"""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from overlay.wire.endpoint import Endpoint


def is_usable(endpoint: Endpoint, ranges: Sequence[IPv4Network | IPv6Network] = ()) -> bool:
    """May a node be there? `ranges`: the network's own: an overlay address as a way to the overlay would be a loop."""
    address = ip_address(endpoint[0])
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    if str(address) == "255.255.255.255" or endpoint[1] == 0:
        return False
    return not any(address in network for network in ranges)
