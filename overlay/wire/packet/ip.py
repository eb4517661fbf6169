"""IP headers: what the data plane must read of a packet. Pure functions over bytes; no sessions, no offloads.

`parse` is the one place where a packet's own headers are checked (RFC 791 §3.1, RFC 8200 §3 and §4): what it returns is
right by construction. It finds the transport header of TCP and UDP behind IPv4 options and IPv6 extension headers;
fragments and other protocols have none, and are carried as they are.
"""

from typing import NamedTuple

from overlay.errors import RemoteProtocolError

Octets = bytes | bytearray | memoryview

TCP = 6
UDP = 17

_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_AUTHENTICATION = 51
_DESTINATION = 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _AUTHENTICATION, _DESTINATION})

MAX_EXTENSIONS = 8
"""Extension headers walked before a packet counts as one without a known transport: no stack sends more."""


class Header(NamedTuple):
    """Where things are in a packet. Offsets and lengths in bytes from the packet's start."""

    version: int  # 4 or 6
    protocol: int  # upper-layer protocol; for a fragment or a chain that was not walked to its end, see `transport`
    transport: int  # offset of the TCP or UDP header; 0: none to be found (fragment, other protocol)
    length: int  # of the whole packet, as its header says


def parse(packet: Octets) -> Header:
    """Read and check the IP header. The packet may be longer than its header says (padding), never shorter.

    Raises `RemoteProtocolError`: `short_packet`, `bad_ip_version`, `bad_ip_length`, `bad_extension_header`.
    """
    size = len(packet)
    if size < 20:
        raise RemoteProtocolError("short_packet")
    version = packet[0] >> 4
    if version == 4:
        return _parse4(packet, size)
    if version == 6:
        return _parse6(packet, size)
    raise RemoteProtocolError("bad_ip_version")


def _parse4(packet: Octets, size: int) -> Header:
    header_length = (packet[0] & 15) << 2
    length = packet[2] << 8 | packet[3]
    if not 20 <= header_length <= length <= size:
        raise RemoteProtocolError("bad_ip_length")
    protocol = packet[9]
    fragment = packet[6] & 0x3F or packet[7]  # MF or an offset; the reserved bit and DF do not matter
    if fragment or (protocol != TCP and protocol != UDP):
        return Header(4, protocol, 0, length)
    return Header(4, protocol, header_length, length)


def _parse6(packet: Octets, size: int) -> Header:
    if size < 40:
        raise RemoteProtocolError("short_packet")
    length = 40 + (packet[4] << 8 | packet[5])
    if length > size:
        raise RemoteProtocolError("bad_ip_length")
    protocol = packet[6]
    offset = 40
    if protocol == TCP or protocol == UDP:
        return Header(6, protocol, offset, length)
    for _ in range(MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            break
        if offset + 8 > length:
            raise RemoteProtocolError("bad_extension_header")
        extension, protocol, words = protocol, packet[offset], packet[offset + 1]
        # RFC 4302 §2.2: the authentication header counts 4-byte words less 2; all others 8-byte words less 1.
        offset += (words + 2) << 2 if extension == _AUTHENTICATION else (words + 1) << 3
        if offset > length:
            raise RemoteProtocolError("bad_extension_header")
        if protocol == TCP or protocol == UDP:
            return Header(6, protocol, offset, length)
    return Header(6, protocol, 0, length)


def source(packet: Octets) -> bytes:
    """The source address, 4 or 16 bytes. Raises `RemoteProtocolError` as `total_length` does."""
    total_length(packet)
    return bytes(packet[12:16]) if packet[0] >> 4 == 4 else bytes(packet[8:24])


def destination(packet: Octets) -> bytes:
    """The destination address, 4 or 16 bytes. Raises `RemoteProtocolError` as `total_length` does."""
    total_length(packet)
    return bytes(packet[16:20]) if packet[0] >> 4 == 4 else bytes(packet[24:40])


def total_length(packet: Octets) -> int:
    """The length that the IP header states: at least the header's own, at most `len(packet)`.

    Cheaper than `parse`: nothing behind the fixed header is looked at. Raises `RemoteProtocolError`: `short_packet`,
    `bad_ip_version`, `bad_ip_length`.
    """
    size = len(packet)
    if size < 20:
        raise RemoteProtocolError("short_packet")
    version = packet[0] >> 4
    if version == 4:
        length = packet[2] << 8 | packet[3]
        if not 20 <= (packet[0] & 15) << 2 <= length <= size:
            raise RemoteProtocolError("bad_ip_length")
        return length
    if version != 6:
        raise RemoteProtocolError("bad_ip_version")
    if size < 40:
        raise RemoteProtocolError("short_packet")
    length = 40 + (packet[4] << 8 | packet[5])
    if length > size:
        raise RemoteProtocolError("bad_ip_length")
    return length


def trim(packet: memoryview) -> memoryview:
    """Cut the padding that a transport put behind the packet. Raises `RemoteProtocolError` as `total_length` does."""
    return packet[: total_length(packet)]


def flow_key(packet: Octets) -> bytes | None:
    """What all packets of one TCP or UDP flow and direction share: protocol, addresses, ports. None: no such flow.

    Raises `RemoteProtocolError` as `parse` does.
    """
    version, protocol, transport, length = parse(packet)
    if not transport or transport + 4 > length:
        return None
    addresses = packet[12:20] if version == 4 else packet[8:40]
    return b"%c%b%b" % (protocol, bytes(addresses), bytes(packet[transport : transport + 4]))
