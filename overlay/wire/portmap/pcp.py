"""PCP messages (RFC 6887): ANNOUNCE and MAP, without options. Pure functions; big-endian.

    request header    version u8=2 | opcode u8 | 0 u16 | lifetime u32 | client address 16
    response header   version u8=2 | 128 + opcode | 0 u8 | result u8 | lifetime u32 | epoch u32 | 0 96 bits
    ANNOUNCE (0)      nothing more
    MAP (1)           nonce 12 | IANA protocol u8 (17 UDP, 6 TCP) | 0 24 bits | internal port u16 | external port u16
                      | external address 16

Addresses are 16 bytes, IPv4 as IPv4-mapped IPv6 (§5). The nonce is chosen once for a mapping and stands in every
renewal and in the removal too: a server refuses those with another one (§11.2, §11.3). It also makes answers hard to
forge for who does not see the requests. In an error a response's lifetime is how long to leave the server alone (§7.2).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from overlay.errors import LocalProtocolError, RemoteProtocolError

VERSION = 2
NONCE_SIZE = 12  # bytes
MAX_MESSAGE_SIZE = 1100  # bytes (§7)

Transport = Literal["udp", "tcp"]
Address = IPv4Address | IPv6Address

_RESPONSE = 128
_ANNOUNCE, _MAP = 0, 1
_PROTOCOLS: dict[Transport, int] = {"udp": 17, "tcp": 6}
_TRANSPORTS: dict[int, Transport] = {protocol: transport for transport, protocol in _PROTOCOLS.items()}
_REQUEST = struct.Struct(">BBHI16s")
_HEADER = struct.Struct(">BBBBII12x")
_BODY = struct.Struct(">12sB3xHH16s")
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_ANY_IPV4 = IPv4Address(0)


class Result(IntEnum):
    """Result codes (§7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


@dataclass(frozen=True, slots=True)
class Announced:
    """The server is there. `epoch`: its seconds since it last lost its mappings (§8.5)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping made, renewed or (`lifetime` 0) removed. `lifetime` in seconds."""

    epoch: int
    nonce: bytes
    transport: Transport
    internal_port: int
    external_port: int
    external_address: Address
    lifetime: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not, for `lifetime` seconds. `nonce` names the mapping; None: no MAP, or cut short."""

    epoch: int
    result: int
    lifetime: int
    nonce: bytes | None


Response = Announced | Mapped | Refused


def announce_request(client: Address) -> bytes:
    """Are you there? Changes nothing. `client`: our address as the server sees it (§14.1)."""
    return _REQUEST.pack(VERSION, _ANNOUNCE, 0, 0, _pack_address(client))


def map_request(
    client: Address,
    nonce: bytes,
    transport: Transport,
    internal_port: int,
    *,
    external_port: int = 0,
    external_address: Address = _ANY_IPV4,
    lifetime: int,
) -> bytes:
    """Make, renew (the same nonce, what the server gave as the wish) or remove (`lifetime` 0, no wish) a mapping.

    `lifetime` in seconds. Raises `LocalProtocolError`.
    """
    if len(nonce) != NONCE_SIZE:
        raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    if not 0 < internal_port < 2**16 or not 0 <= external_port < 2**16:
        raise LocalProtocolError(f"{internal_port} or {external_port} is no port")
    if not 0 <= lifetime < 2**32:
        raise LocalProtocolError(f"{lifetime} s is no lifetime")
    return _REQUEST.pack(VERSION, _MAP, 0, lifetime, _pack_address(client)) + _BODY.pack(
        nonce, _PROTOCOLS[transport], internal_port, external_port, _pack_address(external_address)
    )


def parse_response(data: bytes) -> Response:
    """What the server says; options after the message are ignored.

    Raises `RemoteProtocolError`: pcp_bad_size, pcp_bad_version, pcp_bad_opcode, pcp_bad_protocol, pcp_bad_port.
    """
    if not _HEADER.size <= len(data) <= MAX_MESSAGE_SIZE or len(data) % 4:
        raise RemoteProtocolError("pcp_bad_size", f"{len(data)} bytes")
    version, opcode, _, result, lifetime, epoch = _HEADER.unpack_from(data)
    if version != VERSION:
        raise RemoteProtocolError("pcp_bad_version", str(version))
    if opcode not in (_RESPONSE | _ANNOUNCE, _RESPONSE | _MAP):
        raise RemoteProtocolError("pcp_bad_opcode", str(opcode))
    whole = opcode == _RESPONSE | _MAP and len(data) >= _HEADER.size + _BODY.size
    if result != Result.SUCCESS:
        nonce = data[_HEADER.size : _HEADER.size + NONCE_SIZE] if whole else None
        return Refused(epoch, result, lifetime, nonce)
    if opcode == _RESPONSE | _ANNOUNCE:
        return Announced(epoch)
    if not whole:
        raise RemoteProtocolError("pcp_bad_size", f"{len(data)} bytes")
    nonce, protocol, internal, external, address = _BODY.unpack_from(data, _HEADER.size)
    if protocol not in _TRANSPORTS:
        raise RemoteProtocolError("pcp_bad_protocol", str(protocol))
    if lifetime and not (internal and external):
        raise RemoteProtocolError("pcp_bad_port")
    return Mapped(epoch, nonce, _TRANSPORTS[protocol], internal, external, _unpack_address(address), lifetime)


def epoch_lost(before: int, before_at: float, after: int, after_at: float) -> bool:
    """Whether the server lost its mappings between two answers (§8.5; its rule is stricter than RFC 6886 §3.6's).

    `before` and `after` are the epochs told, in s; `before_at` and `after_at` when they came, in s of our clock.
    """
    if after < before - 1:  # one second back: two answers that overtook each other
        return True
    client, server = after_at - before_at, after - before
    return client + 2 < server - server / 16 or server + 2 < client - client / 16


def _pack_address(address: Address) -> bytes:
    return address.packed if address.version == 6 else _MAPPED_PREFIX + address.packed


def _unpack_address(packed: bytes) -> Address:
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
