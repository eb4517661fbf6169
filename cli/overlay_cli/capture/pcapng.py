"""pcapng files: blocks as bytes. Knows no packet and does no I/O.

The format is draft-ietf-opsawg-pcapng. Written here because scapy's writer leaves out what we have: nanoseconds, and at
the end how many packets were dropped.

    block        type u32 | length u32 | body, padded to 4 bytes | length u32
    option       code u16 | length u16 | value, padded to 4 bytes; code 0 ends the list
"""

import struct
from collections.abc import Iterable
from typing import Final

LINKTYPE_RAW: Final = 101
"""Packets begin with an IPv4 or IPv6 header. libpcap reads one interface of it in a file, but (1.10) no second one."""

LINKTYPE_LINUX_SLL: Final = 113
"""Packets begin with what Linux has for devices of all kinds, and then an IPv4 or IPv6 header; see `cooked`."""

_SLL: Final = struct.Struct(">HHH8sH")
_SLL_HOST, _SLL_OUTGOING = 0, 4
_ARPHRD_NONE: Final = 0xFFFE  # a device without hardware addresses, as a TUN is
_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = 0x0800, 0x86DD

_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE_DESCRIPTION: Final = 1
_INTERFACE_STATISTICS: Final = 5
_ENHANCED_PACKET: Final = 6

_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_UNKNOWN_LENGTH: Final = -1

_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS: Final = 2
_INBOUND, _OUTBOUND = 1, 2
_SHB_OS, _SHB_APPLICATION = 3, 4
_ISB_IFRECV, _ISB_IFDROP, _ISB_USRDELIV = 4, 5, 8
_NANOSECONDS: Final = 9  # 10 to the power of minus that

SLL_SIZE: Final = _SLL.size

_PACKET_HEAD: Final = struct.Struct("<IIIIIII")
_PACKET_TAIL: Final = struct.Struct("<HHIHHI")  # the option of the direction, the end of options, the length again
_PACKET_SIZE: Final = _PACKET_HEAD.size + _PACKET_TAIL.size

Option = tuple[int, bytes]


def section_header(application: str, system: str) -> bytes:
    """A file begins with it."""
    body = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION_HEADER, body, [(_SHB_OS, system.encode()), (_SHB_APPLICATION, application.encode())])


def cooked(data: bytes, *, outbound: bool) -> bytes:
    """An IP packet as `LINKTYPE_LINUX_SLL` has it: 16 bytes more."""
    direction = _SLL_OUTGOING if outbound else _SLL_HOST
    kind = _ETHERTYPE_IPV6 if data[:1] and data[0] >> 4 == 6 else _ETHERTYPE_IPV4
    return _SLL.pack(direction, _ARPHRD_NONE, 0, b"", kind) + data


def interface(name: str, description: str, snaplen: int, linktype: int) -> bytes:
    """Interfaces are numbered from 0 as they come."""
    options = [
        (_IF_NAME, name.encode()),
        (_IF_DESCRIPTION, description.encode()),
        (_IF_TSRESOL, bytes([_NANOSECONDS])),
    ]
    return _block(_INTERFACE_DESCRIPTION, struct.pack("<HHI", linktype, 0, snaplen), options)


def packet(number: int, time: int, data: bytes, size: int, *, outbound: bool) -> bytes:
    """A packet of interface `number` at `time` (Unix time, ns); `size`: bytes before it was cut to `data`."""
    kept = len(data)
    padding = -kept % 4
    length = _PACKET_SIZE + kept + padding
    head = _PACKET_HEAD.pack(_ENHANCED_PACKET, length, number, time >> 32, time & 0xFFFFFFFF, kept, size)
    direction = _OUTBOUND if outbound else _INBOUND
    return b"".join((head, data, bytes(padding), _PACKET_TAIL.pack(_EPB_FLAGS, 4, direction, 0, 0, length)))


def statistics(number: int, time: int, *, seen: int, dropped: int, delivered: int) -> bytes:
    """Of interface `number`, until `time` (Unix time, ns)."""
    counts = ((_ISB_IFRECV, seen), (_ISB_IFDROP, dropped), (_ISB_USRDELIV, delivered))
    body = struct.pack("<III", number, time >> 32, time & 0xFFFFFFFF)
    return _block(_INTERFACE_STATISTICS, body, [(code, struct.pack("<Q", count)) for code, count in counts])


def _block(kind: int, body: bytes, options: Iterable[Option]) -> bytes:
    listed = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    content = _padded(body) + listed + struct.pack("<HH", 0, 0)
    length = len(content) + 12
    return struct.pack("<II", kind, length) + content + struct.pack("<I", length)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
