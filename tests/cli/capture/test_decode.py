"""What is said of packets: lines as tcpdump's, documents for scripts; never an exception, nor a terminal's code."""

import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import GRE

from overlay.daemon.capture import Outer
from overlay_cli.capture.decode import NO_NAMES, Names, details, document
from overlay_cli.capture.lines import line
from overlay_cli.capture.packets import CapturedPacket, Offload, outer_packets
from tests.cli.capture.samples import LOCAL, LOCAL6, REMOTE, REMOTE6, TIME, inner

NAMES = Names({"10.77.0.2": "a", "10.77.0.3": "b", "fd12::2": "a"}, {3: "b"})


@pytest.fixture(autouse=True, scope="module")
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def said(packet: CapturedPacket, names: Names = NO_NAMES) -> str:
    """A line without its time and interface."""
    text = line(document(packet, "tun", names))
    head, _, rest = text.partition(" tun ")
    assert head == "16:00:00.123456"
    return rest


def ip4(upper: Any, **fields: Any) -> bytes:
    return bytes(IP(src="10.77.0.2", dst="10.77.0.3", **fields) / upper)


def ip6(upper: Any) -> bytes:
    return bytes(IPv6(src="fd12::2", dst="fd12::3") / upper)


TCP_OPTIONS = [("MSS", 9), ("SAckOK", b""), ("NOP", None), ("WScale", 7)]

SACK = [("Timestamp", (5, 0)), ("SAck", (1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            ip4(TCP(sport=4, dport=5, flags="S", seq=7, window=5, options=TCP_OPTIONS)),
            "IP 10.77.0.2.4 > 10.77.0.3.5: Flags [S], seq 7, win 5, options [mss 9,sackOK,nop,wscale 7,eol], length 0",
        ),
        (
            ip4(TCP(sport=443, dport=5000, flags="PA", seq=2**32 - 1, ack=9, window=1) / b"data"),
            "IP 10.77.0.2.443 > 10.77.0.3.5000: Flags [P.], seq 4294967295:3, ack 9, win 1, length 4",
        ),
        (
            ip6(TCP(sport=1, dport=2, flags="A", ack=3, window=4, options=SACK)),
            "IP6 fd12::2.1 > fd12::3.2: Flags [.], ack 3, win 4, options [TS val 5 ecr 0,sack 2 {1:2}{3:4}], length 0",
        ),
        (ip4(TCP(sport=1, dport=2, flags=0, window=4)), "IP 10.77.0.2.1 > 10.77.0.3.2: Flags [none], win 4, length 0"),
        (ip4(UDP(sport=1, dport=2) / b"data"), "IP 10.77.0.2.1 > 10.77.0.3.2: UDP, length 4"),
        (
            ip4(UDP(sport=1, dport=53) / DNS(qd=DNSQR(qname="b.local.test"))),
            "IP 10.77.0.2.1 > 10.77.0.3.53: UDP DNS Qry b'b.local.test.', length 30",
        ),
        (
            ip4(ICMP(type=8, id=5, seq=1) / bytes(56)),
            "IP 10.77.0.2 > 10.77.0.3: ICMP echo request, id 5, seq 1, length 56",
        ),
        (ip4(ICMP(type=0, id=5, seq=1)), "IP 10.77.0.2 > 10.77.0.3: ICMP echo reply, id 5, seq 1, length 0"),
        (
            ip4(ICMP(type=3, code=3) / bytes(28)),
            "IP 10.77.0.2 > 10.77.0.3: ICMP dest-unreach port-unreachable, length 28",
        ),
        (
            ip6(ICMPv6EchoRequest(id=5, seq=1)),
            "IP6 fd12::2 > fd12::3: ICMP6 echo request, id 5, seq 1, length 0",
        ),
        (ip6(ICMPv6EchoReply(id=5, seq=1)), "IP6 fd12::2 > fd12::3: ICMP6 echo reply, id 5, seq 1, length 0"),
        (
            ip6(IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2) / b"data"),
            "IP6 fd12::2.1 > fd12::3.2: UDP, length 4",
        ),
        (ip4(b"x" * 8, proto=253), "IP 10.77.0.2 > 10.77.0.3: 253, length 8"),
        (
            bytes(IP(src="10.77.0.2", dst="10.77.0.3", frag=185, flags="MF", proto=17) / bytes(1480)),
            "IP 10.77.0.2 > 10.77.0.3: UDP, frag 1480+, length 1480",
        ),
        (b"", "malformed: no IP header, length 0"),
        (b"\x45", "malformed: no IP header, length 1"),
    ],
)
def test_lines(data: bytes, expected: str) -> None:
    assert said(inner(data)) == f"Out {expected}"


def test_a_line_says_when_where_and_which_way() -> None:
    text = line(document(inner(ip4(ICMP()), outbound=False), "overlay0", NAMES))
    assert text == "16:00:00.123456 overlay0 In  IP a > b: ICMP echo request, id 0, seq 0, length 0"


def test_names_stand_for_addresses_that_have_one() -> None:
    assert said(inner(ip6(UDP(sport=1, dport=2))), NAMES).startswith("Out IP6 a.1 > fd12::3.2: UDP")


def test_gre_and_what_is_in_it() -> None:
    text = said(inner(ip4(GRE() / IP(src="192.0.2.1", dst="192.0.2.2") / ICMP())))
    assert text.startswith("Out IP 10.77.0.2 > 10.77.0.3: GRE ") and "192.0.2.1 > 192.0.2.2" in text


def test_superpackets_and_offloaded_checksums_are_named() -> None:
    data = ip4(TCP(sport=1, dport=2, flags="A") / bytes(20_000))
    text = said(inner(data, offload=Offload(checksum=True, segment=1340)))
    assert text.endswith("length 20000, superpacket of 1340, checksum offloaded")
    found = document(inner(data, offload=Offload(checksum=True, segment=1340)), "tun", NAMES)
    assert (found["segment"], found["checksum"], found["length"], found["payload"]) == (1340, "offloaded", 20040, 20000)


@pytest.mark.parametrize("upper", [TCP(sport=1, dport=2, flags="A"), UDP(sport=1, dport=2)])
def test_a_cut_packet_says_its_whole_length(upper: Any) -> None:
    data = ip4(upper / bytes(1000))
    text = said(inner(data[:60], size=len(data)))
    assert text.endswith("length 1000, cut to 60")


def message(data: bytes, *, outbound: bool = True, ipv6: bool = False) -> CapturedPacket:
    ends = (LOCAL6, REMOTE6) if ipv6 else (LOCAL, REMOTE)
    (packet,) = outer_packets(Outer(TIME, outbound, *ends, len(data) or 1, data), 1 << 18)
    return packet


HEADER = struct.Struct("<B3xI")
FRAGMENT = struct.pack("<BBBxIQ", 5, 2, 46, 0x01020304, 7) + bytes(100)
RELAY = struct.pack("<B3xIQ", 6, 3, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEADER.pack(1, 0xAB) + bytes(140), "handshake initiation, sender 0x000000ab"),
        (
            HEADER.pack(2, 0xAB) + struct.pack("<I", 0xCD) + bytes(80),
            "handshake response, sender 0x000000ab, receiver 0x000000cd",
        ),
        (HEADER.pack(3, 0xAB) + bytes(56), "cookie reply, receiver 0x000000ab"),
        (
            HEADER.pack(4, 0xAB) + (2**64 - 1).to_bytes(8, "little") + bytes(16),
            "transport data, receiver 0x000000ab, counter 18446744073709551615",
        ),
        (FRAGMENT, "record fragment 3/46, receiver 0x01020304, counter 7"),
        (RELAY + FRAGMENT, "relay, node 3 (b): record fragment 3/46, receiver 0x01020304, counter 7"),
        (RELAY + RELAY, "relay, node 3 (b): relay, too short, or relayed and may not be"),
        (struct.pack("<BBHI", 7, 1, 0, 4) + bytes(60), "disco, from node 4"),
        (b"\x09whatever", "unknown message type 9"),
        (b"", "unknown message type None"),
        (b"\x05\x00", "record fragment, too short, or relayed and may not be"),
    ],
)
def test_lines_of_our_messages(data: bytes, expected: str) -> None:
    ends = "IP 198.51.100.21.50380 > 198.51.100.22.33771"
    assert said(message(data), NAMES) == f"Out {ends}: {expected}, length {len(data)}"


def test_an_inbound_message_comes_from_the_other_end() -> None:
    assert said(message(FRAGMENT, outbound=False, ipv6=True)).startswith(
        "In  IP6 2001:db8::22.33771 > 2001:db8::21.50380: record fragment 3/46"
    )


def test_documents_of_our_messages() -> None:
    found = document(message(RELAY + FRAGMENT), "overlay-outer", NAMES)
    assert found["message"] == {
        "type": 6,
        "name": "relay",
        "node": 3,
        "node_name": "b",
        "carries": {
            "type": 5,
            "name": "record fragment",
            "receiver_index": 0x01020304,
            "fragment": 2,
            "fragments": 46,
            "counter": 7,
        },
    }
    assert (found["interface"], found["protocol"], found["payload"]) == ("overlay-outer", "overlay", 132)


def test_details_have_every_field() -> None:
    text = details(message(RELAY + FRAGMENT))
    assert "overlay relay" in text and "overlay record fragment" in text and "counter" in text
    assert "IP" in details(inner(ip4(UDP())))


def test_what_a_packet_says_does_not_reach_the_terminal() -> None:
    hostile = DNS(qd=DNSQR(qname=b"\x1b]0;owned\x07\r\n\xe2\x80\xae.test"))
    packet = inner(ip4(UDP(sport=1, dport=53) / hostile))
    for text in (said(packet), *details(packet).splitlines()):
        assert text.isprintable(), repr(text)


headers = st.sampled_from(
    [b"", ip4(b"", proto=6), ip4(b"", proto=17), ip4(b"", proto=1), ip4(b"", proto=47), ip6(b""), b"\x4f", b"\x60"]
)
starts = st.sampled_from([bytes([kind]) for kind in range(9)] + [RELAY, FRAGMENT[:16], RELAY + b"\x02", bytes(2)])


@settings(deadline=None)
@given(headers, st.binary(max_size=120), st.booleans(), st.integers(0, 3))
def test_fuzz_inner_packets(header: bytes, rest: bytes, outbound: bool, cut: int) -> None:
    packet = inner(header + rest, outbound=outbound, size=len(header + rest) + cut)
    check(packet)


@settings(deadline=None)
@given(st.sampled_from([53, 67, 123, 161, 443, 546, 1900, 5353, 500]), st.binary(max_size=120))
def test_fuzz_what_scapy_takes_apart_by_port(port: int, payload: bytes) -> None:
    check(inner(ip4(UDP(sport=port, dport=port) / payload)))


@settings(deadline=None)
@given(starts, st.binary(max_size=160))
def test_fuzz_messages(start: bytes, rest: bytes) -> None:
    check(message(start + rest))


def check(packet: CapturedPacket) -> None:
    found = document(packet, "tun", NAMES)
    assert json.loads(json.dumps(found)) == found
    assert line(found).isprintable()
    assert all(text.isprintable() for text in details(packet).split("\n"))


def test_our_layers_are_bound_to_no_port() -> None:
    """Other programs' packets stay what they are."""
    assert type(UDP(bytes(UDP(sport=1, dport=443) / FRAGMENT)).payload).__name__ == "Raw"
