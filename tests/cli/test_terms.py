"""What was set for an exposure, in a few words."""

import time

import msgspec

from overlay.wire.control.terms import NO_TERMS, Access, Headers, Limits, Private, Terms
from overlay_cli.terms import describe_terms, without_secrets

DIGEST = "0" * 64


def described(terms: Terms) -> str:
    return describe_terms(msgspec.to_builtins(terms))


def test_words() -> None:
    assert described(NO_TERMS) == ""
    assert described(Terms(access=Access(users=("anna:x",), bearers=(DIGEST,), link=DIGEST))) == (
        "password, bearer token, secret link"
    )
    assert described(Terms(access=Access(allow=("10.0.0.0/8",), deny=("::1",)))) == "2 networks allowed or denied"
    limits = Limits(connections=3, connection_rate="5/s", request_rate="100/m", bandwidth=1.25e6, quota=10**10)
    assert described(Terms(limits=limits)) == "3 at once, 5/s connections, 100/m requests, 10 Mbit/s, 10.0 GB a month"
    ends = Terms(headers=Headers(host="x"), expires=time.time() + 7210)
    assert described(ends) == "headers changed, ends in 2 h"


def test_what_is_shown_has_no_secrets() -> None:
    terms = Terms(
        access=Access(users=("anna:hash",), bearers=(DIGEST, DIGEST), link=DIGEST),
        headers=Headers(request=("Authorization: Bearer x",), response=("X-A: b",)),
        expires=5.0,
        private=Private(name="db", tags=("ops",), token=DIGEST),
    )
    document = {"id": "x1", "terms": msgspec.to_builtins(terms)}
    shown = without_secrets(document)
    assert shown == {
        "id": "x1",
        "terms": {
            "access": {"users": ["anna"], "bearers": ["…", "…"], "link": "…"},
            "headers": {"request": ["Authorization: …"], "response": ("X-A: b",)},
            "expires": 5.0,
            "private": {"name": "db", "tags": ("ops",), "token": "…"},
        },
    }
    assert describe_terms(shown["terms"]) == described(terms)
    assert without_secrets({"id": "x1"}) == {"id": "x1"}
