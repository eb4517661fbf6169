"""Heads as a person wants them, and nothing by which a message could end elsewhere."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.control.terms import Headers
from overlay.wire.ingress.forwarding import request_to_target, response_to_user, trailers_to_target, trailers_to_user
from overlay.wire.ingress.http1 import parse_request, parse_response, parse_trailers

CAME = "GET / HTTP/1.1\nHost: x.test\n"


def asked(fields: str = "", **headers: Any) -> list[str]:
    """The target's fields, in order."""
    head = parse_request((CAME + fields).rstrip("\n").replace("\n", "\r\n").encode() + b"\r\n\r\n")
    sent = request_to_target(head, source="192.0.2.7", scheme="https", rewrite=Headers(**headers).rewrite())
    parse_request(sent)
    return sent.decode().split("\r\n")[1:-2]


def answered(fields: str, status: int = 200, **headers: Any) -> list[str]:
    response = parse_response(f"HTTP/1.1 {status} OK\n{fields}\n\n".replace("\n", "\r\n").encode(), b"HEAD")
    rewrite = Headers(**headers).rewrite()
    return response_to_user(response, 0, close=False, rewrite=rewrite).decode().split("\r\n")[1:-2]


def test_the_fields_that_say_who_asked() -> None:
    before = (
        "X-Forwarded-For: 198.51.100.1\nx-forwarded-for: 198.51.100.2\nX_Forwarded_For: 6.6.6.6\n"
        "Forwarded: for=198.51.100.1\nX-Forwarded-Proto: http\nX-Real-IP: 198.51.100.1"
    )
    assert asked(before, forwarded="append") == [
        "Host: x.test",
        "X-Real-IP: 198.51.100.1",
        "X-Forwarded-For: 198.51.100.1, 198.51.100.2, 192.0.2.7",
        "X-Forwarded-Host: x.test",
        "X-Forwarded-Proto: http",
        'Forwarded: for=198.51.100.1, for=192.0.2.7;host="x.test";proto=https',
    ]
    assert asked(before, forwarded="remove") == ["Host: x.test"]
    assert asked(forwarded="append") == asked(before) == asked()
    assert asked()[1] == "X-Forwarded-For: 192.0.2.7"


def test_another_host() -> None:
    fields = asked(host="localhost:3000")
    assert fields[0] == "Host: localhost:3000" and "X-Forwarded-Host: x.test" in fields


def test_fields_of_requests() -> None:
    fields = asked(
        "X-Key: users\nx_key: users\nCookie: a=b\nX-Kept: 1",
        request=("X-Key: ours", "X-Empty:"),
        request_remove=("cookie",),
        forwarded="remove",
    )
    assert fields == ["Host: x.test", "X-Kept: 1", "X-Key: ours", "X-Empty: "]


def test_fields_of_answers() -> None:
    came = "Server: old/1.0\nX-Frame-Options: ALLOWALL\nSet-Cookie: a=b\nContent-Length: 5"
    assert answered(
        came, response=("X-Frame-Options: DENY", "Set-Cookie: c=d"), response_remove=("SERVER", "x-powered-by")
    ) == ["Set-Cookie: a=b", "Content-Length: 5", "X-Frame-Options: DENY", "Set-Cookie: c=d"]
    assert answered("Link: </a>", status=103, response=("X-A: b",)) == ["Link: </a>"]


@pytest.mark.parametrize(
    "headers",
    [
        {"request": ("X-A: b\r\nX-B: c",)},
        {"request": ("X-A: b\nc",)},
        {"request": ("X-A: b\0",)},
        {"request": ("X-A: ü",)},
        {"request": ("X A: b",)},
        {"request": ("X-A",)},
        {"request": (": b",)},
        {"request": ("X-A: " + "b" * 5000,)},
        {"request": ("Content-Length: 5",)},
        {"request": ("content_length: 5",)},
        {"request": ("Transfer-Encoding: chunked",)},
        {"request": ("Connection: close",)},
        {"request": ("Upgrade: h2c",)},
        {"request": ("Host: y",)},
        {"request": ("X-Forwarded-For: 1.2.3.4",)},
        {"request_remove": ("Host",)},
        {"request_remove": ("X-A: b",)},
        {"request_remove": ("",)},
        {"response": ("Content-Length: 5",)},
        {"response_remove": ("Transfer-Encoding",)},
        {"host": "a b"},
        {"host": "a\r\nX: y"},
        {"host": "ä.test"},
    ],
)
def test_what_cannot_be_asked_for(headers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="field|host"):
        Headers(**headers).rewrite()


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(["request", "response", "host", "request_remove"]))
def test_whatever_is_asked_for_a_head_stays_one(text: str, more: str, where: str) -> None:
    value = text if where == "host" else (f"{text}: {more}",) if where != "request_remove" else (text,)
    try:
        rewrite = Headers(**{where: value}).rewrite()  # type: ignore[arg-type]
    except ValueError:
        return
    head = parse_request((CAME + "X-A: b").replace("\n", "\r\n").encode() + b"\r\n\r\n")
    sent = request_to_target(head, source="192.0.2.7", scheme="http", rewrite=rewrite)
    again = parse_request(sent)
    assert again.framing == 0 and len(again.fields) <= 6
    response = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET")
    told = parse_response(response_to_user(response, 5, close=False, rewrite=rewrite), b"GET")
    assert told.framing == 5 and len(told.fields) <= 2


def test_no_name_that_a_server_could_read_otherwise_tells_who_asked() -> None:
    forged = "".join(
        f"{name}: 6.6.6.6\n"
        for name in ("X_Forwarded_For", "X.Forwarded.For", "x-forwarded_host", "X-Forwarded-Prefix", "X-Forwarded-Ssl")
    )
    assert "6.6.6.6" not in "".join(asked(forged)) and "6.6.6.6" not in "".join(asked(forged, forwarded="remove"))
    assert [each for each in asked(forged, forwarded="append") if "6.6.6.6" in each] == [
        "X-Forwarded-Prefix: 6.6.6.6",
        "X-Forwarded-Ssl: 6.6.6.6",
    ]
    ours: dict[str, Any] = {"request": ("X-User: alice",)}
    assert [each for each in asked("x.user: eve\nX_User: eve\n", **ours) if "ser" in each] == ["X-User: alice"]


def test_trailers_bring_nothing_that_is_ours_to_say() -> None:
    names = (b"X-User", b"x_user", b"X-Forwarded-For", b"Forwarded", b"X-Real-IP", b"X.Forwarded.Prefix")
    section = b"".join(b"%b: 6.6.6.6\r\n" % name for name in names) + b"X-Sum: 1"
    for forwarding in ("set", "append", "remove"):
        rewrite = Headers(request=("X-User: alice",), forwarded=forwarding, response_remove=("X-Inner",)).rewrite()
        assert trailers_to_target(parse_trailers(section), rewrite) == ((b"X-Sum", b"1"),)
        assert trailers_to_user(((b"x_inner", b"1"), (b"X-Sum", b"1")), rewrite) == ((b"X-Sum", b"1"),)
