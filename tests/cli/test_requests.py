"""A request's line in the terminal: plain, whatever users write."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay_cli import output
from overlay_cli.requests import request_line, short_line

ENTRY = {
    "at": 0.0,
    "method": "GET",
    "path": "/a?b",
    "status": 200,
    "took_ms": 12.4,
    "sent": 1234,
    "source": "192.0.2.7",
}


def test_a_line() -> None:
    line = request_line(ENTRY)
    assert line.endswith("  GET      200     12 ms    1.2 kB  192.0.2.7        /a?b")
    assert request_line({**ENTRY, "sent": 5}).count(" 5 B ") == 1
    assert request_line({**ENTRY, "sent": 7_000_000_000}).count("7.0 GB") == 1


def test_no_control_character_comes_through() -> None:
    assert request_line({**ENTRY, "path": "/\x1b[2J\r\n"}).endswith("/?[2J??")


@pytest.mark.parametrize(
    ("more", "width", "line"),
    [
        ({}, 80, "GET     200   12 ms   1.2 kB  192.0.2.7        /a?b"),
        (
            {"path": "/" + "x" * 90 + "?q=1"},
            80,
            "GET     200   12 ms   1.2 kB  192.0.2.7        /xxxxxxxxxxxxxx…xxx?q=1",
        ),
        ({"source": "2001:db8:1234:5678::1"}, 80, "GET     200   12 ms   1.2 kB  2001:db8:1234:…  /a?b"),
        ({"status": 101, "took_ms": 3_723_000.0}, 80, "GET     101  62 min   1.2 kB  192.0.2.7        /a?b"),
        ({"status": 504, "took_ms": 60_012.0}, 80, "GET     504   1 min   1.2 kB  192.0.2.7        /a?b"),
        ({"path": "/" + "x" * 90}, 60, "GET     200   12 ms   1.2 kB  /xxxxxxxxxxxx…xxxxxx"),
        ({"path": "/" + "x" * 90}, 40, "GET     200  /xxxxxxxxxx…xxxxx"),
        ({"path": "/\x1b[2J"}, 80, "GET     200   12 ms   1.2 kB  192.0.2.7        /?[2J"),
    ],
)
def test_a_line_of_a_terminal(more: dict[str, Any], width: int, line: str) -> None:
    made = short_line({**ENTRY, **more}, width)
    assert made.plain[10:] == line and made.cell_len <= width
    assert short_line({**ENTRY, **more}, width, "web").plain.startswith("web  ")


def test_errors_stand_out() -> None:
    styles = [short_line({**ENTRY, "status": status}, 80).spans[1].style for status in (200, 304, 404, 502)]
    assert styles == ["green", "cyan", "yellow", "red"]


def test_json_has_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"path": "/\x1b[2J\x9b31m\x7f\u202e\u200b\ufeff", "name": "größe 日本 → 😀"}
    output.print_json(document)
    said = capsys.readouterr().out
    assert json.loads(said) == document and "größe 日本 →" in said
    assert all(each.isprintable() for each in said.replace("\n", ""))


@given(st.text())
def test_inert_json_says_the_same(text: str) -> None:
    made = output.inert(json.dumps(text, ensure_ascii=False))
    assert json.loads(made) == text and made.isprintable()
