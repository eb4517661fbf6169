"""To which of this host's addresses a datagram came, and from which one the answer goes: control data of sockets that
are bound to all addresses.
"""

import socket
import struct
from ipaddress import ip_address
from typing import Final

_IP_PKTINFO: Final = 8  # <linux/in.h>; the socket module has it from Python 3.14 on
_IN_PKTINFO: Final = struct.Struct("=i4s4s")  # interface, local address, destination address
_IN6_PKTINFO: Final = struct.Struct("=16sI")  # local address, interface

ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_IN6_PKTINFO.size)

Ancillary = list[tuple[int, int, bytes]]


def ask_for_local_address(listening: socket.socket) -> None:
    """Have `recvmsg` tell it from now on."""
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        listening.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def local_address(ancillary: Ancillary) -> bytes:
    """Of a datagram's control data: the address that it came to, packed; empty: it is not told."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) == _IN_PKTINFO.size:
            return bytes(_IN_PKTINFO.unpack(data)[1])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) == _IN6_PKTINFO.size:
            return bytes(_IN6_PKTINFO.unpack(data)[0])
    return b""


def answer_from(address: bytes) -> Ancillary:
    """What to send with a datagram so that it leaves from this (packed) address; empty: whichever the kernel picks.

    The interface is left to routing; a link-local user's is in its socket address.
    """
    if len(address) == 4:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, address, bytes(4)))]
    if len(address) == 16:
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(address, 0))]
    return []


def packed(host: str) -> bytes:
    """A numeric address as `answer_from` takes it."""
    return ip_address(host).packed


def unpacked(address: bytes) -> str:
    """The inverse of `packed`."""
    return str(ip_address(address))
