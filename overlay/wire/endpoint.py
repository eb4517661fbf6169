"""An endpoint: the `(address, port)` pair that a datagram goes to or came from, in one canonical form.

Addresses are numeric and in the text form of the `ipaddress` module; IPv4-mapped IPv6 addresses are folded to IPv4.
"""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

_REMEMBERED: Final = 4096  # hosts: whoever comes once, comes again, and reading and printing him takes 10 µs

Endpoint = tuple[str, int]


def parse_endpoint(text: str) -> Endpoint:
    """`192.0.2.1:443` or `[2001:db8::1]:443` → endpoint. Raises `ValueError` with a sentence for a person."""
    host, separator, port_text = text.rpartition(":")
    if not separator or not host:
        raise ValueError(f"'{text}' is not an address with a port; write 192.0.2.1:443 or [2001:db8::1]:443")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"'{text}': an IPv6 address before a port stands in brackets, as in [2001:db8::1]:443")
    if not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise ValueError(f"'{text}': the port must be a number from 1 to 65535")
    return canonical_endpoint(host, int(port_text))


def canonical_endpoint(host: str, port: int) -> Endpoint:
    """Fold what a socket or a peer reports to the canonical form. Raises `ValueError` if `host` is not numeric."""
    return (_canonical_host(host), port)


@lru_cache(_REMEMBERED)
def _canonical_host(host: str) -> str:
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def format_endpoint(endpoint: Endpoint) -> str:
    """The inverse of `parse_endpoint`."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
