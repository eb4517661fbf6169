"""ICMP errors about packets that cannot be delivered: destination unreachable, of IPv4 (RFC 792) and IPv6 (RFC 4443).

    IPv4   type 3 | code 1 (host)    | checksum u16 | 0 u32 | as much of the packet as 576 bytes hold
    IPv6   type 1 | code 3 (address) | checksum u16 | 0 u32 | as much of the packet as 1280 bytes hold

Whether an error may be sent about a packet at all is decided here (RFC 1122 §3.2.2, RFC 1812 §4.3.2.7, RFC 4443 §2.4);
how often is the caller's (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)). Knows no device and no peer.

An error's source is the address that could not be reached. It ought to be one of the node's own (RFC 4443 §2.2), but
the error enters the node's own kernel through the interface, and Linux takes IPv4 packets with its own addresses from
outside for forgeries ("martians"). The unreached address is the one source that passes: the way back to it leads
through this interface, or the packet would not have come.
"""

from struct import Struct
from typing import Final

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip
from overlay.wire.packet.checksum import complement, pseudo_header, sum16
from overlay.wire.packet.ip import Octets

MAX_ERROR4: Final = 576  # bytes in all, RFC 1812 §4.3.2.3
MAX_ERROR6: Final = 1280  # bytes in all, RFC 4443 §2.4(c)

ICMP: Final = 1
ICMPV6: Final = 58

_HOST_UNREACHABLE: Final = (3, 1)
_ADDRESS_UNREACHABLE: Final = (1, 3)
_INTERNETWORK_CONTROL: Final = 0xC0  # precedence of errors, RFC 1812 §4.3.2.5
_DONT_FRAGMENT: Final = 0x4000  # and so no identification, RFC 6864 §4
_HOP_LIMIT: Final = 64

_QUERIES4: Final = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43})
"""ICMP types that are no errors. Of a type that is not known here nobody can say so."""
_LEAST_QUERY6: Final = 128  # RFC 4443 §2.1
_REDIRECT6: Final = 137

_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_EXTENSIONS: Final = frozenset({0, 43, _FRAGMENT, _AUTHENTICATION, 60})

_HEADER4: Final = Struct(">BBHHHBBH")
_HEADER6: Final = Struct(">IHBB")
_ERROR: Final = Struct(">BBHI")


def unreachable(packet: Octets) -> bytes | None:
    """The error for the sender of `packet`, a whole IP packet; None: there may be none about it.

    `packet` is plain, as it would be on a wire: a superpacket is to be cut first. Never raises.
    """
    try:
        packet = packet[: ip.total_length(packet)]
    except RemoteProtocolError:
        return None
    if packet[0] >> 4 == 4:
        return _unreachable4(packet) if _answerable4(packet) else None
    return _unreachable6(packet) if _answerable6(packet) else None


def is_unicast(packet: Octets) -> bool:
    """Is the destination of this IP packet (whose fixed header is there) neither multicast nor broadcast?"""
    if packet[0] >> 4 == 4:
        return packet[16] >> 4 != 14 and bytes(packet[16:20]) != b"\xff\xff\xff\xff"
    return packet[24] != 0xFF


def _answerable4(packet: Octets) -> bool:
    first = packet[12]
    if first == 0 or first == 127 or first >= 224:  # no single host: "this" network, loopback, multicast, class E
        return False
    if not is_unicast(packet) or packet[6] & 0x1F or packet[7]:
        return False
    if packet[9] != ICMP:
        return True
    at = (packet[0] & 15) << 2
    return at < len(packet) and packet[at] in _QUERIES4


def _answerable6(packet: Octets) -> bool:
    source = bytes(packet[8:24])
    if source[0] == 0xFF or source[:15] == bytes(15) and source[15] <= 1:  # multicast, unspecified, loopback
        return False
    if not is_unicast(packet):
        return False
    length = len(packet)
    protocol, at = packet[6], 40
    for _ in range(ip.MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            break
        if at + 8 > length:
            return False
        extension, protocol, words = protocol, packet[at], packet[at + 1]
        if extension == _FRAGMENT:
            if packet[at + 2] or packet[at + 3] & 0xF8:  # what it is a part of is not to be seen
                return False
            at += 8
        else:
            at += (words + 2) << 2 if extension == _AUTHENTICATION else (words + 1) << 3
    else:
        return False
    if protocol != ICMPV6:
        return True
    return at < length and packet[at] >= _LEAST_QUERY6 and packet[at] != _REDIRECT6


def _unreachable4(packet: Octets) -> bytes:
    source, destination = bytes(packet[16:20]), bytes(packet[12:16])
    quoted = bytes(packet[: MAX_ERROR4 - 20 - _ERROR.size])
    message = _ERROR.pack(*_HOST_UNREACHABLE, 0, 0) + quoted
    message = _ERROR.pack(*_HOST_UNREACHABLE, complement(sum16(message)), 0) + quoted
    length = 20 + len(message)
    fields = (0x45, _INTERNETWORK_CONTROL, length, 0, _DONT_FRAGMENT, _HOP_LIMIT, ICMP)
    total = sum16(_HEADER4.pack(*fields, 0) + source + destination)
    return _HEADER4.pack(*fields, complement(total)) + source + destination + message


def _unreachable6(packet: Octets) -> bytes:
    source, destination = bytes(packet[24:40]), bytes(packet[8:24])
    quoted = bytes(packet[: MAX_ERROR6 - 40 - _ERROR.size])
    message = _ERROR.pack(*_ADDRESS_UNREACHABLE, 0, 0) + quoted
    total = pseudo_header(source + destination, ICMPV6, len(message)) + sum16(message)
    message = _ERROR.pack(*_ADDRESS_UNREACHABLE, complement(total), 0) + quoted
    return _HEADER6.pack(6 << 28, len(message), ICMPV6, _HOP_LIMIT) + source + destination + message
