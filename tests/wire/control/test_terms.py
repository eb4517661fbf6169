"""What can be set for an exposure, and what cannot."""

from typing import Any

import pytest

from overlay.errors import Exit, UserError
from overlay.wire.control.terms import NO_TERMS, Access, Limits, Membership, Private, Terms, check_terms, shared
from overlay.wire.credentials import digest_of, hash_password

HASH = hash_password(b"secret", b"s" * 16)
DIGEST = digest_of(b"secret")


@pytest.mark.parametrize(
    "terms",
    [
        NO_TERMS,
        Terms(limits=Limits(connections=5)),
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
