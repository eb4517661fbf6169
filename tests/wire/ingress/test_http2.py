"""Requests by HTTP/2 as requests by HTTP/1.1: what they say stays the same, and what would say more is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.ingress import http2
from overlay.wire.ingress.http1 import HttpError, parse_request, parse_response
from overlay.wire.ingress.http2 import response_fields, trailer_fields

Field = tuple[bytes, bytes]
GET: list[Field] = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/x?y")]


KEY = b"AAAAAAAAAAAAAAAAAAAAAA=="
CONNECT: list[Field] = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]


def request_head(fields: list[Field], *, ended: bool) -> tuple[bytes, bool]:
    return http2.request_head(fields, ended=ended, key=KEY)


def changed(name: bytes, value: bytes | None) -> list[Field]:
    """`GET` with another value of one pseudo-header field, or without it."""
    return [each for each in GET if each[0] != name] + ([] if value is None else [(name, value)])


def test_what_a_request_says() -> None:
    head, chunked = request_head([*GET, (b"accept", b"*/*"), (b"cookie", b"a=1; b=2"), (b"empty", b"")], ended=True)
    assert head == (b"GET /x?y HTTP/1.1\r\nhost: a.test\r\naccept: */*\r\ncookie: a=1; b=2\r\nempty: \r\n\r\n")
    assert not chunked
    request = parse_request(head)
    assert (request.host, request.framing, request.keep_alive) == ("a.test", 0, True)


def test_bodies_and_trailers() -> None:
    for fields, ended, framing in (
        ([], False, "chunked"),
        ([(b"content-length", b"5")], False, 5),
        ([(b"content-length", b"0")], True, 0),
    ):
        head, chunked = request_head([*GET, *fields], ended=ended)
        assert parse_request(head).framing == framing and chunked == (framing == "chunked")
    head, _ = request_head([*GET, (b"te", b"trailers")], ended=True)
    assert parse_request(head).options == {b"te"}
    assert trailer_fields([(b"digest", b"x")]) == ((b"digest", b"x"),)


def test_the_host_field_may_stand_for_the_authority() -> None:
    head, _ = request_head([*changed(b":authority", None), (b"host", b"b.test")], ended=True)
    assert parse_request(head).host == "b.test"


def test_a_connection_for_a_websocket_is_an_upgrade() -> None:
    """RFC 8441 section 5; the key that a user may have sent is not the one that we check."""
    said = [(b"sec-websocket-key", b"x"), (b"sec-websocket-protocol", b"chat"), (b"te", b"trailers")]
    head, chunked = request_head([*CONNECT, *said], ended=False)
    assert head == (
        b"GET /x?y HTTP/1.1\r\nhost: a.test\r\nsec-websocket-protocol: chat\r\n"
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: %b\r\n\r\n" % KEY
    )
    request = parse_request(head)
    assert (request.upgrade, request.framing, chunked) == (b"websocket", 0, False)
    opened = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n"
    )
    assert response_fields(parse_response(opened + b"A: b\r\n\r\n", b"GET")) == [(b":status", b"200"), (b"a", b"b")]


@pytest.mark.parametrize(
    ("fields", "ended", "status"),
    [
        (CONNECT, True, 400),
        ([*CONNECT, (b"content-length", b"0")], False, 400),
        ([*CONNECT, (b"upgrade", b"websocket")], False, 400),
        ([*CONNECT, (b":protocol", b"websocket")], False, 400),
        ([*CONNECT[:2], (b"sec-websocket-key", b"x"), *CONNECT[2:]], False, 400),
        ([*GET, (b":protocol", b"websocket")], False, 400),
        ([CONNECT[0], (b":protocol", b"connect-udp"), *GET[1:]], False, 501),
        ([CONNECT[0], (b":protocol", b""), *GET[1:]], False, 501),
    ],
)
def test_no_connection_for_a_websocket(fields: list[Field], ended: bool, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        request_head(fields, ended=ended)
    assert caught.value.status == status


SMUGGLED = b"x\r\nTransfer-Encoding: chunked"
CORPUS: list[list[Field]] = [
    [*GET, (b"a", SMUGGLED)],
    [*GET, (b"a", b"x\ny")],
    [*GET, (b"a", b"x\0")],
    [*GET, (b"a\r\nb", b"x")],
    [*GET, (b"a: b\r\nc", b"x")],
    [*GET, (b"a:", b"x")],
    [*GET, (b"transfer-encoding:chunked", b"x")],
    [*GET, (b"a b", b"x")],
    [*GET, (b"", b"x")],
    [*GET, (b"Upper", b"x")],
    [*GET, (b"a", b" x")],
    [*GET, (b"transfer-encoding", b"chunked")],
    [*GET, (b"connection", b"x")],
    [*GET, (b"keep-alive", b"x")],
    [*GET, (b"proxy-connection", b"x")],
    [*GET, (b"upgrade", b"h2c")],
    [*GET, (b"te", b"chunked")],
    [*GET, (b"content-length", b"4")],
    [*GET, (b"host", b"b.test")],
    [*GET, (b":path", b"/again")],
    [*GET, (b":protocol", b"websocket")],
    [(b"a", b"b"), *GET],
    changed(b":method", b"GET / HTTP/1.1\r\nhost: b.test\r\n\r\nGET"),
    changed(b":method", b"GET /admin"),
    changed(b":method", b""),
    changed(b":method", None),
    changed(b":path", b"/ HTTP/1.1\r\nhost: b.test"),
    changed(b":path", b"/a b"),
    changed(b":path", b"x"),
    changed(b":path", b"http://b.test/"),
    changed(b":path", b""),
    changed(b":path", None),
    changed(b":scheme", b"http"),
    changed(b":scheme", b"https://b.test/?"),
    changed(b":scheme", None),
    changed(b":authority", b"a.test\r\nx: y"),
    changed(b":authority", None),
    changed(b":authority", b""),
    [(b":method", b"CONNECT"), (b":authority", b"a.test:443")],
]


@pytest.mark.parametrize("fields", CORPUS, ids=range(len(CORPUS)))
def test_smuggling_is_refused(fields: list[Field]) -> None:
    with pytest.raises(HttpError) as caught:
        request_head(fields, ended=True)
    assert (caught.value.status, caught.value.reason) == (400, "bad_http")


@pytest.mark.parametrize("authority", [b"user@a.test", b"a.test/b", b"a.test, b.test", b"a..b"])
def test_absurd_authorities_are_refused_by_who_reads_the_head(authority: bytes) -> None:
    with pytest.raises(HttpError):
        parse_request(request_head(changed(b":authority", authority), ended=True)[0])


def test_lengths_that_differ_are_refused_by_who_reads_the_head() -> None:
    for lengths in ((b"5", b"6"), (b"5", b"5"), (b"+5",), (b"5_0",), (b"5, 5",)):
        with pytest.raises(HttpError):
            parse_request(request_head([*GET, *((b"content-length", each) for each in lengths)], ended=False)[0])


OCTETS = st.binary(max_size=12) | st.sampled_from([b"a", b"x-y", b"v", b"host", b"te", b"content-length", b"1"])


@given(st.lists(st.tuples(OCTETS, OCTETS), max_size=5), st.booleans())
def test_fuzz_whatever_is_taken_is_read_as_it_was_said(fields: list[Field], ended: bool) -> None:
    try:
        head, chunked = request_head([*GET, *fields], ended=ended)
        request = parse_request(head)
    except HttpError:
        return
    assert (request.method, request.target, request.host) == (b"GET", b"/x?y", "a.test")
    said = [each for each in fields if each[0] not in (b"host", b"te")]
    if crumbs := [each for each in said if each[0] == b"cookie"]:
        at = said.index(crumbs[0])
        said = [each for each in said if each[0] != b"cookie"]
        said.insert(at, (b"cookie", b"; ".join(value for _, value in crumbs).strip(b" ")))
    added = [each for each in request.fields if each[0] in (b"transfer-encoding", b"te", b"connection")]
    assert list(request.fields) == said + added and (not added or chunked or (b"te", b"trailers") in fields)
    assert head.count(b"\r\n\r\n") == 1 and head.endswith(b"\r\n\r\n")


def test_answers() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: b\r\nConnection: close\r\n\r\n"
    assert response_fields(parse_response(head, b"GET")) == [
        (b":status", b"200"),
        (b"content-length", b"3"),
        (b"x-a", b"b"),
    ]


def test_crumbs_of_a_cookie_become_one_field() -> None:
    """RFC 9113 section 8.2.3: browsers send each cookie in a field of its own, and HTTP/1.1 knows one field alone."""
    head, _ = request_head([*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2; c=3")], ended=True)
    assert parse_request(head).fields == ((b"cookie", b"a=1; b=2; c=3"), (b"x", b"y"))
    head, _ = request_head([*GET, *((b"cookie", b"n%d=1" % number) for number in range(150))], ended=True)
    assert len(parse_request(head).fields) == 1
