"""Disco: how two nodes, or a node and its relay, learn whether datagrams get through and from which endpoint.

Codecs alone: no state, no timers; what to ping and what an answer means is `overlay.path`'s business.
"""

from overlay.wire.disco.key import DISCO_TYPE, DISCO_VERSION, HEADER_SIZE, MIN_DATAGRAM_SIZE, DiscoKey, sender
from overlay.wire.disco.messages import MAX_PING_SIZE, TXID_SIZE, Message, Ping, Pong

__all__ = [
    "DISCO_TYPE",
    "DISCO_VERSION",
    "HEADER_SIZE",
    "MAX_PING_SIZE",
    "MIN_DATAGRAM_SIZE",
    "TXID_SIZE",
    "DiscoKey",
    "Message",
    "Ping",
    "Pong",
    "sender",
]
