"""AllowedIPs, the cryptokey routing table (paper §2): network -> peer, longest prefix first.

Outbound it picks the peer of a destination; inbound the peer of the *source* must be the one whose key opened the
packet. Knows no packets. It answers as a trie would, but is laid out for Python: one hash table per prefix length in
use. A walk down a trie costs an interpreted step per bit or branch; here a host route, which is nearly all there
is, costs one lookup, and any other one lookup per length in use.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

T = TypeVar("T")
Network = IPv4Network | IPv6Network


class AllowedIPs(Generic[T]):
    """Networks of both families. A value may have many networks; a network has one value, the last inserted."""

    def __init__(self) -> None:
        self.hosts: dict[bytes, T] = {}
        """Host routes of both families (4 and 16 bytes cannot be taken for each other), which win over all others: for
        who looks one up per packet, and asks `lookup` only where there is none."""
        # By address size: (bits to shift an address right by, prefix -> value), fewest bits first.
        self._prefixes: dict[int, list[tuple[int, dict[int, T]]]] = {4: [], 16: []}

    def insert(self, network: Network, value: T) -> None:
        """Give `network` to `value`; whoever had exactly this network loses it."""
        address = network.network_address.packed
        shift = network.max_prefixlen - network.prefixlen
        if shift == 0:
            self.hosts[address] = value
            return
        tables = self._prefixes[len(address)]
        table = next((table for known_shift, table in tables if known_shift == shift), None)
        if table is None:
            table = {}
            tables.append((shift, table))
            tables.sort(key=lambda entry: entry[0])
        table[int.from_bytes(address, "big") >> shift] = value

    def remove_value(self, value: T) -> None:
        """Take all networks from `value`."""
        for host in [host for host, owner in self.hosts.items() if owner == value]:
            del self.hosts[host]
        for size, tables in self._prefixes.items():
            kept = [
                (shift, {prefix: owner for prefix, owner in table.items() if owner != value}) for shift, table in tables
            ]
            self._prefixes[size] = [(shift, table) for shift, table in kept if table]

    def lookup(self, address: bytes) -> T | None:
        """The value of the longest network that contains `address` (4 or 16 bytes); None if there is none."""
        value = self.hosts.get(address)
        if value is not None:
            return value
        tables = self._prefixes.get(len(address))
        if tables:
            number = int.from_bytes(address, "big")
            for shift, table in tables:
                value = table.get(number >> shift)
                if value is not None:
                    return value
        return None

    def __len__(self) -> int:
        return len(self.hosts) + sum(len(table) for tables in self._prefixes.values() for _, table in tables)
