"""Which overlay addresses a node gets. Pure.

A node has one place (`host`) in the network, the offset of its address in the IPv4 range; its IPv6 address has the same
offset in the ULA range, so one number stands for both. The place is the node's as long as it is registered.
"""

from collections.abc import Set
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from overlay.errors import Exit, UserError

SERVER_HOST = 1
"""The server's place: .1."""


def next_host(network: IPv4Network, taken: Set[int], last: int) -> int:
    """The first free place after `last`, going round: one that was released rests as long as the range allows, so
    that what still names its former node does not reach the new one.

    Raises `UserError` ("network-full").
    """
    places = network.num_addresses - 2  # neither the network's own address nor the broadcast address
    for step in range(1, places + 1):
        host = (last + step - 1) % places + 1
        if host not in taken:
            return host
    raise UserError(
        "network-full",
        f"All {places} addresses of the network's range {network} are taken.",
        "Remove nodes that are gone with 'overlay node rm NAME' on the server.",
        Exit.REFUSED,
    )


@lru_cache(4096)
def addresses(ipv4: IPv4Network, ipv6: IPv6Network, host: int) -> tuple[str, str]:
    """The overlay addresses of a place, IPv4 first."""
    return (str(ipv4[host]), str(ipv6[host]))
