"""What stands inside a disco box. Pure functions between frozen values and bytes; knows no key and no datagram header.

    ping   type u8=1 | txid 12 | zeros, as many as the sender wishes
    pong   type u8=2 | txid 12 | observed address 16 (IPv4 as IPv4-mapped IPv6) | observed port u16 little-endian
    call   type u8=3 | flags u8 (1: answer, 2: tcp) | id 8 | half round trip u32, us | size of nat u8 | nat |
           count u8 | count times: origin u8 | address 16 | port u16

Bytes after a known message are ignored, so that a newer peer may say more. A ping is never shorter than a pong, so that
nobody can use a node to make more traffic than he sends. A call-me goes through the relay alone.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, get_args

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint

TXID_SIZE = 12  # bytes; random, so that an answer cannot be guessed by who did not see the ping
MAX_PING_SIZE = 65_507  # bytes; the largest UDP payload over IPv4

_PING = 1
_PONG = 2
_CALL_ME = 3
_PING_BODY = struct.Struct("<B12s")
_PONG_BODY = struct.Struct("<B12s16sH")
PAYLOAD_SIZE = _PONG_BODY.size  # bytes; shortest payload that we send, any kind

CALL_ID_SIZE: Final = 8  # bytes
MAX_OFFERS: Final = 16
"""Endpoints in one call-me: a machine with more shows its first ones, and who takes it in asks no more."""
MAX_NAT_SIZE: Final = 32
"""Bytes that say what the sender's NAT does (`overlay.path.nat`); opaque here."""

_CALL_HEAD = struct.Struct("<BB8sIB")
_OFFER = struct.Struct("<B16sH")
_ANSWER, _TCP = 1, 2
_LONGEST_HALF_RTT = 60.0  # s

Origin = Literal["interface", "observed", "mapped", "manual", "predicted"]
"""How a node knows an endpoint of its own: an interface has it; somebody outside saw it; the router was asked for it; a
person said so; the next one that a NAT gives out."""
_ORIGINS: Final[tuple[Origin, ...]] = get_args(Origin)


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


@dataclass(frozen=True, slots=True)
class Offer:
    """An endpoint of the sender."""

    endpoint: Endpoint
    origin: Origin


@dataclass(frozen=True, slots=True)
class CallMe:
    """ "I am about to knock at your endpoints: here are mine, knock too." Offers beyond `MAX_OFFERS` are not sent, and
    those of an origin that the receiver does not know are left out there."""

    id: bytes  # of the attempt, random; the answer repeats it
    answer: bool  # to one; is not answered itself
    way: Literal["udp", "tcp"]
    half_rtt: float = 0.0  # s, half a round trip through the relay as the sender measured it; 0: not known
    nat: bytes = b""  # what the sender's NAT does
    offers: tuple[Offer, ...] = ()  # of `way`


Message = Ping | Pong | CallMe


def encode(message: Message, overhead: int) -> bytes:
    """Payload of a box; `overhead` is what the datagram adds to it in bytes. Raises `LocalProtocolError`."""
    if isinstance(message, CallMe):
        return _encode_call(message)
    if len(message.txid) != TXID_SIZE:
        raise LocalProtocolError(f"a transaction id has {TXID_SIZE} bytes, not {len(message.txid)}")
    if isinstance(message, Ping):
        if message.size > MAX_PING_SIZE:
            raise LocalProtocolError(f"a ping of {message.size} bytes fits no datagram")
        return _PING_BODY.pack(_PING, message.txid).ljust(max(PAYLOAD_SIZE, message.size - overhead), b"\0")
    return _PONG_BODY.pack(_PONG, message.txid, *_packed(message.observed))


def decode(payload: bytes, overhead: int) -> Message:
    """The inverse of `encode`. Raises `RemoteProtocolError`: disco_empty, disco_unknown_message, disco_short_message,
    disco_bad_endpoint, disco_too_many.
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
        return Pong(txid, _endpoint(address, port))
    if payload[0] == _CALL_ME:
        return _decode_call(payload)
    raise RemoteProtocolError("disco_unknown_message", str(payload[0]))


def _encode_call(call: CallMe) -> bytes:
    if len(call.id) != CALL_ID_SIZE or len(call.nat) > MAX_NAT_SIZE:
        raise LocalProtocolError(f"a call-me has an id of {CALL_ID_SIZE} bytes and at most {MAX_NAT_SIZE} of its NAT")
    offers = call.offers[:MAX_OFFERS]
    flags = (_ANSWER if call.answer else 0) | (_TCP if call.way == "tcp" else 0)
    half_rtt = int(min(max(call.half_rtt, 0.0), _LONGEST_HALF_RTT) * 1e6)
    head = _CALL_HEAD.pack(_CALL_ME, flags, call.id, half_rtt, len(call.nat))
    listed = (_OFFER.pack(_ORIGINS.index(offer.origin), *_packed(offer.endpoint)) for offer in offers)
    return b"".join((head, call.nat, bytes([len(offers)]), *listed)).ljust(PAYLOAD_SIZE, b"\0")


def _decode_call(payload: bytes) -> CallMe:
    if len(payload) < _CALL_HEAD.size:
        raise RemoteProtocolError("disco_short_message", "call-me")
    _, flags, id, half_rtt, nat_size = _CALL_HEAD.unpack_from(payload)
    count_at = _CALL_HEAD.size + nat_size
    if len(payload) <= count_at or len(payload) < count_at + 1 + payload[count_at] * _OFFER.size:
        raise RemoteProtocolError("disco_short_message", "call-me")
    if payload[count_at] > MAX_OFFERS or nat_size > MAX_NAT_SIZE:
        raise RemoteProtocolError("disco_too_many", f"{payload[count_at]} endpoints")
    listed = _OFFER.iter_unpack(payload[count_at + 1 : count_at + 1 + payload[count_at] * _OFFER.size])
    return CallMe(
        id=id,
        answer=bool(flags & _ANSWER),
        way="tcp" if flags & _TCP else "udp",
        half_rtt=min(half_rtt / 1e6, _LONGEST_HALF_RTT),
        nat=payload[_CALL_HEAD.size : count_at],
        offers=tuple(
            Offer(_endpoint(address, port), _ORIGINS[origin])
            for origin, address, port in listed
            if origin < len(_ORIGINS)
        ),
    )


def _packed(endpoint: Endpoint) -> tuple[bytes, int]:
    host, port = endpoint
    address = ip_address(host)
    return address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed, port


def _endpoint(address: bytes, port: int) -> Endpoint:
    if port == 0 or not any(address):
        raise RemoteProtocolError("disco_bad_endpoint")
    return canonical_endpoint(str(IPv6Address(address)), port)
