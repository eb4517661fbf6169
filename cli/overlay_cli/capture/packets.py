"""From the messages of a capture's stream to single packets that begin with an IP header.

Inner packets are as they were. Of our own messages the socket knows the payload and the other end: the IP and UDP
headers before them are made here, with checksums that are right.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from overlay.daemon.capture import Host, Inner, Outer

_OFFLOAD: Final = struct.Struct("<BBHHHH")  # virtio-net header: VIRTIO 1.2 §5.1.6
_NEEDS_CHECKSUM: Final = 1
_GSO_NAMES: Final = {1: "TCP", 4: "TCP", 5: "UDP"}
_GSO_ECN: Final = 0x80
_UDP: Final = 17
_HOP_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Offload:
    """What the kernel leaves to a network card."""

    checksum: bool  # has to be filled in
    kind: str  # of a superpacket, "TCP" or "UDP"; "": it is none
    segment: int  # bytes of payload of each of a superpacket's segments; 0: it is none


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """`data` begins with the IP header and may be cut; `size` is the bytes that there were."""

    time: int  # Unix time, ns
    outbound: bool
    size: int
    data: bytes
    offload: Offload


@dataclass(frozen=True, slots=True)
class CapturedMessage(CapturedPacket):
    """One of our messages."""

    local: "Host"
    remote: "Host"
    message: bytes  # UDP payload, maybe cut as `data` is


_NO_OFFLOAD: Final = Offload(False, "", 0)


def inner_packet(inner: "Inner") -> CapturedPacket:
    """Raises `ValueError` for data without the header that must be there."""
    if len(inner.data) < _OFFLOAD.size:
        raise ValueError("an inner packet without a virtio-net header")
    flags, kind, _, segment, _, _ = _OFFLOAD.unpack_from(inner.data)
    kind &= ~_GSO_ECN
    offload = Offload(bool(flags & _NEEDS_CHECKSUM), _GSO_NAMES.get(kind, ""), segment if kind else 0)
    return CapturedPacket(inner.time, inner.outbound, inner.size, inner.data[_OFFLOAD.size :], offload)


def outer_packets(outer: "Outer", snaplen: int) -> Iterator[CapturedMessage]:
    """A run's datagrams, each with at most `snaplen` bytes from its IP header on."""
    ends = (outer.local, outer.remote) if outer.outbound else (outer.remote, outer.local)
    segment = max(outer.segment, 1)
    for at in range(0, max(len(outer.data), 1), segment):
        payload = outer.data[at : at + segment]
        packet = _with_headers(payload, *ends)
        headers = len(packet) - len(payload)
        yield CapturedMessage(
            outer.time,
            outer.outbound,
            len(packet),
            packet[:snaplen],
            _NO_OFFLOAD,
            outer.local,
            outer.remote,
            payload[: max(0, snaplen - headers)],
        )


def _with_headers(payload: bytes, source: "Host", destination: "Host") -> bytes:
    length = 8 + len(payload)
    udp = struct.pack(">HHHH", source[1], destination[1], length, 0)
    if ":" in source[0]:
        addresses = b"".join(
            socket.inet_pton(socket.AF_INET6, address.partition("%")[0]) for address, _ in (source, destination)
        )
        header = struct.pack(">IHBB", 6 << 28, length, _UDP, _HOP_LIMIT) + addresses
        pseudo = addresses + struct.pack(">II", length, _UDP)
    else:
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _HOP_LIMIT, _UDP, 0) + addresses
        header = header[:10] + _checksum(header).to_bytes(2, "big") + header[12:]
        pseudo = addresses + struct.pack(">HH", _UDP, length)
    checksum = _checksum(pseudo + udp + payload) or 0xFFFF  # 0 stands for none (RFC 768)
    return header + udp[:6] + checksum.to_bytes(2, "big") + payload


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071). 2**16 is 1 modulo 0xFFFF: the sum of the words is the number's remainder."""
    if len(data) % 2:
        data += b"\0"
    rest = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - (rest or (0xFFFF if any(data) else 0))
