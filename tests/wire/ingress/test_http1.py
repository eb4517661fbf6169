"""Heads of requests and answers: what is taken is read as h11 reads it, what two parsers could read in two ways is not
taken at all."""

import re

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.ingress.http1 import HttpError, check_begun, parse_host, parse_request, parse_response, parse_trailers

PLAIN = b"GET /a?b=c HTTP/1.1\r\nHost: Docs.Example.com:8080\r\nAccept: */*\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"


def refusal(head: bytes) -> HttpError:
    with pytest.raises(HttpError) as caught:
        check_begun(head)
        parse_request(head)
    return caught.value


def test_a_request() -> None:
    head = parse_request(PLAIN)
    assert (head.method, head.target, head.path, head.version) == (b"GET", b"/a?b=c", "/a", 1)
    assert (head.host, head.authority, head.framing) == ("docs.example.com", b"Docs.Example.com:8080", 0)
    assert head.fields == ((b"Accept", b"*/*"),) and head.keep_alive and not head.upgrade and not head.expects_continue
    assert parse_request(POST + b"Content-Length: 12\r\n\r\n").framing == 12
    assert parse_request(POST + b"Transfer-Encoding: Chunked\r\n\r\n").framing == "chunked"
    assert parse_request(POST + b"Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n").expects_continue
    assert not parse_request(PLAIN.replace(b"1.1", b"1.0")).keep_alive
    assert not parse_request(PLAIN[:-2] + b"Connection: foo, Close\r\n\r\n").keep_alive
    upgrade = parse_request(PLAIN[:-2] + b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
    assert upgrade.upgrade == b"websocket"
    assert parse_request(PLAIN[:-2] + b"Upgrade: websocket\r\n\r\n").upgrade == b""
    absolute = parse_request(b"GET http://X/p HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (absolute.target, absolute.host) == (b"/p", "x")
    assert parse_request(b"GET http://x?q HTTP/1.1\r\nHost: x\r\n\r\n").target == b"/?q"
    assert parse_request(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").target == b"*"


SMUGGLING = {
    "length beside chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks beside length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "the same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\n",
    "a signed length": POST + b"Content-Length: +5\r\n\r\n",
    "a negative length": POST + b"Content-Length: -5\r\n\r\n",
    "a length in hex": POST + b"Content-Length: 0x5\r\n\r\n",
    "a length with space": POST + b"Content-Length: 5 6\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length beyond all bounds": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "the coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    "a quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "chunked, then identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "chunked twice in one": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunked and nothing": POST + b"Transfer-Encoding: chunked,\r\n\r\n",
    "a coding with a parameter": POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n",
    "a coding with form feed": POST + b"Transfer-Encoding: \x0cchunked\r\n\r\n",
    "a coding with no-break space": POST + b"Transfer-Encoding: chunked\xa0\r\n\r\n",
    "a coding in a name with NUL": POST + b"Transfer-Encoding\0: chunked\r\n\r\n",
    "a coding with vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding:\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n",
    "tab before the colon": POST + b"Content-Length\t: 5\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "obs-fold": POST + b"X: a\r\n b\r\n\r\n",
    "obs-fold of the coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n",
    "obs-fold first": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare CR in a value": POST + b"X: a\rContent-Length: 5\r\n\r\n",
    "bare CR as line end": b"GET / HTTP/1.1\rHost: x\r\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\r\n\r\n",
    "bare LF once": POST + b"X: a\nContent-Length: 5\r\n\r\n",
    "NUL in a value": POST + b"X: a\0b\r\n\r\n",
    "NUL in a name": POST + b"X\0: a\r\n\r\n",
    "no name": POST + b": a\r\n\r\n",
    "no colon": POST + b"Content-Length 5\r\n\r\n",
    "a length in other digits": POST + "Content-Length: \u0665\r\n\r\n".encode(),
    "a length with underscore": POST + b"Content-Length: 1_0\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "another host in the target": b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host in absolute form": b"GET http://y/ HTTP/1.1\r\n\r\n",
    "a user in the target": b"GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "another scheme": b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bare authority": b"GET x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "the same host twice": b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "space in the host": b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "a user in the host": b"GET / HTTP/1.1\r\nHost: a@x\r\n\r\n",
    "a path in the host": b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab": b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment": b"GET /#a HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority form": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a leading line": b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("head", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_what_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert refusal(head).status == 400


@given(st.text("a\r\n", max_size=12))
def test_lines_that_do_not_end_in_crlf(text: str) -> None:
    begun = text.encode()
    if re.search(rb"(?<!\r)\n|\r(?=[^\n])", begun):
        with pytest.raises(HttpError):
            check_begun(begun)
    else:
        check_begun(begun)


def test_other_refusals() -> None:
    assert refusal(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n").status == 505
    assert refusal(POST + b"Expect: 200-ok\r\n\r\n").status == 417
    assert refusal(POST + b"X: y\r\n" * 101 + b"\r\n").status == 431


@pytest.mark.parametrize("text", [b"a..b", b"-a", b"[::1", b"::1", b"a b", b"a:b", b"[x]", b"a" * 300, b"\xc3\xa4"])
def test_no_hosts(text: bytes) -> None:
    with pytest.raises(HttpError):
        parse_host(text)


def test_hosts() -> None:
    assert parse_host(b"A.b.") == "a.b" and parse_host(b"[::1]:80") == "::1" and parse_host(b"1.2.3.4:") == "1.2.3.4"


def test_answers() -> None:
    def framing(fields: bytes, method: bytes = b"GET", status: bytes = b"200 OK") -> object:
        return parse_response(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n", method).framing

    assert framing(b"Content-Length: 5\r\n") == 5
    assert framing(b"Content-Length: 5\r\n", b"HEAD") == 0
    assert framing(b"", status=b"204 No Content") == framing(b"", status=b"304") == framing(b"", status=b"101 x") == 0
    assert framing(b"Transfer-Encoding: chunked\r\n") == "chunked"
    assert framing(b"") == "close"
    for wrong in (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"X: a\r\n b\r\n",
        b"X: a\nb\r\n",
    ):
        with pytest.raises(HttpError) as caught:
            framing(wrong)
        assert (caught.value.status, caught.value.reason) == (502, "bad_answer")
    for line in (b"HTTP/1.1 99 x", b"HTTP/2 200 OK", b"ICY 200 OK", b"HTTP/1.1 200 O\rK", b""):
        with pytest.raises(HttpError):
            parse_response(line + b"\r\n\r\n", b"GET")


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"304")])
def test_lengths_of_bodies_that_do_not_come_are_lengths(method: bytes, status: bytes) -> None:
    for length in (b"5\r\nContent-Length: 6", b"5, 6", b"x", b""):
        with pytest.raises(HttpError) as caught:
            parse_response(b"HTTP/1.1 %b X\r\nContent-Length: %b\r\n\r\n" % (status, length), method)
        assert caught.value.status == 502


def test_an_expectation_of_old_is_ignored() -> None:
    """RFC 9110 section 10.1.1."""
    head = parse_request(b"POST / HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert not head.expects_continue and [name for name, _ in head.fields] == [b"Content-Length"]


def test_trailers_bring_nothing_that_belongs_into_a_head() -> None:
    section = b"X-Sum: 1\r\nContent-Length: 5\r\nhost: y\r\nSet_Cookie: x\r\nproxy.connection: x"
    assert parse_trailers(section) == ((b"X-Sum", b"1"),)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    base = draw(st.sampled_from([PLAIN, POST + b"Content-Length: 5\r\n\r\n", *SMUGGLING.values()]))
    start = draw(st.integers(0, len(base)))
    end = draw(st.integers(start, min(len(base), start + 8)))
    piece = draw(st.one_of(st.binary(max_size=6), st.sampled_from([b"\r\n", b": ", b"\n", b"\r", b" ", b"\t", b"0"])))
    mangled = base[:start] + piece + base[end:]
    return mangled.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


@given(heads())
def test_fuzz_whatever_is_taken_h11_reads_the_same(head: bytes) -> None:
    try:
        ours = parse_request(head)
    except HttpError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    assert theirs.method == ours.method and theirs.http_version == b"1.%d" % ours.version
    assert ours.target == theirs.target or theirs.target.endswith(ours.target.removeprefix(b"/"))
    their_fields = [(name, value) for name, value in theirs.headers if name not in (b"host", b"content-length")]
    our_fields = [(name.lower(), value) for name, value in ours.fields if name.lower() != b"content-length"]
    assert sorted(name for name, _ in our_fields) == sorted(name for name, _ in their_fields)
    lengths = [int(value) for name, value in theirs.headers if name == b"content-length"]
    assert lengths == ([ours.framing] if lengths else [])
    assert all(b"\r" not in value and b"\n" not in value for _, value in ours.fields)


@given(st.binary(max_size=300))
def test_fuzz_answers(head: bytes) -> None:
    try:
        parse_response(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n", b"GET")
    except HttpError as error:
        assert error.status == 502
