"""Types 1, 2 and 3, the handshake messages, as values (paper §5.4.2, §5.4.3, §5.4.7). No keys, no state.

All little-endian; the type is read as u32, so that the three reserved bytes must be zero; lengths are exact.

    type 1 initiation, 148 bytes     type 2 response, 92 bytes        type 3 cookie reply, 64 bytes
      0   4  type                      0   4  type                      0   4  type
      4   4  sender index              4   4  sender index              4   4  receiver index
      8  32  ephemeral                 8   4  receiver index            8  24  nonce
     40  48  box(static key)          12  32  ephemeral                32  32  box(cookie)
     88  28  box(timestamp)           44  16  box(nothing)
    116  16  mac1                     60  16  mac1
    132  16  mac2                     76  16  mac2
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from overlay.errors import RemoteProtocolError

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3

MAC_SIZE: Final = 16
MACS_SIZE: Final = 2 * MAC_SIZE
"""Types 1 and 2 end with mac1 and mac2."""

_TYPE = struct.Struct("<I")
_INITIATION = struct.Struct("<II32s48s28s32x")
_RESPONSE = struct.Struct("<III32s16s32x")
_COOKIE_REPLY = struct.Struct("<II24s32s")

SIZES: Final = {INITIATION: _INITIATION.size, RESPONSE: _RESPONSE.size, COOKIE_REPLY: _COOKIE_REPLY.size}


@dataclass(frozen=True, slots=True)
class Initiation:
    """Type 1 without its macs, which are over the bytes and belong to `cookie`."""

    sender_index: int
    ephemeral: bytes
    static_box: bytes = field(repr=False)
    timestamp_box: bytes = field(repr=False)

    def pack(self) -> bytes:
        """The first 116 bytes."""
        packed = _INITIATION.pack(INITIATION, self.sender_index, self.ephemeral, self.static_box, self.timestamp_box)
        return packed[:-MACS_SIZE]


@dataclass(frozen=True, slots=True)
class Response:
    """Type 2 without its macs."""

    sender_index: int
    receiver_index: int
    ephemeral: bytes
    empty_box: bytes = field(repr=False)

    def pack(self) -> bytes:
        """The first 60 bytes."""
        packed = _RESPONSE.pack(RESPONSE, self.sender_index, self.receiver_index, self.ephemeral, self.empty_box)
        return packed[:-MACS_SIZE]


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Type 3. `receiver_index` is the sender index of the message that it answers."""

    receiver_index: int
    nonce: bytes
    cookie_box: bytes = field(repr=False)

    def pack(self) -> bytes:
        """All 64 bytes."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY, self.receiver_index, self.nonce, self.cookie_box)


def parse(datagram: bytes) -> Initiation | Response | CookieReply:
    """Raises `RemoteProtocolError`: `short_header`, `unknown_type`, `bad_length`."""
    if len(datagram) < _TYPE.size:
        raise RemoteProtocolError("short_header")
    (type_,) = _TYPE.unpack_from(datagram)
    size = SIZES.get(type_)
    if size is None:
        raise RemoteProtocolError("unknown_type")
    if len(datagram) != size:
        raise RemoteProtocolError("bad_length")
    if type_ == INITIATION:
        return Initiation(*_INITIATION.unpack(datagram)[1:])
    if type_ == RESPONSE:
        return Response(*_RESPONSE.unpack(datagram)[1:])
    return CookieReply(*_COOKIE_REPLY.unpack(datagram)[1:])
