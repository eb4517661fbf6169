"""Hosts, wildcards and prefixes; and how people write them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import UserError
from overlay.server.tunnels import SingleTunnel
from overlay.server.web.hosts import parse_host, parse_web_domain, url_of
from overlay.server.web.sites import Site, Sites


def site(name: str) -> Site:
    return Site(name, SingleTunnel(lambda: None, Counter()))


def test_the_longest_prefix_of_the_nearest_host() -> None:
    sites = Sites()
    root, docs, wild, deep = (site(name) for name in ("root", "docs", "wild", "deep"))
    sites.add("a.test", "/", root)
    sites.add("a.test", "/docs/", docs)
    sites.add("a.test", "/docs/deep/", deep)
    sites.add("*.a.test", "/", wild)
    assert sites.find("a.test", "/") is sites.find("a.test", "/docsx") is root
    assert sites.find("a.test", "/docs") is sites.find("a.test", "/docs/x") is docs
    assert sites.find("a.test", "/docs/deep/er") is deep
    assert sites.find("b.a.test", "/") is wild
    assert sites.find("c.b.a.test", "/") is sites.find("test", "/") is sites.find("", "/") is None
    assert sites.exposes("b.a.test") and not sites.exposes("b.test") and not sites.exposes("")
    for each in (root, docs, deep):
        sites.remove(each)
    assert not sites.exposes("a.test") and sites.exposes("x.a.test")


def test_what_people_write() -> None:
    assert parse_host("Docs.Example.com.") == ("docs.example.com", "/")
    assert parse_host("*.example.com/a/b/") == ("*.example.com", "/a/b/")
    for text in (
        "",
        "localhost",
        "1.2.3.4",
        "a..b",
        "a.b/../c",
        "a.b/c d",
        "a b.c",
        "*.com/x?y",
        "-a.b",
        "a.*.b",
        "x" * 300 + ".a",
        "☃.example.com",  # RFC 5892 knows no symbols
        "xn--a.example.com",
        "1.2.3.\uff14",
        "a\uff0fb.example.com",
        "*.*.bücher.example",
        "bü*cher.example",
    ):
        with pytest.raises(UserError) as caught:
            parse_host(text)
        assert caught.value.code == "host-invalid"


def test_names_beyond_ascii_are_their_a_labels() -> None:
    """Whichever way a name is written it is one name: that which browsers ask for."""
    for text in (
        "bücher.example.com/x",
        "BÜCHER.Example。com./x/",
        "xn--bcher-kva.example.com/x",
        "bu\u0308cher.example.com/x",
    ):
        assert parse_host(text) == ("xn--bcher-kva.example.com", "/x/")
    assert parse_host("*.bücher.example") == ("*.xn--bcher-kva.example", "/")
    assert parse_host("*.EXAMPLE.рф") == ("*.example.xn--p1ai", "/")
    assert parse_web_domain("Apps.Bücher.test.") == "apps.xn--bcher-kva.test" and parse_web_domain("test") == "test"
    for text in ("a b", "1.2.3.4", "*.apps.test", "☃"):
        with pytest.raises(UserError, match="No names can be picked below") as caught:
            parse_web_domain(text)
        assert caught.value.code == "host-invalid"


@given(
    st.text(max_size=60) | st.from_regex(r"(\*\.)?[a-zß-ÿа-яα-ω]{1,9}\.[a-zа-я]{2,5}\.?(/[a-z]{1,3})?", fullmatch=True)
)
def test_fuzz_hosts(text: str) -> None:
    try:
        host, path = parse_host(text)
    except UserError as error:
        assert error.code == "host-invalid"
    else:
        assert path.startswith("/") and path.endswith("/") and host == host.lower() and host.isascii()
        assert parse_host(host + path) == (host, path)


def test_urls() -> None:
    assert url_of("a.b", (80, 443), "/") == "https://a.b/"
    assert url_of("a.b", (80, 8443), "/x/") == "http://a.b/x/"
    assert url_of("a.b", (8443,), "/") == "http://a.b:8443/"
