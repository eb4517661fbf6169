"""Hostile bytes on the message path: nothing raises, every reply is one to the question, none is an amplifier."""

import struct

import anyio
from dnslib import QTYPE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.message import LARGEST_UDP_SIZE
from overlay_dns.records import parse
from overlay_dns.server import Resolver
from overlay_dns.zone import Zones
from tests.dns.test_conformance import DOMAIN, HOSTS, NAMES, NETWORKS, RECORDS

ZONES = Zones.build(DOMAIN, HOSTS, 7, NETWORKS, records=RECORDS)
names = st.sampled_from([*NAMES, "3.0.77.10.in-addr.arpa", "a.example"])


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """A query, perhaps with an OPT record, and a piece of it cut out, put in, or changed."""
    labels = b"".join(len(each).to_bytes() + each for each in draw(names).encode().split(b"."))
    more = draw(st.integers(0, 3))
    counts = draw(st.just((1, 0, 0, more)) | st.tuples(*[st.integers(0, 65535)] * 4))
    data = struct.pack(">HHHHHH", 7, draw(st.integers(0, 65535) | st.sampled_from([0, 0x100])), *counts)
    data += labels + b"\0" + struct.pack(">HH", draw(st.integers(0, 300)), draw(st.sampled_from([1, 1, 1, 3, 255])))
    for _ in range(more):
        data += b"\0" + struct.pack(">HHIH", draw(st.sampled_from([41, 16])), draw(st.integers(0, 65535)), 0, 0)
    if draw(st.booleans()):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(st.binary(max_size=12)) + data[draw(st.integers(start, len(data))) :]
    return data


@given(st.lists(queries() | st.binary(max_size=300), max_size=6), st.sampled_from(["127.0.0.1", "10.77.0.9"]))
def test_fuzz_message_path(messages: list[bytes], source: str) -> None:
    async def main() -> None:
        resolver = Resolver(ZONES, lambda: [])
        for data in messages:
            first = await resolver.reply(data, source, stream=False)
            again = await resolver.reply(data, source, stream=False)
            assert first == again  # kept or worked out
            whole = await resolver.reply(data, source, stream=True)
            if first is None or whole is None:
                assert first is None and whole is None and (len(data) < 12 or data[2] & 0x80)
                continue
            assert len(first) <= LARGEST_UDP_SIZE
            for reply in (first, whole):
                if data.isascii():  # dnslib reads no other names
                    DNSRecord.parse(reply)
                assert reply[:2] == data[:2] and reply[2] & 0xF8 == 0x80 | data[2] & 0x78
                assert reply[4:6] == b"\0\0" or parse(reply) is not None

    anyio.run(main)


@given(queries() | st.binary(max_size=300), st.binary(max_size=40))
def test_fuzz_records(data: bytes, more: bytes) -> None:
    for exact in (True, False):
        message = parse(data + more, to_the_end=exact)
        if message is not None:
            assert all(record.data_at + record.length <= len(data + more) for record in message.records)
            assert message.qtype in range(65536) and QTYPE.get(message.qtype) is not None
