"""What can be set for an exposure, and what cannot."""

from typing import Any

import pytest

from overlay.errors import Exit, UserError
from overlay.wire.control.terms import (
    NO_TERMS,
    Access,
    Headers,
    Limits,
    Membership,
    Private,
    Terms,
    check_terms,
    parse_frequency,
    shared,
)
from overlay.wire.credentials import digest_of, hash_password

HASH = hash_password(b"secret", b"s" * 16)
DIGEST = digest_of(b"secret")


@pytest.mark.parametrize(
    "terms",
    [
        NO_TERMS,
        Terms(limits=Limits(connections=5, connection_rate="10/s", request_rate="5/m", bandwidth=1e6, quota=10**9)),
        Terms(expires=1e9),
        Terms(access=Access(allow=("192.0.2.0/24", "::1"), deny=("2001:db8::/32",))),
        Terms(access=Access(users=(f"anna:{HASH}", f"otto:{HASH}"), bearers=(DIGEST,), link=DIGEST)),
    ],
)
def test_what_can_be_set(terms: Terms) -> None:
    check_terms(terms, "http")


@pytest.mark.parametrize(
    ("access", "why"),
    [
        ({"allow": ("192.0.2.0/33",)}, "is not a network"),
        ({"deny": ("example.com",)}, "is not a network"),
        ({"deny": ("192.0.2.1",) * 257}, "256 networks"),
        ({"users": ("anna:secret",)}, "users"),
        ({"users": (f"an:na:{HASH}",)}, "users"),
        ({"users": (f"anna:{HASH}", f"anna:{HASH}")}, "users"),
        ({"users": (f"anna:{HASH.replace('m=19456', 'm=4194304')}",)}, "users"),  # a check that costs 4 GiB
        ({"bearers": (DIGEST.upper(),)}, "digests"),
        ({"bearers": (DIGEST,) * 257}, "256 users"),
        ({"link": "x"}, "digests"),
    ],
)
def test_what_cannot(access: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        check_terms(Terms(access=Access(**access)), "http")
    assert (caught.value.code, caught.value.exit_code) == ("terms-invalid", Exit.USAGE)


@pytest.mark.parametrize(
    "limits",
    [
        {"connections": -1},
        {"connections": 8193},
        {"connection_rate": "10"},
        {"connection_rate": "0/s"},
        {"request_rate": "10/w"},
        {"request_rate": "-1/s"},
        {"request_rate": "9999999/s"},
        {"bandwidth": 1.0},
        {"bandwidth": float("nan")},
        {"bandwidth": float("inf")},
        {"quota": -1},
        {"quota": 10**30},
    ],
)
def test_limits_that_cannot_be(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="That cannot be exposed: --"):
        check_terms(Terms(limits=Limits(**limits)), "http")


def test_frequencies() -> None:
    assert parse_frequency("10/s") == (10, 1.0) and parse_frequency(" 100/M") == (100, 60.0)
    with pytest.raises(UserError, match="by http alone"):
        check_terms(Terms(limits=Limits(request_rate="1/s")), "tcp")
    for expires in (-1.0, float("nan"), 1e12):
        with pytest.raises(UserError, match="--expires"):
            check_terms(Terms(expires=expires), "tcp")


def test_headers() -> None:
    for headers, protocol, why in (
        (Headers(host="x"), "tcp", "of http alone"),
        (Headers(request=("X: y",) * 33), "http", "more than 32"),
        (Headers(request=("Connection: close",)), "http", "of one connection"),
    ):
        with pytest.raises(UserError, match=why):
            check_terms(Terms(headers=headers), protocol)
    check_terms(Terms(headers=Headers(host="x", request=("X: y",))), "http")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_secrets_are_shown_by_http_alone(protocol: str) -> None:
    check_terms(Terms(access=Access(deny=("::/0",))), protocol)
    with pytest.raises(UserError, match="by http alone"):
        check_terms(Terms(access=Access(bearers=(DIGEST,))), protocol)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (Terms(group=Membership(name="no way")), "no name of a group"),
        (Terms(group=Membership(name="Web")), "no name of a group"),
        (Terms(group=Membership(balance="sticky")), "--group"),
        (Terms(group=Membership(name="web", balance="luck")), "--balance"),  # type: ignore[arg-type]
        (Terms(health="icmp"), "no way to look"),
        (Terms(health="http:health"), "no way to look"),
        (Terms(health="http:/a b"), "no way to look"),
        (Terms(health="http:/a\r\nX: y"), "no way to look"),
        (Terms(private=Private(name="db")), "--for-tag"),
        (Terms(private=Private(token=DIGEST)), "--private"),
        (Terms(private=Private(name="db", token="plain")), "digest"),
    ],
)
def test_groups_and_private_names_that_cannot_be(terms: Terms, why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_terms(terms, "tcp")


def test_what_members_of_a_group_share() -> None:
    group = Membership(name="web-1")
    for health in ("", "tcp", "http", "http:/health?full=1"):
        check_terms(Terms(group=group, health=health), "http")
        assert shared(Terms(group=group, health=health)) == shared(Terms(group=group))
    # Each node hashes a password anew.
    others = [hash_password(b"secret", salt * 16) for salt in (b"a", b"b")]
    one, other = (Terms(group=group, access=Access(users=(f"anna:{each}",), link=DIGEST)) for each in others)
    assert one != other and shared(one) == shared(other)
    for different in (Access(), Access(users=(f"otto:{HASH}",), link=DIGEST), Access(users=(f"anna:{HASH}",))):
        assert shared(Terms(group=group, access=different)) != shared(one)
