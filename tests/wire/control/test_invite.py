"""Invites: the round trip, and what a person can do to one while copying it."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.wire.control.invite import MAX_TEXT, PREFIX, Invite
from overlay.wire.wireguard.primitives import hash_

from .strategies import endpoints, names

EXAMPLE = Invite(("203.0.113.1:443", "[2001:db8::1]:443"), bytes(range(32)), bytes(range(16)), "local.test")
TEXT = EXAMPLE.encode()
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

invites = st.builds(
    Invite,
    addresses=st.lists(st.one_of(endpoints, names.map("{}.example.org:443".format)), min_size=1, max_size=4).map(tuple),
    server_key=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=32),
    domain=names.map("{}.test".format),
    pin=st.sampled_from([b"", bytes(range(32))]),
)


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        Invite.parse(text)
    error = caught.value
    assert error.exit_code is Exit.REFUSED
    assert error.message[0].isupper() and error.message.endswith(".")
    assert error.hint
    return error


@given(invites)
def test_an_invite_comes_back(invite: Invite) -> None:
    assert Invite.parse(invite.encode()) == invite


def test_it_is_short_and_needs_no_quoting() -> None:
    assert TEXT.startswith(PREFIX)
    assert len(TEXT) < 160
    assert set(TEXT) <= set(ALPHABET)


def test_white_space_of_copying_does_not_matter() -> None:
    assert Invite.parse(f"  {TEXT[:70]}\r\n  {TEXT[70:]}\n") == EXAMPLE


@pytest.mark.parametrize("length", range(len(TEXT)))
def test_every_truncation_is_refused(length: int) -> None:
    assert refused(TEXT[:length]).code in ("invite-truncated", "invite-malformed")


def test_most_truncations_are_named_so() -> None:
    codes = [refused(TEXT[:length]).code for length in range(len(TEXT))]
    # Where nothing but the checksum is cut, a change looks the same.
    assert codes.count("invite-truncated") >= len(TEXT) - 8


@pytest.mark.parametrize("index", range(len(TEXT)))
def test_every_change_of_a_character_is_refused(index: int) -> None:
    for character in ALPHABET + "+/=. é\0":
        if character != TEXT[index]:
            refused(TEXT[:index] + character + TEXT[index + 1 :])


@given(st.data())
def test_swapped_doubled_and_lost_characters_are_refused(data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(TEXT) - 2))
    refused(TEXT[:index] + TEXT[index] + TEXT[index:])
    refused(TEXT[:index] + TEXT[index + 1 :])
    if TEXT[index] != TEXT[index + 1]:
        refused(TEXT[:index] + TEXT[index + 1] + TEXT[index] + TEXT[index + 2 :])


def test_other_things_that_people_paste() -> None:
    assert refused("").code == "invite-truncated"
    assert refused("ov").code == "invite-truncated"
    assert refused("overlay up").code == "invite-malformed"
    assert refused("203.0.113.1:443").code == "invite-malformed"
    assert refused("ov2_AAAA").code == "invite-version"
    assert refused(TEXT + TEXT).code == "invite-malformed"
    assert refused("ov1_" + "A" * 1_000_000).code == "invite-malformed"


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(EXAMPLE)
    assert repr(bytes(range(16))) not in repr(EXAMPLE)


@pytest.mark.parametrize(
    ("addresses", "server_key", "secret"),
    [
        ((), bytes(32), bytes(16)),
        (("203.0.113.1",), bytes(32), bytes(16)),
        (("203.0.113.1:443",), bytes(31), bytes(16)),
        (("203.0.113.1:443",), bytes(32), bytes(15)),
        (("203.0.113.1:443",), bytes(32), bytes(MAX_TEXT)),
    ],
)
def test_a_wrong_invite_cannot_be_made(addresses: tuple[str, ...], server_key: bytes, secret: bytes) -> None:
    with pytest.raises(ValueError):
        Invite(addresses, server_key, secret, "local.test")


def test_an_invite_of_before_there_were_pins_is_read() -> None:
    body = msgspec.msgpack.encode([["203.0.113.1:443"], bytes(32), bytes(16), "local.test"])
    text = PREFIX + base64.urlsafe_b64encode(body + hash_(body)[:4]).rstrip(b"=").decode()
    invite = Invite.parse(text)
    assert invite.pin == b""
    assert invite.encode() == text


def test_a_pin_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="pin"):
        Invite(("203.0.113.1:443",), bytes(32), bytes(16), "local.test", b"short")


def test_an_address_may_be_a_url() -> None:
    invite = Invite(("wss://vpn.example.org/prefix",), bytes(32), bytes(16), "local.test")
    assert Invite.parse(invite.encode()).addresses == ("wss://vpn.example.org/prefix",)
