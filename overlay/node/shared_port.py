"""TCP sockets that share a local port: a peer is dialled from the port where it is awaited, and how that port looks
from outside is asked from it, too."""

import socket
from typing import Final

ANY: Final[dict[int, str]] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
"""What to bind such a socket to, by family."""


def shared_port_socket(family: int) -> socket.socket:
    """One that is not bound yet, and never blocks. Raises `OSError` where the machine has no such family."""
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made
