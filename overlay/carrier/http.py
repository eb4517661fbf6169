"""The little HTTP/1.1 that carriers need: a head of bounded size, and an ordinary answer for a stranger."""

from email.utils import formatdate
from typing import Final, Protocol

import h11

from overlay.errors import RemoteProtocolError

MAX_HEAD: Final = 16 * 1024  # bytes: more than ordinary web servers take
HEAD_END: Final = b"\r\n\r\n"
_READ_SIZE: Final = 4096


class Readable(Protocol):
    async def receive(self, max_bytes: int = 65536) -> bytes: ...


async def read_head(stream: Readable, begun: bytes = b"") -> tuple[bytes, bytes]:
    """→ a request's or answer's head with the empty line that ends it, and what came behind.

    Raises `RemoteProtocolError("http_head_too_large")`, and what `receive` raises.
    """
    head = bytearray(begun)
    searched = 0
    while (end := head.find(HEAD_END, searched)) < 0:
        if len(head) > MAX_HEAD:
            raise RemoteProtocolError("http_head_too_large", f"more than {MAX_HEAD} bytes")
        searched = max(0, len(head) - len(HEAD_END) + 1)
        head += await stream.receive(_READ_SIZE)
    end += len(HEAD_END)
    return bytes(head[:end]), bytes(head[end:])


def parse_request(head: bytes) -> h11.Request | None:
    """None: it is no HTTP request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


def header(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> bytes:
    """The values of all fields of that name (in lower case) as one list; empty if there is none."""
    return b", ".join(value for field, value in message.headers if field == name)


def answer(status: int, reason: str, body: bytes, *, with_body: bool = True) -> bytes:
    """A whole answer, after which the connection is closed. Nothing in it tells what program we are."""
    fields = [
        f"HTTP/1.1 {status} {reason}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(fields).encode("ascii") + (body if with_body else b"")
