"""Names as the zone compares them: labels in lower case (RFC 4343: ASCII case is ignored), and reverse names."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from dnslib import DNSLabel

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Labels = tuple[bytes, ...]
"""From the leftmost label to the one below the root, without the root."""

WILDCARD = b"*"
_BITS_PER_LABEL = {4: 8, 6: 4}


def labels_of(name: str) -> Labels:
    """Labels of a name in text, with or without its last dot. No escapes.
    Raises `UnicodeError` for one that is not ASCII."""
    return tuple(name.removesuffix(".").lower().encode("ascii").split(b"."))


def labels_in(name: DNSLabel) -> Labels:
    """Labels of a name in a message."""
    return tuple(part.lower() for part in name.label)


def name_of(labels: Labels) -> DNSLabel:
    """The name, to stand in a record."""
    return DNSLabel(list(labels))


def reverse_labels(address: Address) -> Labels:
    """The whole reverse name of an address (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    return tuple(part.encode() for part in address.reverse_pointer.split("."))


def reverse_origins(network: Network) -> Iterator[Labels]:
    """The reverse zones that hold `network` and nothing else: one, or as many as its last label's bits ask for."""
    bits = _BITS_PER_LABEL[network.version]
    kept = -(-network.prefixlen // bits)
    for part in network.subnets(new_prefix=max(kept * bits, network.prefixlen)):
        labels = reverse_labels(ip_address(int(part.network_address)) if part.version == 4 else part.network_address)
        yield labels[len(labels) - 2 - kept :]
