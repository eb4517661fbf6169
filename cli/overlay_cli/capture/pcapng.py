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
"""Packets begin with an IPv4 or IPv6 header."""

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

Option = tuple[int, bytes]


def section_header(application: str, system: str) -> bytes:
    """A file begins with it."""
    body = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION_HEADER, body, [(_SHB_OS, system.encode()), (_SHB_APPLICATION, application.encode())])


def interface(name: str, description: str, snaplen: int) -> bytes:
    """Interfaces are numbered from 0 as they come."""
    options = [
        (_IF_NAME, name.encode()),
        (_IF_DESCRIPTION, description.encode()),
        (_IF_TSRESOL, bytes([_NANOSECONDS])),
    ]
    return _block(_INTERFACE_DESCRIPTION, struct.pack("<HHI", LINKTYPE_RAW, 0, snaplen), options)


def packet(number: int, time: int, data: bytes, size: int, *, outbound: bool) -> bytes:
    """A packet of interface `number` at `time` (Unix time, ns); `size`: bytes before it was cut to `data`."""
    head = struct.pack("<IIIII", number, time >> 32, time & 0xFFFFFFFF, len(data), size)
    return _block(_ENHANCED_PACKET, head + data, [(_EPB_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND))])


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
