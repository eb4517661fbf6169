"""NAT-PMP messages (RFC 6886). Pure functions between frozen values and bytes; big-endian.

    external address   request   version u8=0 | opcode u8=0
                       response  version u8=0 | 128 | result u16 | epoch u32 | address 4
    mapping            request   version u8=0 | opcode u8 (1 UDP, 2 TCP) | 0 u16 | internal port u16
                                 | suggested external port u16 | lifetime u32
                       response  version u8=0 | 128 + opcode | result u16 | epoch u32 | internal port u16
                                 | external port u16 | lifetime u32

A mapping is removed by asking for lifetime 0 and external port 0 (§3.4). A gateway that speaks another version alone
answers with that version, or with 8 bytes and result 1 (§3.5). The protocol knows no transaction ids: an answer is
believed for the gateway's address that it comes from, and for naming the internal port that was asked.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Literal

from overlay.errors import LocalProtocolError, RemoteProtocolError

VERSION = 0
MAX_MESSAGE_SIZE = 16  # bytes; nothing that a NAT-PMP gateway says is longer

Transport = Literal["udp", "tcp"]

_RESPONSE = 128
_EXTERNAL_ADDRESS = 0
_OPCODES: dict[Transport, int] = {"udp": 1, "tcp": 2}
_TRANSPORTS: dict[int, Transport] = {opcode: transport for transport, opcode in _OPCODES.items()}
_HEADER = struct.Struct(">BBHI")
_ADDRESS_RESPONSE = struct.Struct(">BBHI4s")
_MAPPING_REQUEST = struct.Struct(">BBHHHI")
_MAPPING_RESPONSE = struct.Struct(">BBHIHHI")


class Result(IntEnum):
    """Result codes (§3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """The gateway's external address. `epoch`: seconds since its table of mappings was last lost (§3.6)."""

    epoch: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping made, or removed (`lifetime` 0, and then `external_port` 0). `lifetime` in seconds."""

    epoch: int
    transport: Transport
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway will not. `result` may be a code that this program does not know; `transport` None: the address."""

    epoch: int
    result: int
    transport: Transport | None


Response = ExternalAddress | Mapped | Refused


def external_address_request() -> bytes:
    """What is the external address? It is a fair probe too: every NAT-PMP gateway answers it, and changes nothing."""
    return bytes((VERSION, _EXTERNAL_ADDRESS))


def mapping_request(transport: Transport, internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Make or renew a mapping for `lifetime` s; `external_port` is a wish (0: any). Raises `LocalProtocolError`."""
    if not 0 < internal_port < 2**16 or not 0 <= external_port < 2**16:
        raise LocalProtocolError(f"{internal_port} or {external_port} is no port")
    if not 0 < lifetime < 2**32:
        raise LocalProtocolError(f"{lifetime} s is no lifetime of a mapping")
    return _MAPPING_REQUEST.pack(VERSION, _OPCODES[transport], 0, internal_port, external_port, lifetime)


def removal_request(transport: Transport, internal_port: int) -> bytes:
    """Remove one port's mapping (§3.4). Port 0 would mean all of this host's: raises `LocalProtocolError`."""
    if not 0 < internal_port < 2**16:
        raise LocalProtocolError(f"{internal_port} is no port")
    return _MAPPING_REQUEST.pack(VERSION, _OPCODES[transport], 0, internal_port, 0, 0)


def parse_response(data: bytes) -> Response:
    """What the gateway says.

    Raises `RemoteProtocolError`: nat_pmp_bad_size, nat_pmp_bad_version, nat_pmp_bad_opcode, nat_pmp_bad_port.
    """
    if not _HEADER.size <= len(data) <= MAX_MESSAGE_SIZE:
        raise RemoteProtocolError("nat_pmp_bad_size", f"{len(data)} bytes")
    version, opcode, result, epoch = _HEADER.unpack_from(data)
    if version != VERSION:
        raise RemoteProtocolError("nat_pmp_bad_version", str(version))
    transport = _TRANSPORTS.get(opcode - _RESPONSE)
    if transport is None and opcode != _RESPONSE | _EXTERNAL_ADDRESS:
        raise RemoteProtocolError("nat_pmp_bad_opcode", str(opcode))
    if result != Result.SUCCESS:
        return Refused(epoch, result, transport)
    if transport is None:
        if len(data) != _ADDRESS_RESPONSE.size:
            raise RemoteProtocolError("nat_pmp_bad_size", f"{len(data)} bytes")
        return ExternalAddress(epoch, IPv4Address(data[_HEADER.size :]))
    if len(data) != _MAPPING_RESPONSE.size:
        raise RemoteProtocolError("nat_pmp_bad_size", f"{len(data)} bytes")
    *_, internal, external, lifetime = _MAPPING_RESPONSE.unpack(data)
    if lifetime and not (internal and external):
        raise RemoteProtocolError("nat_pmp_bad_port")
    return Mapped(epoch, transport, internal, external, lifetime)
