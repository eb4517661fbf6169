"""STUN (RFC 8489) as far as it tells a node what its NAT does (RFC 5780): Binding requests and their answers.

Codecs alone: no state, no timers; what to ask and what an answer means is `overlay.path`'s business.
"""

from overlay.wire.stun.attributes import FINGERPRINT_SIZE, HEADER_SIZE, MAGIC_COOKIE, PORT, TRANSACTION_ID_SIZE
from overlay.wire.stun.messages import (
    MAX_GAIN,
    ErrorResponse,
    Message,
    Request,
    Response,
    decode,
    encode,
    message_size,
)

__all__ = [
    "FINGERPRINT_SIZE",
    "HEADER_SIZE",
    "MAGIC_COOKIE",
    "MAX_GAIN",
    "PORT",
    "TRANSACTION_ID_SIZE",
    "ErrorResponse",
    "Message",
    "Request",
    "Response",
    "decode",
    "encode",
    "message_size",
]
