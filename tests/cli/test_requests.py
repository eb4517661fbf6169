"""A request's line in the terminal: plain, whatever users write."""

from overlay_cli.requests import request_line

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
    assert request_line({**ENTRY, "sent": 7_000_000_000}).count("7000.0 MB") == 1


def test_no_control_character_comes_through() -> None:
    assert request_line({**ENTRY, "path": "/\x1b[2J\r\n"}).endswith("/?[2J??")
