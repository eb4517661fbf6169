"""`sendmsg` and `recvmsg` on message headers that are made once: a record goes out, and comes in, without a Python
object per fragment. Linux and other POSIX systems; knows no keys and no peers.

`socket.sendmsg` takes a list of buffers and looks at each of them on every call: 90 of them for a superpacket, which
costs more than sealing the half of it. Here the `struct msghdr` (POSIX `<sys/socket.h>`), the array of `struct iovec`
and the control data stand in memory that the kernel reads as it is, and a call changes three numbers in them.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from struct import Struct
from typing import Final

from overlay.engine.libc import address_of, get_errno, recvmsg, sendmsg
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout
from overlay.wire.record.fragments import FRAGMENT_HEADER_SIZE, MESSAGE_TYPE
from overlay.wire.relay import RELAY_HEADER_SIZE, RELAY_TYPE

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
TRAFFIC_CLASS: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
"""Level and type of the control message with a datagram's DSCP and ECN: an int on the way out, an int or byte in."""

MAX_RUN: Final = 65536
"""Bytes that `UDP_GRO` joins at most."""

_MSGHDR: Final = Struct("@PIPNPNi0P")  # name, namelen, iov, iovlen, control, controllen, flags
_IOVEC: Final = Struct("@PN")  # base, length
_IOVEC_SIZE: Final = _IOVEC.size
_LENGTH: Final = Struct("@N")
_LENGTH_AT: Final = struct.calcsize("@P")
_NAME_SIZE: Final = 28  # struct sockaddr_in6, the larger of the two
_IPV4: Final = Struct("@H2s4s8x")  # struct sockaddr_in: family, port, address
_IPV6: Final = Struct("@H2sI16sI")  # struct sockaddr_in6: family, port, flow information, address, scope
_PORT: Final = Struct("!H")
_CMSG: Final = Struct("@Nii")  # length, level, type
_ALIGNMENT: Final = struct.calcsize("@N")
_CONTROL_SIZE: Final = 2 * socket.CMSG_SPACE(4)
_CONTROL_LENGTH_AT: Final = struct.calcsize("@PIPNPN") - struct.calcsize("@N")
_RELAYED_STRIDE: Final = RELAY_HEADER_SIZE + FRAGMENT_HEADER_SIZE
_MAX_KEPT: Final = 4096

_MIN_SCATTERED: Final = 512
"""Bytes; of smaller datagrams a run has so many that taking them apart costs the kernel what it saves us."""

_MAX_MISSES: Final = 4
"""Runs in a row that were not what they were expected to be, after which something else is expected."""

_pack_msghdr = _MSGHDR.pack_into
_pack_length = _LENGTH.pack_into


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


class _Iovecs:
    """An array of `struct iovec` over buffers that stay where they are."""

    __slots__ = ("address", "array", "views")

    def __init__(self, views: list[memoryview]) -> None:
        self.views = views
        self.array = bytearray(_IOVEC.size * len(views))
        self.address = address_of(self.array)
        for index, view in enumerate(views):
            _IOVEC.pack_into(self.array, index * _IOVEC.size, address_of(view), len(view))


class RecordMessage:
    """Sends the records of one layout: what `RecordWriter.seal` left in the layout's buffers, in one call."""

    __slots__ = (
        "_alone_size", "_control", "_control_address", "_control_size", "_header", "_iovecs", "_payload", "_reference",
        "_segmentation", "_traffic_class",
    )  # fmt: skip

    def __init__(self, layout: Layout) -> None:
        self._payload = layout.payload
        self._iovecs = _Iovecs(layout.iovec)
        self._header = bytearray(_MSGHDR.size)
        self._reference = ctypes.c_void_p(address_of(self._header))
        self._segmentation = _control_message(SOL_UDP, UDP_SEGMENT, struct.pack("=H", layout.datagram_size))
        self._control = bytearray(_CONTROL_SIZE)
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
    head = _CMSG.pack(socket.CMSG_LEN(len(data)), level, kind)
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
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            name = self._kept[endpoint] = Name(endpoint, self._family)
        return name


class Run:
    """Datagrams as one `recvmsg` gave them: `size` bytes, cut each `segment` bytes, the last maybe shorter, all from
    `source`. A socket has one, and fills it anew with each call.

    Where a record's fragments are expected, the kernel takes headers and box bytes apart as it copies them: then
    `whole` is true, and `headers` and `box` have the one and the other without a further copy; so it is with a datagram
    that came alone. `joined` has them as they came.
    """

    __slots__ = (
        "_apart", "_behind", "_boxes", "_control", "_control_address", "_controls", "_header", "_linear",
        "_linear_iovecs", "_misses", "_name", "_name_address", "_reference", "_scatter", "_seen", "_sources",
        "_stride", "_strides", "_told", "count", "headers", "offset", "segment", "size", "source",
        "traffic_class", "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = self.segment = 0
        self.source: Endpoint = ("", 0)
        self.traffic_class = 0
        """DSCP and ECN of all of its datagrams: the kernel joins none that differ in it."""
        self.whole = False
        """Does every datagram have a header and at least one byte of box, where `headers` and `box` say?"""
        self.count = 0
        """Of datagrams; only where `whole`."""
        self.headers = memoryview(b"")
        """The datagrams' headers, side by side; only where `whole`."""
        self.offset = 0
        """Bytes before the fragment header in each of them."""
        self._stride = 0
        self._boxes = memoryview(b"")
        self._apart = False  # was this run taken apart?
        self._linear = memoryview(bytearray(MAX_RUN))
        self._behind = {stride: self._linear[stride:] for stride in (FRAGMENT_HEADER_SIZE, _RELAYED_STRIDE)}
        self._linear_iovecs = _Iovecs([self._linear])
        self._scatter: _Scatter | None = None
        self._misses = 0
        self._header = bytearray(_MSGHDR.size)
        self._reference = ctypes.c_void_p(address_of(self._header))
        self._name = bytearray(_NAME_SIZE)
        self._name_address = address_of(self._name)
        self._control = bytearray(_CONTROL_SIZE)
        self._control_address = address_of(self._control)
        self._sources: dict[bytes, Endpoint] = {}
        self._controls: dict[bytes, tuple[int, int]] = {}
        self._seen = b""  # the control data of the run before: most runs are like it
        self._told = 0  # the segment size that it told of
        self._strides = {MESSAGE_TYPE: FRAGMENT_HEADER_SIZE, RELAY_TYPE: _RELAYED_STRIDE}

    def keep_relayed(self) -> None:
        """Have runs of relayed messages stay as they come."""
        self._strides.pop(RELAY_TYPE, None)

    def receive(self, descriptor: int) -> bool:
        """Take the next run. False: nothing waits. Raises `OSError` for an error that the socket reports."""
        scatter = self._scatter
        iovecs = self._linear_iovecs if scatter is None else scatter.iovecs
        header = self._header
        _pack_msghdr(
            header, 0, self._name_address, _NAME_SIZE, iovecs.address, len(iovecs.views), self._control_address,
            _CONTROL_SIZE, 0,
        )  # fmt: skip
        size = recvmsg(descriptor, self._reference, 0)
        if size < 0:
            number = get_errno()
            if number == errno.EAGAIN or number == errno.EINTR:
                return False
            raise OSError(number, os.strerror(number))
        self.size = size
        (control_size,) = _LENGTH.unpack_from(header, _CONTROL_LENGTH_AT)
        if control_size != len(self._seen) or not self._control.startswith(self._seen):
            self._see(bytes(self._control[:control_size]))
        self.segment = segment = self._told or size
        name = bytes(self._name)
        source = self._sources.get(name)
        self.source = source if source is not None else self._learn(name)
        if scatter is None:
            self._apart = False
            stride = self._strides.get(self._linear[0]) if size else None
            self.whole = stride is not None and segment == size > stride
            if stride is not None:
                if self.whole:
                    self.count = 1
                    self._look(self._linear, self._behind[stride], stride)
                elif size > segment:
                    self._expect(stride)
            return True
        self._apart = True
        if (size > segment != scatter.datagram_size) or size <= scatter.stride:
            self.whole = False
        else:
            self.count = count = -(-size // scatter.datagram_size)
            self.whole = size - (count - 1) * scatter.datagram_size > scatter.stride
        return True

    def box(self) -> memoryview:
        """The datagrams' bytes behind the headers, side by side; only where `whole`."""
        return self._boxes[: self.size - self.count * self._stride]

    def joined(self) -> memoryview:
        """All of the run as it came, writable. Valid until the next `receive`."""
        scatter, size = self._scatter, self.size
        if scatter is None or not self._apart:
            return self._linear[:size]
        self._linear[:size] = b"".join(self.pieces())
        self._apart = False
        if size > scatter.datagram_size:
            self._misses += 1
            if self._misses >= _MAX_MISSES:
                # Something else comes now. The next run is taken as it is and shows what.
                self._scatter = None
                self._misses = 0
                self.whole = False
        return self._linear[:size]

    def pieces(self) -> list[memoryview]:
        """All of the run as it came, when joined. Valid until the next `receive`; asking changes nothing."""
        scatter, size = self._scatter, self.size
        if scatter is None or not self._apart:
            return [self._linear[:size]]
        views = scatter.iovecs.views
        count, rest = divmod(size, scatter.datagram_size)
        pieces = views[: 2 * count]
        if rest:
            pieces.append(views[2 * count][:rest])
            if rest > scatter.stride:
                pieces.append(views[2 * count + 1][: rest - scatter.stride])
        return pieces

    def hit(self) -> None:
        """What was expected came."""
        self._misses = 0

    def _expect(self, stride: int) -> None:
        """A run of messages with headers of `stride` bytes came: have the next one taken apart, if it may be like this
        one."""
        if self.segment >= _MIN_SCATTERED:
            scatter = self._scatter = _Scatter(self.segment, stride)
            self._look(scatter.headers, scatter.box, stride)

    def _look(self, headers: memoryview, boxes: memoryview, stride: int) -> None:
        """What is `whole` lies there."""
        self.headers, self.offset = headers, stride - FRAGMENT_HEADER_SIZE
        self._boxes, self._stride = boxes, stride

    def _see(self, control: bytes) -> None:
        """Other control data than before came."""
        known = self._controls.get(control)
        if known is None:
            if len(self._controls) >= _MAX_KEPT:
                self._controls.clear()
            known = self._controls[control] = self._read_control(control)
        self._seen = control
        self._told, self.traffic_class = known

    def _read_control(self, control: bytes) -> tuple[int, int]:
        """What control data tells: the segment size (0: nothing to cut), and the traffic class."""
        segment = traffic_class = at = 0
        while at + _CMSG.size <= len(control):
            length, level, kind = _CMSG.unpack_from(control, at)
            data = control[at + _CMSG.size : at + length]
            if (level, kind) == (SOL_UDP, UDP_GRO):
                segment = int.from_bytes(data, sys.byteorder)
            elif (level, kind) in TRAFFIC_CLASS.values():
                traffic_class = int.from_bytes(data, sys.byteorder)
            at += max(_CMSG.size, -(-length // _ALIGNMENT) * _ALIGNMENT)
        return segment, traffic_class

    def _learn(self, name: bytes) -> Endpoint:
        if len(self._sources) >= _MAX_KEPT:
            self._sources.clear()
        source = self._sources[name] = unpack_endpoint(name)
        return source


class _Scatter:
    """Where headers and box bytes of a run go that is cut each `datagram_size` bytes with `stride` bytes of headers."""

    __slots__ = ("box", "datagram_size", "headers", "iovecs", "stride")

    def __init__(self, datagram_size: int, stride: int) -> None:
        self.datagram_size = datagram_size
        self.stride = stride
        payload = datagram_size - stride
        count = -(-MAX_RUN // datagram_size)
        self.headers = memoryview(bytearray(count * stride))
        self.box = memoryview(bytearray(count * payload))
        self.iovecs = _Iovecs(
            [
                view
                for index in range(count)
                for view in (
                    self.headers[index * stride : (index + 1) * stride],
                    self.box[index * payload : (index + 1) * payload],
                )
            ]
        )
