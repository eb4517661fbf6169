from random import Random

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import messages
from overlay.wire.wireguard.constants import COOKIE_SECRET_TIME, COOKIE_TIME
from overlay.wire.wireguard.cookie import CookieChecker, CookieJar
from overlay.wire.wireguard.messages import CookieReply, Initiation
from overlay.wire.wireguard.primitives import hash_, mac

RESPONDER = b"\x22" * 32
SOURCE = bytes([192, 0, 2, 1, 0x12, 0x34])
MESSAGE = Initiation(7, b"e" * 32, b"s" * 48, b"t" * 28).pack()


def make() -> tuple[CookieChecker, CookieJar]:
    return CookieChecker(RESPONDER, Random(1).randbytes), CookieJar(RESPONDER)


def reply_to(checker: CookieChecker, datagram: bytes, now: float) -> CookieReply:
    reply = messages.parse(checker.reply(datagram, 7, SOURCE, now))
    assert isinstance(reply, CookieReply)
    assert reply.receiver_index == 7
    return reply


def test_mac1_is_what_the_paper_says() -> None:
    _, jar = make()
    datagram = jar.add_macs(MESSAGE, now=0.0)
    assert datagram[:116] == MESSAGE
    assert datagram[116:132] == mac(hash_(b"mac1----", RESPONDER), MESSAGE)
    assert datagram[132:] == bytes(16)


def test_mac1_proves_who_was_meant() -> None:
    checker, jar = make()
    datagram = jar.add_macs(MESSAGE, now=0.0)
    assert checker.check_mac1(datagram)
    assert not CookieChecker(b"\x23" * 32, Random(1).randbytes).check_mac1(datagram)
    assert not checker.check_mac1(b"\x02" + datagram[1:])


def test_a_cookie_makes_mac2() -> None:
    checker, jar = make()
    first = jar.add_macs(MESSAGE, now=0.0)
    assert not checker.check_mac2(first, SOURCE, now=0.0)
    assert jar.consume(reply_to(checker, first, 0.0), now=0.1)
    second = jar.add_macs(MESSAGE, now=5.0)
    assert checker.check_mac1(second)
    assert checker.check_mac2(second, SOURCE, now=5.0)


def test_a_cookie_is_good_for_its_source_alone() -> None:
    checker, jar = make()
    jar.consume(reply_to(checker, jar.add_macs(MESSAGE, now=0.0), 0.0), now=0.0)
    datagram = jar.add_macs(MESSAGE, now=1.0)
    assert not checker.check_mac2(datagram, SOURCE[:-1] + b"\x35", now=1.0)
    assert not checker.check_mac2(datagram, bytes([192, 0, 2, 2]) + SOURCE[4:], now=1.0)


def test_a_cookie_reply_fits_only_the_message_that_it_answers() -> None:
    checker, jar = make()
    reply = reply_to(checker, jar.add_macs(MESSAGE, now=0.0), 0.0)
    jar.add_macs(MESSAGE[:-1] + b"u", now=5.0)
    with pytest.raises(RemoteProtocolError) as caught:
        jar.consume(reply, now=5.1)
    assert caught.value.reason == "bad_tag"
    assert jar.add_macs(MESSAGE, now=6.0)[132:] == bytes(16)


def test_a_cookie_reply_is_taken_once_and_only_when_something_was_sent() -> None:
    checker, jar = make()
    datagram = jar.add_macs(MESSAGE, now=0.0)
    reply = reply_to(checker, datagram, 0.0)
    assert not CookieJar(RESPONDER).consume(reply, now=0.0)
    assert jar.consume(reply, now=0.0)
    assert not jar.consume(reply, now=0.0)


def test_a_cookie_is_not_used_when_its_secret_may_be_gone() -> None:
    checker, jar = make()
    jar.consume(reply_to(checker, jar.add_macs(MESSAGE, now=0.0), 0.0), now=0.0)
    datagram = jar.add_macs(MESSAGE, now=COOKIE_TIME - 0.1)
    assert checker.check_mac2(datagram, SOURCE, now=COOKIE_TIME)
    assert jar.add_macs(MESSAGE, now=COOKIE_TIME)[132:] == bytes(16)


def test_the_secret_changes_after_two_minutes() -> None:
    checker, jar = make()
    jar.consume(reply_to(checker, jar.add_macs(MESSAGE, now=0.0), 0.0), now=0.0)
    datagram = jar.add_macs(MESSAGE, now=100.0)
    assert checker.check_mac2(datagram, SOURCE, now=COOKIE_SECRET_TIME - 0.1)
    assert not checker.check_mac2(datagram, SOURCE, now=COOKIE_SECRET_TIME)


def test_a_cookie_reply_is_smaller_than_what_it_answers() -> None:
    assert messages.SIZES[messages.COOKIE_REPLY] < messages.SIZES[messages.RESPONSE]
