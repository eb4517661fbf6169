"""Binding requests and what answers them, between frozen values and bytes (RFC 8489, RFC 5780).

What we send ends with FINGERPRINT, where it stays within what the answer may weigh; it is checked where it is there.
SOFTWARE is not sent: it would tell strangers what to attack. MAPPED-ADDRESS is understood and not sent: who needs it
(RFC 3489) sends no magic cookie, and is a stranger to this port.

An answer is never more than `MAX_GAIN` times as long as its request, so that a forged source address gains little:
what fits goes in, the most useful first.
"""

import struct
from dataclasses import dataclass
from typing import Final

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.stun import attributes as wire

MAX_GAIN: Final = 4
"""Bytes of an answer for each byte of its request, at most. A request without attributes has 20; by IPv4, header,
XOR-MAPPED-ADDRESS, OTHER-ADDRESS, RESPONSE-ORIGIN and FINGERPRINT have 64."""

MAX_SIZE: Final = 548
"""Bytes of a message that we look at: what fits any path without fragments (§6.1), IPv4's least MTU less headers."""

MAX_ATTRIBUTES: Final = 32
"""Attributes that we look at. No client has more than a dozen."""

UNKNOWN_ATTRIBUTE: Final = 420  # §14.8: unknown comprehension-required attributes
_REASONS: Final = {UNKNOWN_ATTRIBUTE: "Unknown Attribute"}
_REQUEST: Final = 0x0001
_SUCCESS: Final = 0x0101
_ERROR: Final = 0x0111
_CHANGE_IP, _CHANGE_PORT = 0x04, 0x02  # RFC 5780 §7.2


@dataclass(frozen=True, slots=True)
class Request:
    """A Binding request. `unknown`: types of its attributes that must be understood, and are not."""

    transaction_id: bytes
    change_address: bool = False
    change_port: bool = False
    response_port: int | None = None  # where to at the sender's address, instead of its source port
    unknown: tuple[int, ...] = ()
    size: int = 0  # bytes of the datagram, when decoded


@dataclass(frozen=True, slots=True)
class Response:
    """A Binding success response."""

    transaction_id: bytes
    mapped: Endpoint  # where the request came from
    origin: Endpoint | None = None  # where this was sent from
    other: Endpoint | None = None  # where it is sent from when address and port are to be changed


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    transaction_id: bytes
    code: int = UNKNOWN_ATTRIBUTE
    unknown: tuple[int, ...] = ()


Message = Request | Response | ErrorResponse


def message_size(header: bytes | memoryview) -> int:
    """Bytes of the whole message that begins with this header: what a stream must have before `decode`.

    Raises `RemoteProtocolError`: stun_short_header, stun_bad_type, stun_bad_cookie, stun_bad_length.
    """
    if len(header) < wire.HEADER_SIZE:
        raise RemoteProtocolError("stun_short_header", f"{len(header)} bytes")
    kind, length, cookie, _ = wire.HEADER.unpack_from(header)
    if kind not in (_REQUEST, _SUCCESS, _ERROR):
        raise RemoteProtocolError("stun_bad_type", f"0x{kind:04x}")
    if cookie != wire.MAGIC_COOKIE:
        raise RemoteProtocolError("stun_bad_cookie")
    size = wire.HEADER_SIZE + int(length)
    if length % 4 or size > MAX_SIZE:
        raise RemoteProtocolError("stun_bad_length", f"{length} bytes")
    return size


def encode(message: Message, limit: int = MAX_SIZE) -> bytes:
    """One message of at most `limit` bytes: what is optional and does not fit is left out.

    Raises `LocalProtocolError` for a wrong transaction id or endpoint, or if the least of it does not fit.
    """
    if len(message.transaction_id) != wire.TRANSACTION_ID_SIZE:
        raise LocalProtocolError(f"a transaction id has 12 bytes, not {len(message.transaction_id)}")
    kind, needed, optional = _parts(message)
    body = b"".join(needed)
    if wire.HEADER_SIZE + len(body) > limit:
        raise LocalProtocolError(f"a message of {wire.HEADER_SIZE + len(body)} bytes, where {limit} are allowed")
    for part in optional:
        if wire.HEADER_SIZE + len(body) + len(part) <= limit:
            body += part
    if wire.HEADER_SIZE + len(body) + wire.FINGERPRINT_SIZE > limit:
        return _header(kind, len(body), message.transaction_id) + body
    whole = _header(kind, len(body) + wire.FINGERPRINT_SIZE, message.transaction_id) + body
    return whole + wire.attribute(wire.FINGERPRINT, wire.fingerprint(whole))


def decode(datagram: bytes | memoryview) -> Message:
    """The inverse of `encode`, for what anybody sends.

    Raises `RemoteProtocolError`: those of `message_size`, stun_bad_attribute, stun_bad_address, stun_bad_error,
    stun_bad_fingerprint, stun_no_address, stun_no_error.
    """
    size = message_size(datagram)
    if size != len(datagram):
        raise RemoteProtocolError("stun_bad_length", f"{len(datagram)} bytes, not {size}")
    data = bytes(datagram)
    kind, _, _, transaction_id = wire.HEADER.unpack_from(data)
    found = _attributes(data)
    if kind == _REQUEST:
        return _request(transaction_id, found, size)
    if kind == _SUCCESS:
        return _response(transaction_id, found)
    if wire.ERROR_CODE not in found:
        raise RemoteProtocolError("stun_no_error")
    return ErrorResponse(
        transaction_id,
        _error_code(found[wire.ERROR_CODE]),
        _unknown_attributes(found.get(wire.UNKNOWN_ATTRIBUTES, b"")),
    )


# inside ---------------------------------------------------------------------------------------------------------------


def _header(kind: int, length: int, transaction_id: bytes) -> bytes:
    return wire.HEADER.pack(kind, length, wire.MAGIC_COOKIE, transaction_id)


def _parts(message: Message) -> tuple[int, list[bytes], list[bytes]]:
    """Type of the message, attributes that it must have, and those that it may have, the most useful first."""
    match message:
        case Request():
            needed = []
            flags = message.change_address * _CHANGE_IP | message.change_port * _CHANGE_PORT
            if flags:
                needed.append(wire.attribute(wire.CHANGE_REQUEST, flags.to_bytes(4, "big")))
            if message.response_port is not None:
                needed.append(wire.attribute(wire.RESPONSE_PORT, struct.pack(">HH", message.response_port, 0)))
            return _REQUEST, needed, []
        case Response():
            mapped = wire.xor_address(wire.pack_address(message.mapped), message.transaction_id)
            others = ((wire.OTHER_ADDRESS, message.other), (wire.RESPONSE_ORIGIN, message.origin))
            optional = [wire.attribute(kind, wire.pack_address(each)) for kind, each in others if each is not None]
            return _SUCCESS, [wire.attribute(wire.XOR_MAPPED_ADDRESS, mapped)], optional
        case ErrorResponse():
            reason = _REASONS.get(message.code, "").encode()
            code = struct.pack(">HBB", 0, message.code // 100, message.code % 100) + reason
            kinds = struct.pack(f">{len(message.unknown)}H", *message.unknown)
            # A list that is too long for the answer goes without: the code says enough (§6.3.1 would have all).
            listed = [wire.attribute(wire.UNKNOWN_ATTRIBUTES, kinds)] if message.unknown else []
            return _ERROR, [wire.attribute(wire.ERROR_CODE, code)], listed


def _attributes(data: bytes) -> dict[int, bytes]:
    """The first attribute of each type (§14: later ones are ignored). FINGERPRINT is last and right, or not there."""
    found: dict[int, bytes] = {}
    for number, (kind, value, at) in enumerate(wire.attributes(memoryview(data)[wire.HEADER_SIZE :])):
        if number >= MAX_ATTRIBUTES:
            raise RemoteProtocolError("stun_bad_attribute", "too many")
        if kind == wire.FINGERPRINT:
            end = wire.HEADER_SIZE + at
            if end + wire.FINGERPRINT_SIZE != len(data) or value != wire.fingerprint(data[:end]):
                raise RemoteProtocolError("stun_bad_fingerprint")
        found.setdefault(kind, value)
    return found


def _request(transaction_id: bytes, found: dict[int, bytes], size: int) -> Request:
    understood = (wire.CHANGE_REQUEST, wire.RESPONSE_PORT, wire.PADDING)
    unknown = tuple(kind for kind in found if kind < wire.COMPREHENSION_OPTIONAL and kind not in understood)
    flags = _flags(found[wire.CHANGE_REQUEST]) if wire.CHANGE_REQUEST in found else 0
    port = _port(found[wire.RESPONSE_PORT]) if wire.RESPONSE_PORT in found else None
    return Request(transaction_id, bool(flags & _CHANGE_IP), bool(flags & _CHANGE_PORT), port, unknown, size)


def _flags(value: bytes) -> int:
    if len(value) != 4:
        raise RemoteProtocolError("stun_bad_attribute", "CHANGE-REQUEST")
    return int.from_bytes(value, "big")


def _port(value: bytes) -> int:
    if len(value) not in (2, 4) or value[:2] == b"\0\0":  # RFC 5780 has 16 bits, and 16 more of padding by its rule
        raise RemoteProtocolError("stun_bad_attribute", "RESPONSE-PORT")
    return int.from_bytes(value[:2], "big")


def _response(transaction_id: bytes, found: dict[int, bytes]) -> Response:
    if wire.XOR_MAPPED_ADDRESS in found:
        mapped = wire.unpack_address(wire.xor_address(found[wire.XOR_MAPPED_ADDRESS], transaction_id))
    elif wire.MAPPED_ADDRESS in found:
        mapped = wire.unpack_address(found[wire.MAPPED_ADDRESS])
    else:
        raise RemoteProtocolError("stun_no_address")
    origin, other = (
        wire.unpack_address(found[kind]) if kind in found else None
        for kind in (wire.RESPONSE_ORIGIN, wire.OTHER_ADDRESS)
    )
    return Response(transaction_id, canonical_endpoint(*mapped), origin, other)


def _error_code(value: bytes) -> int:
    if len(value) < 4 or not 3 <= value[2] & 0x07 <= 6 or value[3] > 99:
        raise RemoteProtocolError("stun_bad_error")
    return (value[2] & 0x07) * 100 + value[3]


def _unknown_attributes(value: bytes) -> tuple[int, ...]:
    if len(value) % 2:
        raise RemoteProtocolError("stun_bad_error", "UNKNOWN-ATTRIBUTES")
    return struct.unpack(f">{len(value) // 2}H", value)
