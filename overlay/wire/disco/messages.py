"""What stands inside a disco box. Pure functions between frozen values and bytes; knows no key and no datagram header.

    ping   type u8=1 | txid 12 | zeros, as many as the sender wishes
    pong   type u8=2 | txid 12 | observed address 16 (IPv4 as IPv4-mapped IPv6) | observed port u16 little-endian

Bytes after a known message are ignored, so that a newer peer may say more. A ping is never shorter than a pong, so that
nobody can use a node to make more traffic than he sends.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint

TXID_SIZE = 12  # bytes; random, so that an answer cannot be guessed by who did not see the ping
MAX_PING_SIZE = 65_507  # bytes; the largest UDP payload over IPv4

_PING = 1
_PONG = 2
_PING_BODY = struct.Struct("<B12s")
_PONG_BODY = struct.Struct("<B12s16sH")
PAYLOAD_SIZE = _PONG_BODY.size  # bytes; shortest payload that we send, either kind


@dataclass(frozen=True, slots=True)
class Ping:
    """`size`: bytes of the whole datagram; the wished one when sealing (0: the shortest), the real one when opened."""

    txid: bytes
    size: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping, to the address that it came from: `observed`."""

    txid: bytes
    observed: Endpoint


Message = Ping | Pong


def encode(message: Message, overhead: int) -> bytes:
    """Payload of a box; `overhead` is what the datagram adds to it in bytes. Raises `LocalProtocolError`."""
    if len(message.txid) != TXID_SIZE:
        raise LocalProtocolError(f"a transaction id has {TXID_SIZE} bytes, not {len(message.txid)}")
    if isinstance(message, Ping):
        if message.size > MAX_PING_SIZE:
            raise LocalProtocolError(f"a ping of {message.size} bytes fits no datagram")
        return _PING_BODY.pack(_PING, message.txid).ljust(max(PAYLOAD_SIZE, message.size - overhead), b"\0")
    host, port = message.observed
    address = ip_address(host)
    packed = address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed
    return _PONG_BODY.pack(_PONG, message.txid, packed, port)


def decode(payload: bytes, overhead: int) -> Message:
    """The inverse of `encode`. Raises `RemoteProtocolError`: disco_empty, disco_unknown_message, disco_short_message,
    disco_bad_endpoint.
    """
    if not payload:
        raise RemoteProtocolError("disco_empty")
    if payload[0] == _PING:
        if len(payload) < _PING_BODY.size:
            raise RemoteProtocolError("disco_short_message", "ping")
        return Ping(_PING_BODY.unpack_from(payload)[1], len(payload) + overhead)
    if payload[0] == _PONG:
        if len(payload) < _PONG_BODY.size:
            raise RemoteProtocolError("disco_short_message", "pong")
        _, txid, address, port = _PONG_BODY.unpack_from(payload)
        if port == 0 or not any(address):
            raise RemoteProtocolError("disco_bad_endpoint")
        return Pong(txid, canonical_endpoint(str(IPv6Address(address)), port))
    raise RemoteProtocolError("disco_unknown_message", str(payload[0]))
