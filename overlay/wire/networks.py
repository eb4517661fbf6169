"""Lists of networks that say who may come: as people write them, and as they are asked for each user."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from overlay.wire.wireguard.allowedips import AllowedIPs

Network = IPv4Network | IPv6Network
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_REMEMBERED: Final = 4096  # addresses: whoever sends many datagrams is looked up once


def parse_network(text: str) -> Network:
    """`192.0.2.0/24`, `2001:db8::/32`, or an address alone; bits behind the prefix do not count. IPv4-mapped networks
    are folded to IPv4, as `canonical_endpoint` does with addresses. Raises `ValueError`."""
    network = ip_network(text.strip(), strict=False)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((network.network_address.packed[-4:], network.prefixlen - 96))
    return network


class NetworkLists:
    """Nobody from `deny` may come; if `allow` names any network, those from there alone. Raises `ValueError`."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self.allow = tuple(map(parse_network, allow))
        self.deny = tuple(map(parse_network, deny))
        self._allowed, self._denied = _table(self.allow), _table(self.deny)
        self.admits = lru_cache(_REMEMBERED)(self._admits)
        """Whether one may come from this address: of a canonical endpoint."""

    @property
    def empty(self) -> bool:
        """Whether everybody may come."""
        return not self.allow and not self.deny

    def _admits(self, host: str) -> bool:
        address = ip_address(host).packed
        if self._denied.lookup(address):
            return False
        return not self.allow or bool(self._allowed.lookup(address))


def _table(networks: Iterable[Network]) -> AllowedIPs[bool]:
    table: AllowedIPs[bool] = AllowedIPs()
    for network in networks:
        table.insert(network, True)
    return table
