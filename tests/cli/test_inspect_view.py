"""The inspector's views: what is drawn, and what keys do. No terminal."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay_cli.inspect_terminal import keys_in
from overlay_cli.inspect_view import MOST_ROWS, View, detail_lines


def summary(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "exposure": "x1",
        "at": 0.0,
        "method": "GET",
        "target": f"/{number}",
        "host": "app.test",
        "source": "192.0.2.7",
        "state": "done",
        "status": 200,
        "took_ms": 12.0,
        "sent": 0,
        "received": 1234,
        "upgraded": False,
        "replay_of": "",
        **more,
    }


def message(line: str, text: str = "") -> dict[str, Any]:
    body = {"size": len(text), "kind": "text", "text": text, "notes": ["decoded from gzip"] if text else []}
    return {"line": line, "fields": [["Host", "app.test"]], "masked": False, "body": body}


def detail(number: int, text: str = "", **more: Any) -> dict[str, Any]:
    return {
        "summary": summary(number, **more),
        "request": message(f"GET /{number} HTTP/1.1"),
        "answer": message("HTTP/1.1 200 OK", text),
    }


def view(count: int = 0) -> View:
    made = View("https://app.test/ → http://127.0.0.1:3000", "Inspector: http://127.0.0.1:1/x/#x1")
    for number in range(1, count + 1):
        made.take(summary(number))
    return made


def drawn(it: View, width: int = 80, height: int = 24) -> list[str]:
    lines = it.lines(width, height)
    assert len(lines) == height and all(line.cell_len <= width for line in lines)
    return [line.plain.rstrip() for line in lines]


def selected(it: View) -> str:
    return next(
        line.plain.split()[-1] for line in it.lines(80, 24) if any(span.style == "reverse" for span in line.spans)
    )


def test_the_newest_is_first_and_selected_until_somebody_moves() -> None:
    it = view()
    assert "No requests yet." in drawn(it) and it.press("enter") is None and it.press("r") is None
    it = view(3)
    assert drawn(it)[4].endswith(" 200   12 ms   1.2 kB  /3") and selected(it) == "/3"
    it.take(summary(4))
    assert selected(it) == "/4"
    it.press("down")
    it.take(summary(5))
    assert selected(it) == "/3"
    for key, now in (("up", "/4"), ("end", "/1"), ("down", "/1"), ("home", "/5"), ("page-down", "/1"), ("z", "/1")):
        it.press(key)
        assert selected(it) == now, key
    assert it.press("q") == "quit"


def test_the_list_scrolls_to_what_is_selected_and_is_bounded() -> None:
    it = view(MOST_ROWS + 10)
    it.press("end")
    assert selected(it) == "/11" and drawn(it)[-2].endswith("/11")
    for size in ((80, 24), (40, 8), (20, 3), (10, 1), (200, 60)):
        drawn(it, *size)
    for number in range(1000, 1500):
        it.take(summary(number))
    assert selected(it).startswith("/1"), "what was selected is gone"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"status": None, "state": "open", "took_ms": None}, "  …       …   1.2 kB  /1"),
        ({"status": None, "state": "cut"}, " cut   12 ms   1.2 kB  /1"),
        ({"upgraded": True, "status": 101, "took_ms": 65_000, "sent": 1000}, " 101   1 min   2.2 kB  /1"),
        ({"replay_of": "r9"}, "  ↻ /1"),
        ({"method": "PROPPATCHED"}, "  PROPPAT 200"),
        ({"target": "/" + "a" * 100 + "?end"}, "aaa…aaaaaaaaa?end"),
        ({"target": "/\x1b[2J\r\n"}, "/?[2J??"),
    ],
)
def test_a_row(more: dict[str, Any], says: str) -> None:
    it = view()
    it.take(summary(1, **more))
    assert says in drawn(it)[4]


def test_a_narrow_terminal_shows_paths_and_the_whole_address_of_the_page() -> None:
    it = view(1)
    lines = drawn(it, 40, 12)
    assert lines[:3] == ["https://app.test/ → http://127.0.0.1:300", "0", "Inspector: http://127.0.0.1:1/x/#x1"]
    assert lines[5].endswith("GET     200  /1")
    assert drawn(it, 40, 6)[0].endswith("…"), "where there is no room at all, the requests have it"


def test_details_are_opened_scrolled_and_left() -> None:
    it = view(2)
    assert it.press("enter") == "load" and "Loading…" in drawn(it)
    it.take_detail(detail(1))
    assert "Loading…" in drawn(it), "that is another one"
    it.take_detail(detail(2, "\n".join(f"line {number}\t\x1b[31m" for number in range(100))))
    lines = drawn(it)
    assert "GET /2 HTTP/1.1" in lines and "HTTP/1.1 200 OK" in lines and "Host: app.test" in lines
    it.press("end")
    assert drawn(it)[-2] == "line 99    ?[31m"
    it.press("up")
    assert drawn(it)[-2].startswith("line 98")
    it.press("home")
    assert drawn(it)[3].startswith("r2  ")
    assert it.press("s") == "load" and it.show_secrets
    assert it.take(summary(2)) == "load" and it.take(summary(3)) is None, "only that one is on the screen"
    assert it.press("r") == "replay"
    it.press("escape")
    assert drawn(it)[4].endswith("/3") and View("", "").show_secrets is it.show_secrets


def test_a_line_is_cut_where_the_terminal_ends() -> None:
    it = view(1)
    it.press("enter")
    it.take_detail(detail(1, "日" * 50 + "x" * 25))
    lines = [line for line in drawn(it, 40) if line.startswith(("日", "x"))]
    assert lines == ["日" * 20, "日" * 20, "日" * 10 + "x" * 20, "xxxxx"]


def test_what_is_missing_is_said() -> None:
    text = "\n".join(line.plain for line in detail_lines({**detail(1, state="cut", replay_of="r9"), "answer": None}))
    assert "ended before its end" in text and "replay of r9" in text and text.endswith("No answer.")


def test_keys_come_together() -> None:
    assert keys_in(b"\x1b[B\x1b[B\r") == ["down", "down", "enter"]
    assert keys_in(b"\x1b") == ["escape"] and keys_in(b"q\x1bOA\x1b[5~") == ["q", "up", "page-up"]


@given(
    st.lists(st.sampled_from("q r s up down enter escape home end page-up page-down x take".split())),
    st.integers(1, 90),
)
def test_whatever_is_pressed_it_can_be_drawn(keys: list[str], size: int) -> None:
    it = view(5)
    for number, key in enumerate(keys):
        if key == "take":
            it.take(summary(100 + number))
        elif it.press(key) == "load":
            it.take_detail(detail(int(it.selected[1:]), "text\n" * number))
        drawn(it, size, max(1, size // 3))
