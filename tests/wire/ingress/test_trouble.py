"""Why a target is not reached, between the node and the server."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.ingress.http1 import parse_response
from overlay.wire.ingress.trouble import trouble_field, trouble_in, trouble_page


def answered(field: str, status: int = 502) -> str | None:
    head = f"HTTP/1.1 {status} X\r\n{field}\r\nContent-Length: 0\r\n\r\n"
    return trouble_in(parse_response(head.encode("latin-1"), b"GET"))


def test_a_sentence_travels_and_nothing_else_is_one() -> None:
    sentence = "http://127.0.0.1:3000 is not reachable: connection refused"
    assert answered(trouble_field(sentence)) == sentence
    assert answered(trouble_field(sentence), 504) == sentence
    assert answered(trouble_field(sentence), 200) is None
    assert answered("Server: x") is None
    assert answered("overlay-trouble: it \xe9 is") == "it é is"
    assert trouble_page(sentence).startswith(b"http://127.0.0.1:3000 is not reachable: connection refused.\n")


@given(st.text())
def test_any_sentence_is_a_field_that_ends_no_line(sentence: str) -> None:
    field = trouble_field(sentence)
    assert field.isascii() and field.isprintable() and len(field) < 600
    told = answered(field)
    assert told is not None and len(told) <= len(sentence)
