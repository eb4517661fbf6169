"""Disco datagrams: sealing and opening. Knows one pair of nodes; knows no address and keeps no state between calls.

    type u8=7 | version u8=1 | 0 u16 | sender node number u32 | nonce 24 | XChaCha20-Poly1305 box

Little-endian. The first 8 bytes are the box's associated data. The key is BLAKE2s-256("overlay disco v1" ‖ X25519(own
private, peer public)): the same at both ends, so it is the sender's number under the box that tells the two directions
apart. Whoever opens a datagram takes the key of the node that `sender` names; one's own number is never among those,
and so a reflected datagram fails.

A disco datagram may be replayed by who saw it. What it says is therefore never more than a hint: a ping is answered to
where it came from and makes that a candidate, and only a pong to a fresh transaction id proves anything.
"""

import hashlib
import struct

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.disco.messages import PAYLOAD_SIZE, Message, decode, encode
from overlay.wire.wireguard.primitives import dh, xaead_open, xaead_seal

DISCO_TYPE = 7
DISCO_VERSION = 1
NONCE_SIZE = 24  # bytes
TAG_SIZE = 16  # bytes

_LABEL = b"overlay disco v1"
_HEADER = struct.Struct("<BBHI")
HEADER_SIZE = _HEADER.size  # bytes
_BOX_AT = HEADER_SIZE + NONCE_SIZE
_OVERHEAD = _BOX_AT + TAG_SIZE
MIN_DATAGRAM_SIZE = _OVERHEAD + PAYLOAD_SIZE  # bytes; every datagram that we seal has at least this length


def sender(datagram: bytes | bytearray | memoryview) -> int:
    """Number of the node that the datagram claims to come from: whose key to open it with.

    Raises `RemoteProtocolError`: disco_short_header, disco_bad_type, disco_bad_version, disco_bad_sender.
    """
    if len(datagram) <= _OVERHEAD:
        raise RemoteProtocolError("disco_short_header", f"{len(datagram)} bytes")
    message_type, version, reserved, number = _HEADER.unpack_from(datagram)
    if message_type != DISCO_TYPE or reserved:
        raise RemoteProtocolError("disco_bad_type")
    if version != DISCO_VERSION:
        raise RemoteProtocolError("disco_bad_version", str(version))
    if number == 0:
        raise RemoteProtocolError("disco_bad_sender")
    return int(number)


class DiscoKey:
    """What two nodes seal their disco datagrams with. Making one costs an X25519: make it once per peer."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes, public: bytes) -> None:
        """`private` ours, `public` the peer's. Raises `RemoteProtocolError("low_order_point")`."""
        self._key = hashlib.blake2s(_LABEL + dh(private, public)).digest()

    def __repr__(self) -> str:
        return "<DiscoKey>"

    def seal(self, message: Message, own_number: int, nonce: bytes) -> bytes:
        """One datagram. `nonce`: 24 random bytes, never the same twice. Raises `LocalProtocolError`."""
        if len(nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
        if not 0 < own_number < 2**32:
            raise LocalProtocolError(f"{own_number} is no node number")
        header = _HEADER.pack(DISCO_TYPE, DISCO_VERSION, 0, own_number)
        return header + nonce + xaead_seal(self._key, nonce, encode(message, _OVERHEAD), header)

    def open(self, datagram: bytes | bytearray | memoryview) -> Message:
        """What the peer says. Raises `RemoteProtocolError`: those of `sender` and of `messages.decode`, and bad_tag."""
        sender(datagram)
        data = bytes(datagram)
        plaintext = xaead_open(self._key, data[HEADER_SIZE:_BOX_AT], data[_BOX_AT:], data[:HEADER_SIZE])
        return decode(plaintext, _OVERHEAD)
