"""From the messages of a capture's stream to single packets that begin with an IP header.

Inner packets are as they were. Of our own messages the socket knows the payload and the other end: the IP and UDP
headers before them are made here, with checksums that are right.
"""

import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from overlay.daemon.capture import Host, Inner, Outer

_OFFLOAD: Final = struct.Struct("<BBHHHH")  # virtio-net header: VIRTIO 1.2 §5.1.6
_NEEDS_CHECKSUM: Final = 1
_UDP: Final = 17
_HOP_LIMIT: Final = 64
_IPV4_HEADERS: Final = 20 + 8  # bytes, with UDP's
_IPV6_HEADERS: Final = 40 + 8


class Offload(NamedTuple):
    """What the kernel leaves to a network card."""

    checksum: bool = False  # has to be filled in
    segment: int = 0  # bytes of payload of each of a superpacket's segments; 0: it is none


class CapturedPacket(NamedTuple):
    """`data` begins with the IP header and may be cut; `size` is the bytes that there were."""

    time: int  # Unix time, ns
    outbound: bool
    size: int
    data: bytes
    offload: Offload
    ends: tuple["Host", "Host"] | None  # source and destination of one of our own messages; None: an inner packet

    @property
    def message(self) -> bytes:
        """UDP payload of one of our messages, maybe cut."""
        ipv6 = self.ends is not None and ":" in self.ends[0][0]
        return self.data[_IPV6_HEADERS if ipv6 else _IPV4_HEADERS :]


_NO_OFFLOAD: Final = Offload()


def inner_packet(inner: "Inner") -> CapturedPacket:
    """Raises `ValueError` for data without the header that must be there."""
    if len(inner.data) < _OFFLOAD.size:
        raise ValueError("an inner packet without a virtio-net header")
    flags, kind, _, segment, _, _ = _OFFLOAD.unpack_from(inner.data)
    offload = Offload(bool(flags & _NEEDS_CHECKSUM), segment if kind else 0) if flags or kind else _NO_OFFLOAD
    return CapturedPacket(inner.time, inner.outbound, inner.size, inner.data[_OFFLOAD.size :], offload, None)


def outer_packets(outer: "Outer", snaplen: int) -> Iterator[CapturedPacket]:
    """A run's datagrams, each with at most `snaplen` bytes from its IP header on."""
    ends = (outer.local, outer.remote) if outer.outbound else (outer.remote, outer.local)
    headers = _Headers(*ends)
    segment = max(outer.segment, 1)
    for at in range(0, max(len(outer.data), 1), segment):
        packet = headers.before(outer.data[at : at + segment])
        yield CapturedPacket(outer.time, outer.outbound, len(packet), packet[:snaplen], _NO_OFFLOAD, ends)


class _Headers:
    """IP and UDP headers between two ends. All of it but the last checksum is the same for payloads of one length."""

    def __init__(self, source: "Host", destination: "Host") -> None:
        self._ipv6 = ":" in source[0]
        family = socket.AF_INET6 if self._ipv6 else socket.AF_INET
        self._addresses = b"".join(
            socket.inet_pton(family, address.partition("%")[0]) for address, _ in (source, destination)
        )
        self._ports = source[1], destination[1]
        self._length = -1
        self._head = b""
        self._sum = 0

    def before(self, payload: bytes) -> bytes:
        if len(payload) != self._length:
            self._prepare(len(payload))
        # 0 stands for no checksum (RFC 768): a sum of 0xFFFF says the same as one of 0.
        checksum = 0xFFFF - (self._sum + _sum16(payload)) % 0xFFFF
        return b"".join((self._head, checksum.to_bytes(2, "big"), payload))

    def _prepare(self, payload: int) -> None:
        self._length = payload
        length = 8 + payload
        if self._ipv6:
            header = struct.pack(">IHBB", 6 << 28, length, _UDP, _HOP_LIMIT) + self._addresses
        else:
            header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _HOP_LIMIT, _UDP, 0) + self._addresses
            checksum = 0xFFFF - _sum16(header) % 0xFFFF
            header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
        udp = struct.pack(">HHH", *self._ports, length)
        self._head = header + udp
        self._sum = _sum16(self._addresses + struct.pack(">HH", _UDP, length) + udp)


def _sum16(data: bytes) -> int:
    """The sum of the 16-bit words (RFC 1071) modulo 0xFFFF: 2**16 is 1 there, so that the number is its words' sum."""
    return int.from_bytes(data + b"\0" if len(data) % 2 else data, "big") % 0xFFFF
