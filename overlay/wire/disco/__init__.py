"""Disco: how two nodes, or a node and its relay, learn whether datagrams get through and from which endpoint.

Codecs alone: no state, no timers; what to ping and what an answer means is `overlay.path`'s business.
"""

from overlay.wire.disco.key import DISCO_TYPE, DISCO_VERSION, HEADER_SIZE, MIN_DATAGRAM_SIZE, DiscoKey, sender
from overlay.wire.disco.messages import (
    CALL_ID_SIZE,
    MAX_OFFERS,
    MAX_PING_SIZE,
    TXID_SIZE,
    CallMe,
    Message,
    Offer,
    Origin,
    Ping,
    Pong,
)

__all__ = [
    "CALL_ID_SIZE",
    "DISCO_TYPE",
    "DISCO_VERSION",
    "HEADER_SIZE",
    "MAX_OFFERS",
    "MAX_PING_SIZE",
    "MIN_DATAGRAM_SIZE",
    "TXID_SIZE",
    "CallMe",
    "DiscoKey",
    "Message",
    "Offer",
    "Origin",
    "Ping",
    "Pong",
    "sender",
]
