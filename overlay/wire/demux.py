"""What a datagram on the shared UDP port is, by its first bytes (in the spirit of RFC 9443).

Our message types stand in the first byte, 1 to 7. QUIC sets the fixed bit 0x40 in every packet, or the bit 0x80 in a
version negotiation (RFC 9000 §17), as long as nobody agrees to grease it (RFC 9287), which we do not. STUN's Binding
messages begin with 00 or 01, then 01 or 11, and carry the magic cookie at byte 4 (RFC 8489 §5). Our type 1 begins with
01 00, and what stands at its byte 4 is random, so that it takes both to tell.
"""

from typing import Final, Literal

Kind = Literal["ours", "quic", "stun", "unknown"]

QUIC_FIRST: Final = 0x40
"""A datagram whose first byte is at least this is QUIC's: the one comparison that a hot path needs."""

_LAST_TYPE: Final = 7
_STUN_COOKIE: Final = b"\x21\x12\xa4\x42"
_STUN_SECOND: Final = (0x01, 0x11)  # method Binding, and one bit of the class (RFC 8489 §5, figure 3)
_STUN_HEADER_SIZE: Final = 20


def kind_of(datagram: bytes | memoryview) -> Kind:
    """Whom it is for; whether it is well-formed is for that one to find out. An empty one is unknown."""
    if not datagram:
        return "unknown"
    first = datagram[0]
    if first >= QUIC_FIRST:
        return "quic"
    if (
        len(datagram) >= _STUN_HEADER_SIZE
        and first <= 1
        and datagram[1] in _STUN_SECOND
        and datagram[4:8] == _STUN_COOKIE
    ):
        return "stun"
    return "ours" if 1 <= first <= _LAST_TYPE else "unknown"
