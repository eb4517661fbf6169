"""The header of a STUN message, and its attributes as bytes. Knows their layout (RFC 8489 §5, §14), not what they mean.

    type u16 | length u16 | magic cookie u32 = 0x2112a442 | transaction id 12 | attribute*
    attribute: type u16 | length u16 | value, padded to 4 bytes

Big-endian. The header's length counts the attributes with their padding.
"""

import struct
import zlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint

PORT: Final = 3478  # STUN's own, UDP and TCP (§18.5)
MAGIC_COOKIE: Final = b"\x21\x12\xa4\x42"
TRANSACTION_ID_SIZE: Final = 12  # bytes; random (§5): who did not see the request cannot guess it
HEADER: Final = struct.Struct(">HH4s12s")
HEADER_SIZE: Final = HEADER.size  # bytes

MAPPED_ADDRESS: Final = 0x0001
CHANGE_REQUEST: Final = 0x0003  # RFC 5780 §7.2
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
XOR_MAPPED_ADDRESS: Final = 0x0020
PADDING: Final = 0x0026  # RFC 5780 §7.6
RESPONSE_PORT: Final = 0x0027  # RFC 5780 §7.5
FINGERPRINT: Final = 0x8028
RESPONSE_ORIGIN: Final = 0x802B  # RFC 5780 §7.3
OTHER_ADDRESS: Final = 0x802C  # RFC 5780 §7.4

COMPREHENSION_OPTIONAL: Final = 0x8000
"""Attributes from here on may be ignored by who does not know them (§14)."""

FINGERPRINT_SIZE: Final = 8  # bytes of the whole attribute
_FINGERPRINT_XOR: Final = 0x5354554E  # "STUN" (§14.7)
_ATTRIBUTE: Final = struct.Struct(">HH")
_IPV4, _IPV6 = 1, 2


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def attributes(body: bytes | memoryview) -> Iterator[tuple[int, bytes, int]]:
    """Type, value, and where the attribute begins in `body`. Raises `RemoteProtocolError("stun_bad_attribute")`."""
    at = 0
    while at < len(body):
        if at + _ATTRIBUTE.size > len(body):
            raise RemoteProtocolError("stun_bad_attribute", "cut off")
        kind, size = _ATTRIBUTE.unpack_from(body, at)
        start = at + _ATTRIBUTE.size
        end = start + size
        padded = end + -size % 4
        if padded > len(body):
            raise RemoteProtocolError("stun_bad_attribute", f"0x{kind:04x} of {size} bytes")
        yield kind, bytes(body[start:end]), at
        at = padded


def fingerprint(message: bytes | memoryview) -> bytes:
    """The value of FINGERPRINT for the message before it, whose header already counts it (§14.7)."""
    return (zlib.crc32(message) ^ _FINGERPRINT_XOR).to_bytes(4, "big")


def pack_address(endpoint: Endpoint) -> bytes:
    """MAPPED-ADDRESS and those of its layout (§14.1): 0 u8 | family u8 | port u16 | address 4 or 16.

    Raises `LocalProtocolError` for what is no endpoint.
    """
    try:
        address = ip_address(endpoint[0])
        return struct.pack(">BBH", 0, _IPV4 if address.version == 4 else _IPV6, endpoint[1]) + address.packed
    except (ValueError, struct.error) as error:
        raise LocalProtocolError(f"{endpoint} is no endpoint") from error


def unpack_address(value: bytes) -> Endpoint:
    """The inverse. An IPv4-mapped address becomes the IPv4 one. Raises `RemoteProtocolError("stun_bad_address")`."""
    if len(value) == 8 and value[1] == _IPV4:
        host = str(IPv4Address(value[4:]))
    elif len(value) == 20 and value[1] == _IPV6:
        host = str(IPv6Address(value[4:]))
    else:
        raise RemoteProtocolError("stun_bad_address")
    port = int.from_bytes(value[2:4], "big")
    if port == 0 or ip_address(host).is_unspecified:
        raise RemoteProtocolError("stun_bad_address", f"{host} port {port}")
    return canonical_endpoint(host, port)


def xor_address(value: bytes, transaction_id: bytes) -> bytes:
    """XOR-MAPPED-ADDRESS from MAPPED-ADDRESS, and back (§14.2). What is too long stays too long."""
    mask = b"\0\0" + MAGIC_COOKIE[:2] + MAGIC_COOKIE + transaction_id + bytes(max(0, len(value) - 20))
    return bytes(byte ^ masked for byte, masked in zip(value, mask, strict=False))
