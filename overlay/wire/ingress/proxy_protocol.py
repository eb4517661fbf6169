"""HAProxy's PROXY protocol: who a connection, or a datagram, really comes from, said before its own bytes.

v1   "PROXY TCP4 192.0.2.1 198.51.100.1 40000 443\\r\\n"; TCP6; UNKNOWN, and whatever follows; 107 bytes at most
v2   signature 12 | version 4 bits = 2, command 4 bits | family 4 bits, transport 4 bits | length u16 | addresses | TLVs
     command    0 LOCAL (who forwards speaks for itself), 1 PROXY
     addresses  of IPv4 source 4, destination 4; of IPv6 16 each; then both ports u16; of unix sockets 108 each
     TLV        type u8 | length u16 | value; 1 ALPN, 2 authority (a host's name), 3 CRC32C of the whole header, with
                these four bytes as zeros, 0x20 the user's TLS, which has ended before:
     TLS        flags u8, of which 1 says that there was TLS | verify u32, 0 if the user showed a good certificate |
                TLVs: 0x21 version, 0x23 cipher

Over UDP each datagram begins with a header of its own, which v2 alone can say. All numbers are big-endian.
Source: https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint

Transport = Literal["tcp", "udp"]
ProxyProtocol = Literal["", "v1", "v2", "v2-crc32c"]
"""A kind of header; "": none."""

MAX_HEADER: Final = 4096  # bytes taken of v2: addresses need 52, and nobody has names and certificates of more
SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PREFIX: Final = struct.Struct("!12sBBH")
_V1_START: Final = b"PROXY "
_V1_LONGEST: Final = 107
_V1: Final = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n")
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_TLV: Final = struct.Struct("!BH")
_ALPN: Final = 0x01
_AUTHORITY: Final = 0x02
_CRC32C: Final = 0x03
_TLS: Final = 0x20
_TLS_VERSION: Final = 0x21
_TLS_CIPHER: Final = 0x23
_TLS_HEAD: Final = struct.Struct("!BI")
_BY_TLS: Final = 0x01  # PP2_CLIENT_SSL
_UNVERIFIED: Final = 1  # no user shows a certificate here
_CRC_SIZE: Final = 4
_CASTAGNOLI: Final = 0x82F63B78  # RFC 9260 appendix A, bits reversed
_FAMILIES: Final = {0: 0, 1: 12, 2: 36, 3: 216}  # number → size of the addresses; unspecified, IPv4, IPv6, unix
_TRANSPORTS: Final[dict[int, Transport]] = {1: "tcp", 2: "udp"}


@dataclass(frozen=True, slots=True)
class UserTls:
    """TLS of a user that ended at who writes the header, as OpenSSL names it; "": the header does not tell."""

    version: str = ""  # "TLSv1.3"
    cipher: str = ""  # "TLS_AES_256_GCM_SHA384"


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The two ends of a user's connection or flow, as the user sees them; None: the header does not tell."""

    source: Endpoint | None = None
    destination: Endpoint | None = None
    transport: Transport = "tcp"
    alpn: bytes = b""  # what is spoken behind the header, if TLS agreed on it
    authority: str = ""  # the name that the user asked for
    tls: UserTls | None = None


def encode(header: ProxyHeader, kind: ProxyProtocol) -> bytes:
    """Empty for none. Raises as `encode_v1`."""
    if kind == "v1":
        return encode_v1(header)
    return encode_v2(header, checksum=kind == "v2-crc32c") if kind else b""


def encode_v1(header: ProxyHeader) -> bytes:
    """Raises `LocalProtocolError` for datagrams. Ends of two families are told as unknown."""
    if header.transport != "tcp":
        raise LocalProtocolError("PROXY v1 knows TCP alone")
    ends = _ends(header)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    (source, source_port), (destination, destination_port) = ends
    return f"PROXY TCP{source.version} {source} {destination} {source_port} {destination_port}\r\n".encode()


def encode_v2(header: ProxyHeader, *, checksum: bool = False) -> bytes:
    """`checksum`: with CRC32C. Where there are no two ends of one family, who forwards speaks for itself (LOCAL)."""
    ends = _ends(header)
    if ends is None:
        command, kind, body = _LOCAL, 0, b""
    else:
        (source, source_port), (destination, destination_port) = ends
        family = 1 if source.version == 4 else 2
        command, kind = (
            _PROXY,
            family << 4 | next(number for number, name in _TRANSPORTS.items() if name == header.transport),
        )
        body = source.packed + destination.packed + struct.pack("!HH", source_port, destination_port)
    body += _tlv(_ALPN, header.alpn) + _tlv(_AUTHORITY, header.authority.encode())
    if header.tls is not None:
        said = _tlv(_TLS_VERSION, header.tls.version.encode()) + _tlv(_TLS_CIPHER, header.tls.cipher.encode())
        body += _tlv(_TLS, _TLS_HEAD.pack(_BY_TLS, _UNVERIFIED) + said)
    if not checksum:
        return _PREFIX.pack(SIGNATURE, command, kind, len(body)) + body
    body += _TLV.pack(_CRC32C, _CRC_SIZE)
    whole = _PREFIX.pack(SIGNATURE, command, kind, len(body) + _CRC_SIZE) + body
    return whole + crc32c(whole + bytes(_CRC_SIZE)).to_bytes(_CRC_SIZE, "big")


def parse_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | int:
    """`data`: the beginning of a stream, or a datagram. → the header and its size; or how many bytes of the stream are
    needed at least to go on. Raises `RemoteProtocolError("bad_proxy_header")`."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[: len(_V1_START)] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise _bad("no header")


def crc32c(data: bytes) -> int:
    """RFC 9260 appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _ends(
    header: ProxyHeader,
) -> tuple[tuple[IPv4Address | IPv6Address, int], tuple[IPv4Address | IPv6Address, int]] | None:
    if header.source is None or header.destination is None:
        return None
    source, destination = ip_address(header.source[0]), ip_address(header.destination[0])
    if source.version != destination.version:
        return None
    return (source, header.source[1]), (destination, header.destination[1])


def _parse_v1(data: bytes) -> tuple[ProxyHeader, int] | int:
    end = data.find(b"\n", 0, _V1_LONGEST) + 1
    if not end and len(data) < _V1_LONGEST:
        return len(data) + 1
    if not data.endswith(b"\r\n", 0, end):
        raise _bad("a line without an end")
    if re.match(rb"PROXY UNKNOWN[ \r]", data):
        return ProxyHeader(), end
    found = _V1.fullmatch(data, 0, end)
    if found is None:
        raise _bad("not the line of v1")
    version, source, destination, *ports = (each.decode("ascii") for each in found.groups())
    return ProxyHeader(_v1_end(version, source, ports[0]), _v1_end(version, destination, ports[1])), end


def _v1_end(version: str, host: str, port: str) -> Endpoint:
    try:
        address = ip_address(host)
    except ValueError as error:
        raise _bad("no address") from error
    if str(address.version) != version or int(port) > 65535:
        raise _bad("an address of another family, or no port")
    return canonical_endpoint(host, int(port))


def _parse_v2(data: bytes) -> tuple[ProxyHeader, int] | int:
    if len(data) < _PREFIX.size:
        return _PREFIX.size
    _, command, kind, length = _PREFIX.unpack_from(data)
    size: int = _PREFIX.size + length
    addresses = _FAMILIES.get(kind >> 4)
    transport = _TRANSPORTS.get(kind & 15)
    if command not in (_LOCAL, _PROXY) or size > MAX_HEADER or addresses is None or kind & 15 > 2:
        raise _bad("no command, family or size of v2")
    if len(data) < size:
        return size
    if length < addresses:
        raise _bad("shorter than its addresses")
    found = _parse_tlvs(data[:size], _PREFIX.size + addresses)
    if command == _LOCAL or transport is None or addresses not in (12, 36):
        return found, size
    width = 4 if addresses == 12 else 16
    at = _PREFIX.size
    ports = struct.unpack_from("!HH", data, at + 2 * width)
    ends = [
        canonical_endpoint(str(ip_address(data[start : start + width])), port)
        for start, port in zip((at, at + width), ports, strict=True)
    ]
    return replace(found, source=ends[0], destination=ends[1], transport=transport), size


def _parse_tlvs(data: bytes, at: int) -> ProxyHeader:
    """What they tell; `data`: the whole header."""
    alpn, authority, tls = b"", "", None
    for number, start, value in _tlvs(data, at):
        if number == _ALPN:
            alpn = value
        elif number == _AUTHORITY:
            authority = value.decode("utf-8", "replace")
        elif number == _TLS:
            tls = _parse_tls(value)
        elif number == _CRC32C:
            without = data[:start] + bytes(len(value)) + data[start + len(value) :]
            if len(value) != _CRC_SIZE or int.from_bytes(value, "big") != crc32c(without):
                raise _bad("its checksum is wrong")
    return ProxyHeader(alpn=alpn, authority=authority, tls=tls)


def _parse_tls(data: bytes) -> UserTls | None:
    if len(data) < _TLS_HEAD.size:
        raise _bad("TLS cut short")
    said = {number: value.decode("utf-8", "replace") for number, _, value in _tlvs(data, _TLS_HEAD.size)}
    return UserTls(said.get(_TLS_VERSION, ""), said.get(_TLS_CIPHER, "")) if data[0] & _BY_TLS else None


def _tlvs(data: bytes, at: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, where its value begins, and that."""
    while at < len(data):
        if at + _TLV.size > len(data):
            raise _bad("a TLV cut short")
        number, length = _TLV.unpack_from(data, at)
        at += _TLV.size
        value = data[at : at + length]
        if len(value) < length:
            raise _bad("a TLV beyond the end")
        yield number, at, value
        at += length


def _tlv(number: int, value: bytes) -> bytes:
    return _TLV.pack(number, len(value)) + value if value else b""


def _bad(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad_proxy_header", detail)


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
    return value


_CRC_TABLE: Final = tuple(map(_table_entry, range(256)))
