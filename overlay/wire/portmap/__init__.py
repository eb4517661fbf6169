"""Port mapping: what a home router is asked so that datagrams from outside reach a port of ours.

No sockets, no clock, no gateway's address: who is asked, and whether an answer came from the gateway, is the caller's
business. Everything that is parsed here came from the network.

- `nat_pmp`: NAT Port Mapping Protocol, RFC 6886.
- `pcp`: Port Control Protocol, RFC 6887. The same port of the gateway; the first byte, the version, tells them apart.
- `client`: one port mapped by one gateway, by either of them, for as long as it is wanted.
"""

from typing import Final

SERVER_PORT = 5351
"""UDP port of the gateway for both (RFC 6886 §3.1, RFC 6887 §19)."""
ANNOUNCEMENT_PORT = 5350
"""UDP port of 224.0.0.1 to which a gateway says that it started anew (RFC 6886 §3.2.1, RFC 6887 §19)."""
LIFETIME = 7200
"""Seconds asked for: what RFC 6886 §3.3 recommends; a node that vanishes leaves a hole for no longer than this."""

TRANSPORT: Final = "udp"
"""What is mapped. These protocols map TCP as well, but a path by TCP has a port of its own for each attempt, and lives
where UDP does not get through: there, routers map nothing."""

__all__ = ["ANNOUNCEMENT_PORT", "LIFETIME", "SERVER_PORT", "TRANSPORT"]
