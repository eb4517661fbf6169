"""`sendmsg` on message headers that are made once: records go out without a Python object per fragment (they come in as
`run` has it). Linux and other POSIX systems; knows no keys and no peers.

`socket.sendmsg` takes a list of buffers and looks at each of them on every call: 90 of them for a superpacket, which
costs more than sealing the half of it. Here the `struct msghdr` (POSIX `<sys/socket.h>`), the array of `struct iovec`
and the control data stand in memory that the kernel reads as it is, and a call changes three numbers in them.
"""

import ctypes
import socket
import struct
import sys
from struct import Struct
from typing import Final

from overlay.engine.libc import address_of, get_errno, sendmsg
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
TRAFFIC_CLASS: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
"""Level and type of the control message with a datagram's DSCP and ECN: an int on the way out, an int or byte in."""

MSGHDR: Final = Struct("@PIPNPNi0P")  # name, namelen, iov, iovlen, control, controllen, flags
IOVEC: Final = Struct("@PN")  # base, length
_IOVEC_SIZE: Final = IOVEC.size
LENGTH: Final = Struct("@N")
_LENGTH_AT: Final = struct.calcsize("@P")
NAME_SIZE: Final = 28  # struct sockaddr_in6, the larger of the two
_IPV4: Final = Struct("@H2s4s8x")  # struct sockaddr_in: family, port, address
_IPV6: Final = Struct("@H2sI16sI")  # struct sockaddr_in6: family, port, flow information, address, scope
_PORT: Final = Struct("!H")
CMSG: Final = Struct("@Nii")  # length, level, type
CONTROL_SIZE: Final = 2 * socket.CMSG_SPACE(4)
MAX_KEPT: Final = 4096

_pack_msghdr = MSGHDR.pack_into
_pack_length = LENGTH.pack_into


def pack_endpoint(endpoint: Endpoint, family: socket.AddressFamily) -> bytes:
    """An endpoint as a `struct sockaddr`. Raises `OSError` for one that is none."""
    host, port = endpoint
    if family == socket.AF_INET:
        return _IPV4.pack(family, _PORT.pack(port), socket.inet_pton(family, host))
    host, _, zone = host.partition("%")
    scope = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return _IPV6.pack(family, _PORT.pack(port), 0, socket.inet_pton(family, host), scope)


def unpack_endpoint(name: bytes) -> Endpoint:
    """A `struct sockaddr` as an endpoint. Raises `ValueError` for a family other than IPv4 and IPv6."""
    family = int.from_bytes(name[:2], sys.byteorder)
    port = int.from_bytes(name[2:4], "big")
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, name[4:8]), port
    if family != socket.AF_INET6:
        raise ValueError(f"address family {family}")
    host = socket.inet_ntop(socket.AF_INET6, name[8:24])
    (scope,) = struct.unpack("@I", name[24:28])
    if scope and host.startswith("fe80:"):
        host = f"{host}%{socket.if_indextoname(scope)}"
    return host, port


class Iovecs:
    """An array of `struct iovec` over buffers that stay where they are."""

    __slots__ = ("address", "array", "views")

    def __init__(self, views: list[memoryview]) -> None:
        self.views = views
        self.array = bytearray(IOVEC.size * len(views))
        self.address = address_of(self.array)
        for index, view in enumerate(views):
            IOVEC.pack_into(self.array, index * IOVEC.size, address_of(view), len(view))


class RecordMessage:
    """Sends the records of one layout: what `RecordWriter.seal` left in the layout's buffers, in one call."""

    __slots__ = (
        "_alone_size", "_control", "_control_address", "_control_size", "_header", "_iovecs", "_payload", "_reference",
        "_segmentation", "_traffic_class",
    )  # fmt: skip

    def __init__(self, layout: Layout) -> None:
        self._payload = layout.payload
        self._iovecs = Iovecs(layout.iovec)
        self._header = bytearray(MSGHDR.size)
        self._reference = ctypes.c_void_p(address_of(self._header))
        self._segmentation = _control_message(SOL_UDP, UDP_SEGMENT, struct.pack("=H", layout.datagram_size))
        self._control = bytearray(CONTROL_SIZE)
        self._control_address = address_of(self._control)
        self._alone_size = self._control_size = 0  # bytes of control data for one datagram, and for several
        self._traffic_class = -1

    def send(self, descriptor: int, name: "Name", size: int, traffic_class: int = 0) -> int:
        """Send a box of `size` bytes, at most a batch's, to `name`. Returns 0 or an errno."""
        if traffic_class != self._traffic_class:
            self._set_traffic_class(traffic_class, name.family)
        payload = self._payload
        count = -(-size // payload)
        last = (2 * count - 1) * _IOVEC_SIZE + _LENGTH_AT
        iovecs = self._iovecs
        array = iovecs.array
        _pack_length(array, last, size - (count - 1) * payload)
        _pack_msghdr(
            self._header, 0, name.address, name.size, iovecs.address, 2 * count,
            self._control_address, self._control_size if count > 1 else self._alone_size, 0,
        )  # fmt: skip
        sent = sendmsg(descriptor, self._reference, 0)
        _pack_length(array, last, payload)
        return 0 if sent >= 0 else get_errno()

    def _set_traffic_class(self, traffic_class: int, family: socket.AddressFamily) -> None:
        self._traffic_class = traffic_class
        marking = b""
        if traffic_class:
            marking = _control_message(*TRAFFIC_CLASS[family], struct.pack("@i", traffic_class))
        control = marking + self._segmentation
        self._control[: len(control)] = control
        self._alone_size, self._control_size = len(marking), len(control)


def _control_message(level: int, kind: int, data: bytes) -> bytes:
    """A `struct cmsghdr` and its data, padded."""
    head = CMSG.pack(socket.CMSG_LEN(len(data)), level, kind)
    return (head + data).ljust(socket.CMSG_SPACE(len(data)), b"\0")


class Name:
    """A `struct sockaddr` where the kernel can read it."""

    __slots__ = ("_bytes", "address", "endpoint", "family", "size")

    def __init__(self, endpoint: Endpoint, family: socket.AddressFamily) -> None:
        """Raises `OSError` for an endpoint that is none."""
        self.endpoint = endpoint
        self._bytes = bytearray(pack_endpoint(endpoint, family))
        self.address = address_of(self._bytes)
        self.family = family
        self.size = len(self._bytes)


class Names:
    """Endpoints as the kernel writes them, looked up rather than converted."""

    __slots__ = ("_family", "_kept")

    def __init__(self, family: socket.AddressFamily) -> None:
        self._family = family
        self._kept: dict[Endpoint, Name] = {}

    def __getitem__(self, endpoint: Endpoint) -> Name:
        """Raises `OSError` for an endpoint that is none."""
        name = self._kept.get(endpoint)
        if name is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            name = self._kept[endpoint] = Name(endpoint, self._family)
        return name
