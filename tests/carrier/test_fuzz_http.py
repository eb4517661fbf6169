"""Hostile heads of requests and answers: nothing but the named errors comes out."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.port import spoken
from overlay.carrier.proxy import Proxy, _check
from overlay.carrier.websocket import _check_answer, accept
from overlay.errors import RemoteProtocolError

REQUEST = (
    b"GET /any/path HTTP/1.1\r\nHost: server.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


@st.composite
def mangled(draw: st.DrawFn, head: bytes) -> bytes:
    start = draw(st.integers(0, len(head)))
    end = draw(st.integers(start, min(len(head), start + 12)))
    piece = st.one_of(st.binary(max_size=8), st.sampled_from([b"\r\n", b": ", b"\xff", b"xn--", b",", b"0"]))
    return head[:start] + draw(piece) + head[end:]


heads = st.one_of(mangled(REQUEST), mangled(ANSWER), st.binary(max_size=200).map(lambda data: data + b"\r\n\r\n"))


@given(heads)
def test_fuzz_requests(head: bytes) -> None:
    try:
        assert accept(head).startswith(b"HTTP/1.1 101 ")
    except RemoteProtocolError as error:
        assert error.reason == "bad_upgrade"


@given(heads)
def test_fuzz_answers(head: bytes) -> None:
    try:
        _check_answer(head)
    except RemoteProtocolError as error:
        assert error.reason in ("not_websocket", "websocket_refused")
    try:
        _check(Proxy("proxy.test", 3128), head)
    except RemoteProtocolError as error:
        assert error.reason == "not_http"
    except OSError as error:
        assert str(error).startswith("the proxy proxy.test:3128 ")


@given(st.binary(max_size=12))
def test_fuzz_first_bytes(start: bytes) -> None:
    try:
        spoken(start)
    except RemoteProtocolError as error:
        assert error.reason == "unknown_protocol"
