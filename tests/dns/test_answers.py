"""Ready replies: byte for byte those that are built, and bounded."""

import os

from dnslib import EDNS0, DNSRecord

from overlay_dns.answers import LARGEST_REPLY, LONGEST_QUERY, MOST, Answers


def query(name: str, *, edns: bool = False, rd: int = 1) -> bytes:
    record = DNSRecord.question(name)
    record.header.rd = rd
    if edns:
        record.add_ar(EDNS0(udp_len=1232))
    return bytes(record.pack())


def test_what_is_kept_is_found_under_any_identifier() -> None:
    answers, first = Answers(), query("b.local.test")
    answers.keep(first, first[:2] + b"reply")
    other = bytes([first[0] ^ 1, first[1]]) + first[2:]
    assert answers.get(other) == other[:2] + b"reply"
    answers.clear()
    assert answers.get(first) is None


def test_another_case_flag_or_option_is_another_question() -> None:
    answers, first = Answers(), query("b.local.test")
    answers.keep(first, first[:2] + b"reply")
    for other in (query("B.local.test"), query("b.local.test", edns=True), query("b.local.test", rd=0)):
        assert answers.get(other) is None


def test_the_memory_is_bounded() -> None:
    answers = Answers()
    for _ in range(3 * MOST):
        answers.keep(os.urandom(40), b"..reply")
        assert len(answers.ready) <= MOST
    answers.keep(bytes(LONGEST_QUERY + 1), b"..reply")
    answers.keep(bytes(40), bytes(LARGEST_REPLY + 1))
    assert answers.get(bytes(LONGEST_QUERY + 1)) is None and answers.get(bytes(40)) is None
