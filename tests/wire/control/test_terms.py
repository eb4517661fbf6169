"""What can be set for an exposure, and what cannot."""

from typing import Any

import pytest

from overlay.errors import Exit, UserError
from overlay.wire.control.terms import NO_TERMS, Access, Limits, Terms, check_terms
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
