"""Filters are tcpdump's own; what is none is one sentence and wrong usage."""

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay_cli.capture.bpf import Filter
from tests.engine.rig import udp4, udp6

PACKET = udp4("10.77.0.2", "10.77.0.3", b"data", (1000, 53))
PACKET6 = udp6("fd12::2", "fd12::3", b"data")


@pytest.mark.parametrize(
    ("expression", "fits", "fits6"),
    [
        ("udp", True, True),
        ("tcp", False, False),
        ("ip", True, False),
        ("ip6", False, True),
        ("udp port 53", True, False),
        ("udp and not port 53", False, True),
        ("host 10.77.0.3", True, False),
        ("src net 10.77.0.0/16", True, False),
        ("host fd12::3", False, True),
        ("greater 40", False, True),
        ("ip[9] == 17", True, False),
        ("", True, True),
    ],
)
def test_expressions(expression: str, fits: bool, fits6: bool) -> None:
    wanted = Filter(expression)
    assert (wanted.fits(PACKET, len(PACKET)), wanted.fits(PACKET6, len(PACKET6))) == (fits, fits6)


def test_a_cut_packet_has_the_length_that_it_had() -> None:
    assert Filter("greater 60000").fits(PACKET[:28], 60000)
    assert not Filter("udp port 53").fits(PACKET[:21], len(PACKET)), "what is not there does not fit"


@pytest.mark.parametrize(
    "expression", ["port", "bob", "tcp port 80 and", "((", "ether host 1", "port 99999999", "ü", "tcp and udp"]
)
def test_a_wrong_expression_is_one_sentence(expression: str) -> None:
    with pytest.raises(UserError) as caught:
        Filter(expression)
    assert (caught.value.code, caught.value.exit_code) == ("filter-wrong", Exit.USAGE)
    assert caught.value.message.count(". ") == 0 and "\n" not in caught.value.message


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 1 << 18))
def test_fuzz_packets(packet: bytes, length: int) -> None:
    for wanted in FILTERS:
        wanted.fits(packet, length)


FILTERS = [Filter("udp port 53 or icmp6"), Filter("tcp[tcpflags] & tcp-syn != 0")]


def test_without_libpcap_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UserError) as caught:
        Filter("udp")
    assert caught.value.code == "libpcap-missing" and "libpcap" in caught.value.hint
