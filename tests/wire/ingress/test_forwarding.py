"""What a target and a user are told of each other."""

from overlay.wire.ingress.forwarding import request_to_target, response_to_user, wants_upgrade
from overlay.wire.ingress.http1 import parse_request, parse_response


def forwarded(text: str, source: str = "192.0.2.7") -> tuple[str, list[str]]:
    head = parse_request(text.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    line, *fields = request_to_target(head, source=source, scheme="https").decode().split("\r\n")
    parse_request("\r\n".join((line, *fields)).encode())
    return line, sorted(fields[:-2])


OURS = [
    'Forwarded: for=192.0.2.7;host="x";proto=https',
    "Host: x",
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Host: x",
    "X-Forwarded-Proto: https",
]


def test_what_a_user_says_of_itself_is_not_believed() -> None:
    line, fields = forwarded(
        "GET /a HTTP/1.1\nHost: x\nX-Forwarded-For: 1.2.3.4\nx_forwarded_for: 1.2.3.4\nForwarded: for=1.2.3.4\n"
        "X-Real-IP: 1.2.3.4\nConnection: close, X-Secret, X-Forwarded-For\nX-Secret: hop\nKeep-Alive: 5\nX-Kept: 1"
    )
    assert line == "GET /a HTTP/1.1"
    assert fields == sorted([*OURS, "X-Kept: 1"])


def test_lengths_are_made_anew() -> None:
    assert "Content-Length: 5" in forwarded("POST / HTTP/1.1\nHost: x\nContent-Length: 5")[1]
    assert "Content-Length: 5" in forwarded("POST / HTTP/1.1\nHost: x\ncontent-length: 005")[1]
    assert "Transfer-Encoding: chunked" in forwarded("POST / HTTP/1.1\nHost: x\ntransfer-encoding: CHUNKED")[1]
    assert "Content-Length: 0" in forwarded("POST / HTTP/1.1\nHost: x")[1]
    assert forwarded("GET / HTTP/1.1\nHost: x")[1] == sorted(OURS)


def test_upgrades() -> None:
    asked = "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: WebSocket"
    assert {"Upgrade: websocket", "Connection: Upgrade"} <= set(forwarded(asked)[1])
    for refused in (
        asked.replace("WebSocket", "h2c") + "\nHTTP2-Settings: x",
        asked + "\nContent-Length: 5",
        asked.replace("1.1", "1.0"),
    ):
        assert not wants_upgrade(parse_request(refused.replace("\n", "\r\n").encode() + b"\r\n\r\n"))
        assert not any(field.lower().startswith(("upgrade", "connection", "http2")) for field in forwarded(refused)[1])


def test_an_ipv6_user_stands_in_quotes() -> None:
    fields = forwarded("GET / HTTP/1.1\nHost: x", "2001:db8::1")[1]
    assert 'Forwarded: for="[2001:db8::1]";host="x";proto=https' in fields
    assert "X-Forwarded-For: 2001:db8::1" in fields


def test_answers() -> None:
    def told(text: bytes, method: bytes = b"GET", framing: object = None, close: bool = False) -> list[bytes]:
        response = parse_response(text + b"\r\n\r\n", method)
        head = response_to_user(response, response.framing if framing is None else framing, close=close)  # type: ignore[arg-type]
        return head.split(b"\r\n")[:-2]

    assert told(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close, X\r\nX: 1\r\nKeep-Alive: 5\r\nY: 2") == [
        b"HTTP/1.1 200 OK",
        b"Content-Length: 5",
        b"Y: 2",
    ]
    assert told(b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"HEAD")[1:] == [b"Content-Length: 5"]
    assert told(b"HTTP/1.0 200 OK", framing="chunked")[1:] == [b"Transfer-Encoding: chunked"]
    assert told(b"HTTP/1.0 200 OK", close=True)[1:] == [b"Connection: close"]
    assert told(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade") == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
    ]
