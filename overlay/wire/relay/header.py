"""The 16 bytes in front of every relayed message. Pure functions; knows no client, no key and no address.

    type u8=6 | flags u8=0 | 0 u16 | peer node number u32 | ticket u64 | a message of type 1–5 or 7

Little-endian. Node → relay: the number is the destination's, the ticket the sender's own. Relay → node: the number is
the source's, the ticket the receiver's own. So neither a relay nor a node takes in what a stranger who does not know
the ticket makes up. A ticket is no secret to who reads the line; it guards the relay's service, never the message.
"""

import hmac
import struct
from typing import NamedTuple

from overlay.errors import LocalProtocolError, RemoteProtocolError

RELAY_TYPE = 6
MAX_TICKET = 2**64 - 1

_HEADER = struct.Struct("<BBHIQ")
RELAY_HEADER_SIZE = _HEADER.size  # bytes
_TICKET_AT = RELAY_HEADER_SIZE - 8
_RELAYED_TYPES = frozenset((1, 2, 3, 4, 5, 7))  # no relay in a relay (loops)


class RelayHeader(NamedTuple):
    number: int  # destination on the way to the relay, source on the way from it
    ticket: int  # of the node at this end of the way; u64

    def __repr__(self) -> str:
        return f"RelayHeader(number={self.number})"


def pack_header(number: int, ticket: int) -> bytes:
    """16 bytes. Raises `LocalProtocolError` for values that do not fit."""
    header = bytearray(RELAY_HEADER_SIZE)
    pack_header_into(header, 0, number, ticket)
    return bytes(header)


def pack_header_into(buffer: bytearray | memoryview, offset: int, number: int, ticket: int) -> None:
    """Write the header at `offset`: a relay does so over the header that came. Raises `LocalProtocolError`."""
    if not 0 < number < 2**32 or not 0 <= ticket <= MAX_TICKET:
        raise LocalProtocolError(f"no relay header for node {number}")
    _HEADER.pack_into(buffer, offset, RELAY_TYPE, 0, 0, number, ticket)


def parse_header(datagram: bytes | bytearray | memoryview) -> RelayHeader:
    """Header of a datagram that holds a message as well; the message starts at `RELAY_HEADER_SIZE`.

    Raises `RemoteProtocolError`: relay_short_header, relay_bad_type, relay_bad_flags, relay_bad_number,
    relay_bad_message.
    """
    if len(datagram) <= RELAY_HEADER_SIZE:
        raise RemoteProtocolError("relay_short_header", f"{len(datagram)} bytes")
    message_type, flags, reserved, number, ticket = _HEADER.unpack_from(datagram)
    if message_type != RELAY_TYPE:
        raise RemoteProtocolError("relay_bad_type")
    if flags or reserved:
        raise RemoteProtocolError("relay_bad_flags")
    if number == 0:
        raise RemoteProtocolError("relay_bad_number")
    if datagram[RELAY_HEADER_SIZE] not in _RELAYED_TYPES:
        raise RemoteProtocolError("relay_bad_message", str(datagram[RELAY_HEADER_SIZE]))
    return RelayHeader(number, ticket)


def tickets_equal(one: int, other: int) -> bool:
    """Compare in constant time, so that a ticket cannot be guessed byte by byte."""
    return hmac.compare_digest(one.to_bytes(8, "little"), other.to_bytes(8, "little"))


def blank_tickets(run: bytes, segment: int) -> bytes:
    """The run (datagrams of `segment` > 0 bytes, the last maybe shorter) with zeros for the tickets of its type 6
    datagrams: what somebody may be shown of it."""
    kinds = run[::segment]
    relayed = kinds.count(RELAY_TYPE)
    if not relayed:
        return run
    blanked = bytearray(run)
    if relayed == len(kinds) and segment >= RELAY_HEADER_SIZE:
        for at in range(_TICKET_AT, RELAY_HEADER_SIZE):
            blanked[at::segment] = bytes(len(range(at, len(run), segment)))
        return bytes(blanked)
    for number, kind in enumerate(kinds):
        if kind == RELAY_TYPE:
            start, end = (
                number * segment + _TICKET_AT,
                min((number + 1) * segment, number * segment + RELAY_HEADER_SIZE),
            )
            size = max(0, min(end, len(run)) - start)
            blanked[start : start + size] = bytes(size)
    return bytes(blanked)
