"""What is shown of bodies and fields: readable where it can be, bounded whatever it claims to be."""

import gzip
import json
import zlib
from functools import partial
from typing import Any

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.node.inspector.exchanges import Body, Exchange
from overlay.node.inspector.shown import MASK, MOST_DECODED, MOST_TEXT, ShownBody, detail_of, shown_body
from overlay.wire.ingress.http1 import parse_request, parse_response


def shown(data: bytes, coding: str = "", kind: str = "", size: int | None = None) -> ShownBody:
    return shown_body(Body(bytearray(data), len(data) if size is None else size), coding, kind)


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


@pytest.mark.parametrize(
    ("coding", "made"),
    [
        ("gzip", gzip.compress(b"hello " * 100, mtime=0)),
        ("deflate", zlib.compress(b"hello " * 100)),
        ("deflate", raw_deflate(b"hello " * 100)),
        ("br", brotli.compress(b"hello " * 100)),
        ("gzip, br", brotli.compress(gzip.compress(b"hello " * 100, mtime=0))),
        ("identity", b"hello " * 100),
    ],
)
def test_what_is_compressed_is_decoded(coding: str, made: bytes) -> None:
    found = shown(made, coding)
    assert (found.kind, found.text, found.size) == ("text", "hello " * 100, len(made))
    half = shown(made[: len(made) // 2], coding, size=len(made))
    assert "hello " * 100 != half.text and "bytes were kept" in half.notes[0]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_what_would_be_endless_is_cut(coding: str) -> None:
    makers: dict[str, Any] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "br": partial(brotli.compress, quality=1),
    }
    bomb = makers[coding](bytes(10_000_000))
    found = shown(bomb, coding)
    assert f"it goes on after these {MOST_DECODED} bytes" in found.notes and len(found.text) < 100_000
    twice = shown(gzip.compress(gzip.compress(b" " * 10_000_000)), "gzip, gzip")
    assert f"it goes on after these {MOST_DECODED} bytes" in twice.notes and len(twice.text) <= MOST_DECODED


def test_gzip_in_several_members_is_one_body() -> None:
    found = shown(gzip.compress(b"one ") + gzip.compress(b"two") + b"and rubbish", "gzip")
    assert found.text == "one two" and found.notes == ("decoded from gzip",)
    nothing = shown(gzip.compress(b"") * 100_000, "gzip")
    assert nothing.text == "" and "it goes on after these 0 bytes" in nothing.notes
    many = shown(gzip.compress(bytes(b"a" * MOST_DECODED)) * 100, "gzip")
    assert len(many.text) == MOST_DECODED and "it goes on" in many.notes[-1]


def test_what_is_not_what_it_claims_is_shown_as_it_is() -> None:
    found = shown(b"not compressed", "gzip")
    assert found.kind == "binary" and found.notes == ("gzip: not decoded",) and "not compressed" in found.text
    assert shown(b"x", "zstd").notes == ("zstd: not decoded",)
    assert "more than 3 times" in shown(b"x", "gzip,gzip,gzip,gzip").notes[0]


def test_json_is_laid_out_to_the_last_digit() -> None:
    text = '{"a":[1.0,1e400,12345678901234567890.10,{}],"b\\"":{"c":"x, {y}: [z]","c":[]},"d":null}'
    found = shown(text.encode(), kind="application/json")
    assert found.kind == "json" and found.text.splitlines()[:4] == ["{", '  "a": [', "    1.0,", "    1e400,"]
    assert "12345678901234567890.10," in found.text and '"c": "x, {y}: [z]",' in found.text
    assert "".join(found.text.split()) == "".join(text.split())
    assert shown(b'{"a":').kind == "text"
    assert shown(b'{"a":1}', size=8).kind == "text", "there is more of it"
    deep = shown(b"[" * 60_000 + b"]" * 60_000)
    assert deep.kind == "text" and len(deep.text) <= MOST_TEXT
    wide = shown(b"[" * 70 + b",".join([b"1"] * 60_000) + b"]" * 70)
    assert len(wide.text) <= MOST_TEXT and f"the first {MOST_TEXT} characters are shown" in wide.notes


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )
)
def test_json_means_the_same_laid_out(value: object) -> None:
    found = shown(json.dumps([value]).encode())
    assert found.kind == "json" and json.loads(found.text) == [value]


def test_text_and_what_is_none() -> None:
    assert shown("füße".encode("latin-1"), kind="text/plain; charset=ISO-8859-1").text == "füße"
    assert shown("日本".encode()[:-1], size=6).text == "日"
    assert shown("日本".encode()[:-1]).kind == "binary", "it ends there"
    # What Python takes for charsets, and should not be asked for by strangers.
    for charset in ("zlib", "punycode", "idna", "hex", "rot13", "undefined", "mbcs"):
        assert shown(zlib.compress(b"x" * 100), kind=f"text/plain; charset={charset}").kind == "binary"
    found = shown(bytes(range(256)) * 20)
    assert found.text.splitlines()[2].startswith("000020  20 21 22") and '  !"#' in found.text.splitlines()[2]
    assert len(found.text.splitlines()) == 256 and "4096 of 5120" in found.notes[0]
    assert shown(b"") == ShownBody(size=0, kind="")


@given(st.binary(max_size=300), st.sampled_from(["", "gzip", "deflate", "br", "gzip,br"]), st.text(max_size=30))
def test_whatever_it_is_it_can_be_shown(data: bytes, coding: str, kind: str) -> None:
    found = shown(data, coding, kind)
    assert all(each >= " " or each in "\t\r\n\f\x1b" for each in found.text)


def exchange() -> Exchange:
    request = parse_request(
        b"GET /p HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer abc\r\nCookie: a=1; session=2\r\nX-Api-Key: k\r\n"
        b"X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nAccept: */*\r\n\r\n"
    )
    made = Exchange("r1", "x1", 100, 1000.0, 0.0, request)
    made.answer = parse_response(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=3; Secure\r\nContent-Length: 0\r\n\r\n", b"GET"
    )
    return made


def test_secrets_are_masked_until_somebody_asks() -> None:
    masked = detail_of(exchange(), secrets=False)
    fields = dict(masked.request.fields)
    assert fields["Authorization"] == f"Bearer {MASK}" and fields["Cookie"] == f"a={MASK}; session={MASK}"
    assert (fields["X-Api-Key"], fields["Accept"], fields["Host"]) == (MASK, "*/*", "app.test")
    assert masked.answer is not None and masked.answer.fields[0] == ("Set-Cookie", f"session={MASK}")
    assert masked.request.masked and masked.answer.masked and masked.summary.source == "192.0.2.7"
    whole = detail_of(exchange(), secrets=True)
    assert dict(whole.request.fields)["Cookie"] == "a=1; session=2" and not whole.request.masked
