"""A question as it came, read by our own bounds before it is answered, and the replies that refuse one.

Only what an answer depends on is taken over: the question, the flags, and that there is EDNS. A message of 64 KiB costs
a walk over its records, and no object for any of them. RFC 1035 section 4.1, RFC 6891.
"""

import struct
from typing import Final

from dnslib import CLASS, EDNS0, RCODE, DNSHeader, DNSLabel, DNSQuestion, DNSRecord

from overlay_dns.message import HEADER_SIZE, LARGEST_UDP_SIZE, question_end
from overlay_dns.records import OPT, Record, parse

BADVERS: Final = 16
_QR, _OPCODE_MASK, _RD, _RA, _CD, _DO = 0x80, 0x78, 0x01, 0x80, 0x10, 0x8000
_TRANSFERS: Final = frozenset({251, 252})  # IXFR, AXFR: nobody copies our zones
_NO_DATA: Final = frozenset({OPT, 249, 250, 253, 254})
"""OPT, TKEY, TSIG, MAILB, MAILA: no records that are at names."""
_NO_CLASS: Final = frozenset({0, 254, 255})
"""Reserved; NONE and ANY, which are for updates (RFC 2136)."""


def parse_query(data: bytes) -> DNSRecord | int | None:
    """A query that can be answered; or the RCODE to refuse it with; or None for what deserves no reply at all."""
    if len(data) < HEADER_SIZE or data[2] & _QR:  # a reply: answering it could loop
        return None
    if data[2] & _OPCODE_MASK:
        return int(RCODE.NOTIMP)
    if data[4:10] != b"\0\1\0\0\0\0":  # one question, no answer, no authority
        return int(RCODE.FORMERR)
    message = parse(data, to_the_end=False)
    if message is None:
        return int(RCODE.FORMERR)
    options = [record for record in message.records if record.rtype == OPT]
    if len(options) > 1 or not all(_is_whole(data, record) for record in options):
        return int(RCODE.FORMERR)
    if options and options[0].ttl >> 16 & 0xFF:
        return BADVERS
    qclass = int.from_bytes(data[message.question_end - 2 : message.question_end])
    if qclass in _NO_CLASS or message.qtype in _NO_DATA:
        return int(RCODE.FORMERR)
    if qclass != CLASS.IN or message.qtype in _TRANSFERS:
        return int(RCODE.REFUSED)
    header = DNSHeader(id=int.from_bytes(data[:2]), rd=data[2] & _RD)
    header.cd = int(bool(data[3] & _CD))
    query = DNSRecord(header, q=DNSQuestion(_name(data), message.qtype, qclass))
    if options:
        query.add_ar(EDNS0(udp_len=options[0].rclass, flags="do" if options[0].ttl & _DO else ""))
    return query


def short_reply(data: bytes, rcode: int) -> bytes:
    """A reply to the query `data` that carries a response code alone, an extended one with EDNS (RFC 6891 section
    6.1.3); with the question, where it can be read: many take no answer without it."""
    end = question_end(data)
    flags = bytes((_QR | data[2] & (_OPCODE_MASK | _RD), _RA | data[3] & _CD | rcode & 15))
    message = parse(data, to_the_end=False)
    options = [record for record in message.records if record.rtype == OPT] if message is not None else []
    counts = struct.pack(">HHHH", end is not None, 0, 0, bool(options))
    reply = data[:2] + flags + counts + (data[HEADER_SIZE:end] if end is not None else b"")
    if options:
        reply += struct.pack(">BHHBBHH", 0, OPT, LARGEST_UDP_SIZE, rcode >> 4, 0, options[0].ttl & _DO, 0)
    return reply


def _is_whole(data: bytes, record: Record) -> bool:
    """Whether the options of an OPT record fill it: code, length, data (RFC 6891 section 6.1.2)."""
    at, end = record.data_at, record.data_at + record.length
    while at + 4 <= end:
        at += 4 + int.from_bytes(data[at + 2 : at + 4])
    return at == end


def _name(data: bytes) -> DNSLabel:
    """The question's, which `parse` has found whole and uncompressed."""
    labels, offset = [], HEADER_SIZE
    while length := data[offset]:
        labels.append(data[offset + 1 : offset + 1 + length])
        offset += 1 + length
    return DNSLabel(labels)
