"""What goes by on a connection to a target becomes exchanges, however it is cut into pieces, and whatever it is."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.node.inspector.exchanges import MOST_BYTES, MOST_EXCHANGES, Exchange, Exchanges
from overlay.node.inspector.tap import MOST_WAITING, Tap

GET = b"GET /a?b HTTP/1.1\r\nHost: app.test\r\n\r\n"
POST = b"POST /up HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhome"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=1\r\nlong\r\n0\r\nT: 1\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Beside:
    def __init__(self, limit: int = 1000) -> None:
        self.told: list[tuple[str, str]] = []
        self.exchanges = Exchanges(lambda each: self.told.append((each.id, each.state)))
        self.tap = Tap(self.exchanges, "x1", limit)

    def up(self, data: bytes, now: float = 0.0) -> None:
        self.tap.to_target(data, 1000.0, now)

    def down(self, data: bytes, now: float = 0.0) -> None:
        self.tap.from_target(data, now)

    def all(self) -> list[Exchange]:
        return self.exchanges.of("x1")


def seen(exchange: Exchange) -> tuple[bytes, bytes, int | None, bytes, str]:
    answer = exchange.answer
    return (
        exchange.request.target,
        bytes(exchange.sent.kept),
        answer.status if answer else None,
        bytes(exchange.received.kept),
        exchange.state,
    )


def test_requests_and_answers_of_one_connection() -> None:
    it = Beside()
    it.up(GET, 1.0)
    assert seen(it.all()[0]) == (b"/a?b", b"", None, b"", "open")
    it.down(OK, 1.5)
    it.up(POST + CHUNKED, 2.0)
    it.down(CONTINUE + CHUNKS + OK, 3.0)
    assert [seen(each) for each in it.all()] == [
        (b"/a?b", b"", 200, b"home", "done"),
        (b"/up", b"hello", 200, b"long", "done"),
        (b"/c", b"abcde", 200, b"home", "done"),
    ]
    assert [each.took for each in it.all()] == [0.5, 1.0, 1.0] and it.all()[0].at == 1000.0
    assert it.told[:3] == [("r1", "open"), ("r1", "open"), ("r1", "done")]
    it.tap.closed(9.0)
    assert [each.state for each in it.all()] == ["done"] * 3


@given(st.lists(st.integers(1, 40), max_size=30), st.lists(st.integers(1, 40), max_size=30))
def test_pieces_make_no_difference(ups: list[int], downs: list[int]) -> None:
    it = Beside()
    for data, sizes, take in ((GET + POST + CHUNKED, ups, it.up), (OK + CHUNKS + OK, downs, it.down)):
        for size in sizes:
            take(data[:size])
            data = data[size:]
        take(data)
    assert [seen(each)[1:4] for each in it.all()] == [
        (b"", 200, b"home"),
        (b"hello", 200, b"long"),
        (b"abcde", 200, b"home"),
    ]


def test_what_ends_with_the_connection() -> None:
    it = Beside()
    it.up(GET)
    it.down(b"HTTP/1.0 200 OK\r\n\r\nso far")
    it.down(b" and further")
    it.tap.target_ended(1.0)
    it.tap.closed(1.0)
    assert seen(it.all()[0]) == (b"/a?b", b"", 200, b"so far and further", "done")
    it = Beside()
    it.up(GET)
    it.down(OK[:-1])
    it.tap.target_ended(1.0)
    it.tap.closed(1.0)
    assert it.all()[0].state == "cut"


def test_an_upgraded_connection_is_counted_and_not_read() -> None:
    it = Beside()
    it.up(b"GET /ws HTTP/1.1\r\nHost: app.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    it.down(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x01a")
    it.up(b"\x81\x81" + bytes(5))
    it.down(GET)
    (exchange,) = it.all()
    assert exchange.upgraded and seen(exchange)[4] == "open"
    assert (exchange.sent.size, exchange.received.size) == (7, 3 + len(GET))
    it.tap.closed(5.0)
    assert seen(exchange)[4] == "done" and exchange.took == 5.0


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (GET, b"SSH-2.0-OpenSSH\r\n\r\n"),
        (GET + b"\x16\x03\x01" + bytes(10) + b"\r\n\r\n", b""),
        (CHUNKED[:-20] + b"zzzz\r\nabc\r\n\r\n", b""),
        (GET, OK + OK),
        (GET * (MOST_WAITING + 1), b""),
        (GET + b"x" * 70_000, b""),
        (GET, b"x" * 70_000),
    ],
    ids=[
        "an answer",
        "a request",
        "chunks",
        "an answer to nothing",
        "requests without answers",
        "a head",
        "its answer",
    ],
)
def test_what_is_not_understood_is_left_alone(up: bytes, down: bytes) -> None:
    it = Beside()
    it.up(up)
    it.down(down)
    assert it.tap.lost and it.all()[0].state in ("done", "lost")
    it.up(GET)
    it.down(OK)
    assert all(each.state in ("done", "lost") for each in it.all())


def test_bodies_are_kept_to_their_limit_and_all_of_them_to_theirs() -> None:
    it = Beside(limit=3)
    it.up(POST)
    it.down(OK)
    (exchange,) = it.all()
    assert (bytes(exchange.sent.kept), exchange.sent.size) == (b"hel", 5) and not exchange.is_whole
    it = Beside(limit=1 << 20)
    body = os.urandom(1 << 20)
    for _ in range(40):
        it.up(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        it.down(OK)
        assert it.exchanges.held <= MOST_BYTES
    assert it.exchanges.held == sum(each.cost for each in it.all()) and 5 < len(it.all()) < 9
    for _ in range(MOST_EXCHANGES + 5):
        it.up(GET)
        it.down(OK)
    assert len(it.all()) == MOST_EXCHANGES
    it.exchanges.forget("x1")
    assert it.exchanges.held == 0 and it.all() == []


def test_one_that_is_forgotten_under_way_takes_no_bytes_any_more() -> None:
    it = Beside()
    it.up(POST[:-1])
    it.exchanges.forget("x1")
    it.up(POST[-1:])
    it.down(OK)
    assert it.exchanges.held == 0 and not it.tap.lost


HTTP = st.sampled_from([GET, POST, CHUNKED, OK, CHUNKS, CONTINUE, b"\r\n", b"0\r\n\r\n", b"HTTP/1.1 101 S\r\n\r\n"])
PIECES = st.lists(st.tuples(st.booleans(), HTTP | st.binary(max_size=60)), max_size=20)


@given(PIECES)
def test_whatever_goes_by_nothing_is_raised(pieces: list[tuple[bool, bytes]]) -> None:
    it = Beside(limit=10)
    for is_up, data in pieces:
        (it.up if is_up else it.down)(data)
    it.tap.target_ended(1.0)
    it.tap.closed(1.0)
    assert it.exchanges.held == sum(each.cost for each in it.all())
    assert all(each.state != "open" for each in it.all())
