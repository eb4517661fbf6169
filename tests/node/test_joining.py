"""Which network a start is for."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.node.joining import default_name, identity_of, plan_start, relay_of
from overlay.node.memory import Joined
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Welcome

KEY = bytes(range(32))
INVITE = Invite(("203.0.113.1:443",), KEY, bytes(16), "local.test")


def joined(**fields: Any) -> Joined:
    return Joined(**({"addresses": ("192.0.2.1:443",), "server_key": KEY, "domain": "local.test"} | fields))


def welcome(**fields: Any) -> Welcome:
    values: dict[str, Any] = {
        "number": 2,
        "name": "a",
        "addresses": ("10.77.0.2", "fd12::2"),
        "networks": ("10.77.0.0/16", "fd12::/48"),
        "domain": "local.test",
        "ticket": 9,
        "relays": ("203.0.113.1:443", "[2001:db8::1]:443"),
        "map_key": KEY,
    }
    return Welcome(**(values | fields))


def test_an_invite_names_network_and_secret() -> None:
    start = plan_start(None, INVITE.encode(), "")
    assert start.joined == joined(addresses=INVITE.addresses)
    assert start.secret == INVITE.secret
    assert "secret" not in repr(start)


def test_without_invite_the_remembered_network() -> None:
    start = plan_start(joined(name="a"), "", "")
    assert start.joined == joined(name="a")
    assert start.secret == b""
    assert plan_start(joined(name="a"), "", "b").joined.name == "b"


def test_without_anything() -> None:
    with pytest.raises(UserError) as caught:
        plan_start(None, "", "")
    assert (caught.value.code, caught.value.exit_code) == ("not-joined", Exit.USAGE)


def test_an_invite_of_the_same_network_brings_its_newer_addresses() -> None:
    start = plan_start(joined(name="a"), INVITE.encode(), "")
    assert start.joined == joined(addresses=INVITE.addresses, name="a")


def test_an_invite_of_another_network() -> None:
    with pytest.raises(UserError) as caught:
        plan_start(joined(server_key=bytes(32)), INVITE.encode(), "")
    assert caught.value.code == "other-network"
    assert "192.0.2.1:443" in caught.value.message


@pytest.mark.parametrize("text", ["ov1_", "nonsense", INVITE.encode()[:-5], INVITE.encode()[:-1] + "!"])
def test_wrong_invites_are_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_start(None, text, "")
    assert caught.value.exit_code is Exit.REFUSED
    assert caught.value.code.startswith("invite-")


@pytest.mark.parametrize(
    ("host", "name"),
    [("Desk.example.org", "desk"), ("my_box", "my-box"), ("---", "node"), ("", "node"), ("a" * 80, "a" * 63)],
)
def test_default_names(host: str, name: str) -> None:
    assert default_name(host) == name


@given(st.text())
def test_default_names_are_labels(host: str) -> None:
    name = default_name(host)
    assert 1 <= len(name) <= 63
    assert name.isascii()
    assert not name.startswith("-")
    assert not name.endswith("-")


def test_identity() -> None:
    identity = identity_of(welcome())
    assert identity.addresses == (ip_address("10.77.0.2"), ip_address("fd12::2"))
    assert [str(network) for network in identity.networks] == ["10.77.0.0/16", "fd12::/48"]


@pytest.mark.parametrize(
    "fields",
    [
        {"addresses": ()},
        {"addresses": ("fd12::2",)},
        {"addresses": ("10.78.0.2",)},
        {"addresses": ("x",)},
        {"networks": ("10.77.0.1/16",)},
        {"number": 0},
        {"number": 2**32},
    ],
)
def test_a_welcome_that_cannot_be_right(fields: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        identity_of(welcome(**fields))
    assert caught.value.reason == "bad_welcome"


def test_the_relay_is_tried_first_where_the_server_was_reached() -> None:
    v4, v6 = ("203.0.113.1", 443), ("2001:db8::1", 443)
    assert relay_of(welcome(), None).endpoints == (v4, v6)
    assert relay_of(welcome(), ("2001:db8::1", 8443)).endpoints == (v6, v4)
    assert relay_of(welcome(), ("198.51.100.1", 8443)).endpoints == (("198.51.100.1", 443), v4, v6)
    assert relay_of(welcome(relay_number=7), ("198.51.100.1", 8443)).endpoints == (v4, v6)
    assert relay_of(welcome(relays=()), ("198.51.100.1", 8443)).endpoints == ()
    assert "ticket" not in repr(relay_of(welcome(), None))


def test_a_relay_that_is_no_endpoint() -> None:
    with pytest.raises(RemoteProtocolError):
        relay_of(welcome(relays=("x",)), None)
