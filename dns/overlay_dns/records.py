"""Where the records of a DNS message stand, read without building objects of them. RFC 1035 section 4.1, RFC 6891.

    | id 2 | flags 2 | counts 4 x 2 | name, type 2, class 2 | records: name, type 2, class 2, TTL 4, length 2, data |

What comes from an upstream is hostile: `parse` returns a message that is whole to its last byte, or None.
"""

import struct
from typing import Final, NamedTuple

from overlay_dns.message import HEADER_SIZE, question_end

SOA: Final = 6
CNAME: Final = 5
DNAME: Final = 39
OPT: Final = 41
ANY: Final = 255
RECORD_LIMIT: Final = 1024
"""Records of one message that are read; a whole 64 KiB of addresses has 4,096, and nobody asks for that by name."""

ALIAS_LIMIT: Final = 16
"""Aliases in a row that are followed; what serves people has three or four."""

_COUNTS: Final = struct.Struct(">HHH")
_RECORD: Final = struct.Struct(">HHIH")


class Record(NamedTuple):
    section: int  # 0 answer, 1 authority, 2 additional
    name_at: int  # offset of the owner's name
    rtype: int
    rclass: int
    ttl: int  # seconds; of an OPT record: extended RCODE, version and flags
    ttl_at: int  # offset of the TTL in the message
    data_at: int
    length: int


class Message(NamedTuple):
    question_end: int
    qtype: int
    rcode: int  # without the extended bits
    records: tuple[Record, ...]


def parse(data: bytes, *, to_the_end: bool = True) -> Message | None:
    """The message's records in order, or None if it is not whole, has no one question, or (`to_the_end`) bytes are left
    over."""
    offset = question_end(data)
    if offset is None:
        return None
    end, records = offset, []
    counts = _COUNTS.unpack_from(data, 6)
    if sum(counts) > RECORD_LIMIT:
        return None
    for section, count in enumerate(counts):
        for _ in range(count):
            offset_of_name = offset
            at = _skip_name(data, offset)
            if at is None or at + _RECORD.size > len(data):
                return None
            rtype, rclass, ttl, length = _RECORD.unpack_from(data, at)
            data_at = at + _RECORD.size
            offset = data_at + length
            if offset > len(data):
                return None
            records.append(Record(section, offset_of_name, rtype, rclass, ttl, at + 4, data_at, length))
    if to_the_end and offset != len(data):
        return None
    return Message(end, int.from_bytes(data[end - 4 : end - 2]), data[3] & 15, tuple(records))


def _skip_name(data: bytes, offset: int) -> int | None:
    """Offset behind a name. Pointers are not followed, so that none can lead in a circle."""
    while offset < len(data):
        length = data[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            return None
        offset += 1 + length
    return None


def name_at(data: bytes, offset: int) -> bytes | None:
    """The name that stands at `offset`, uncompressed and in small letters; None if it is none. RFC 1035 section 4.1.4.

    Pointers lead back, ever further: so they end.
    """
    name, limit = b"", len(data)
    while offset < limit:
        length = data[offset]
        if length >= 0xC0:
            pointed = int.from_bytes(data[offset : offset + 2]) & 0x3FFF
            if offset + 2 > len(data) or pointed >= offset:
                return None
            limit, offset = offset, pointed
            continue
        if length > 63 or offset + 1 + length > len(data) or len(name) + 1 + length > 255:
            return None
        name += data[offset : offset + 1 + length]
        if length == 0:
            return name.lower()
        offset += 1 + length
    return None


def is_to_the_point(message: Message, data: bytes) -> bool:
    """Whether each record in the answer section belongs to the name asked for, or to one that an alias led to.

    Else somebody's name server could slip in addresses of others' names, and some clients would take them.
    """
    names = {name_at(data, HEADER_SIZE)}
    left = [(name_at(data, record.name_at), record) for record in message.records if record.section == 0]
    for _ in range(ALIAS_LIMIT):
        others = []
        for name, record in left:
            if name in names:
                if record.rtype == CNAME:
                    names.add(name_at(data, record.data_at))
            elif record.rtype != DNAME or name is None or not any(_is_below(each, name) for each in names):
                others.append((name, record))
        if not others:
            return None not in names
        if len(others) == len(left):
            return False
        left = others
    return False


def _is_below(name: bytes | None, zone: bytes) -> bool:
    """Whether `name` is in `zone`, both uncompressed."""
    while name:
        if name == zone:
            return True
        name = name[1 + name[0] :]
    return False


def outgoing(query: bytes) -> bytes | None:
    """What is asked of an upstream for a client's `query`, identifier left at zero; None if it has no one question.

    Two clients that want the same get the same bytes: the name in small letters, of the flags only RD, AD and CD, and
    of EDNS only that there is one and its DO flag. EDNS options are from hop to hop (RFC 6891 section 6.1.1): a
    client's cookie is not for the upstream, nor is its subnet (RFC 7871 section 12.1).
    """
    message = parse(query)
    if message is None:
        return None
    end = message.question_end
    edns = next((record for record in message.records if record.rtype == OPT), None)
    header = bytes((0, 0, query[2] & 0x01, query[3] & 0x30, 0, 1, 0, 0, 0, 0, 0, 0 if edns is None else 1))
    question = query[HEADER_SIZE : end - 4].lower() + query[end - 4 : end]
    if edns is None:
        return header + question
    return header + question + b"\0\0\x29\x04\xd0\0\0" + (edns.ttl & 0x8000).to_bytes(2) + b"\0\0"


def as_asked(reply: bytes, query: bytes) -> bytes:
    """`reply`, to the client's `query`: its identifier, and its name in the case that it asked in (0x20)."""
    end = question_end(query)
    if end is None or question_end(reply) != end:
        return query[:2] + reply[2:]  # some errors come without a question
    return query[:2] + reply[2:HEADER_SIZE] + query[HEADER_SIZE:end] + reply[end:]
