"""What is looked at in the bytes of a DNS message. RFC 1035 section 4.1."""

import struct

from dnslib import DNSRecord

_HEADER = struct.Struct(">HHHHHH")  # id, flags, counts of question, answer, authority, additional
_QR, _TC = 0x8000, 0x0200
HEADER_SIZE = _HEADER.size
LONGEST_NAME = 255  # bytes, RFC 1035 section 2.3.4
PLAIN_UDP_SIZE = 512
"""Largest UDP answer for a client without EDNS (RFC 1035 section 4.2.1)."""
LARGEST_UDP_SIZE = 1232
"""Largest that we send, whatever the client offers: fits one datagram on every path (DNS flag day 2020)."""


def udp_limit(query: DNSRecord) -> int:
    """How many bytes the client takes in one datagram (RFC 6891 section 6.2.3)."""
    sizes = [int(record.edns_len) for record in query.ar if record.rtype == 41]
    return min(max(PLAIN_UDP_SIZE, *sizes), LARGEST_UDP_SIZE) if sizes else PLAIN_UDP_SIZE


def question_end(data: bytes) -> int | None:
    """Offset behind the one question of a message, or None if it has none that is whole, uncompressed and as short as
    names are."""
    if len(data) < HEADER_SIZE or _HEADER.unpack_from(data)[2] != 1:
        return None
    offset = HEADER_SIZE
    while offset < len(data) and data[offset]:
        if data[offset] > 63:
            return None
        offset += data[offset] + 1
    if offset - HEADER_SIZE >= LONGEST_NAME:
        return None
    offset += 5
    return offset if offset <= len(data) else None


def is_reply_to(reply: bytes, query: bytes) -> bool:
    """Whether `reply` answers `query`: same id and question (RFC 5452 section 9.1).

    Some servers leave the question out when they truncate; what counts then is the answer over TCP, checked in turn.
    """
    query_end, reply_end = question_end(query), question_end(reply)
    if query_end is None or len(reply) < HEADER_SIZE or reply[:2] != query[:2] or not reply[2] & (_QR >> 8):
        return False
    if len(reply) == HEADER_SIZE:
        return is_truncated(reply)
    return reply_end == query_end and reply[HEADER_SIZE:reply_end].lower() == query[HEADER_SIZE:query_end].lower()


def is_truncated(reply: bytes) -> bool:
    return bool(_HEADER.unpack_from(reply)[1] & _TC)
