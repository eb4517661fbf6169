"""The little HTTP/1.1 that carriers need: a head of bounded size, and an ordinary answer for a stranger."""

from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

import anyio
import h11

from overlay.wire.ingress.http1 import HEAD_END, HttpError, check_begun

MAX_HEAD: Final = 16 * 1024  # bytes: more than ordinary web servers take
_READ_SIZE: Final = 4096
_LINGER: Final = 1.0  # s for an answer to arrive before we close
_LINGER_BYTES: Final = 64 * 1024


class Readable(Protocol):
    async def receive(self, max_bytes: int = 65536) -> bytes: ...


class Closable(Readable, Protocol):
    async def send(self, item: bytes) -> None: ...
    async def send_eof(self) -> None: ...


async def read_head(stream: Readable, begun: bytes = b"") -> tuple[bytes, bytes]:
    """→ a request's or answer's head with the empty line that ends it, and what came behind.

    Raises `HttpError`, a `RemoteProtocolError`: "http_head_too_large" (431), "bad_http" (400) for lines that end in no
    CRLF; and what `receive` raises.
    """
    head = bytearray(begun)
    searched = 0
    while (end := head.find(HEAD_END, searched)) < 0:
        if len(head) > MAX_HEAD:
            raise HttpError(431, "http_head_too_large", f"more than {MAX_HEAD} bytes")
        check_begun(head)
        searched = max(0, len(head) - len(HEAD_END) + 1)
        head += await stream.receive(_READ_SIZE)
    end += len(HEAD_END)
    if end > MAX_HEAD + len(HEAD_END):
        raise HttpError(431, "http_head_too_large", f"more than {MAX_HEAD} bytes")
    return bytes(head[:end]), bytes(head[end:])


def header(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> bytes:
    """The values of all fields of that name (in lower case) as one list; empty if there is none."""
    return b", ".join(value for field, value in message.headers if field == name)


def answer(status: int, body: bytes | None = None, *, with_body: bool = True, extra: tuple[str, ...] = ()) -> bytes:
    """A whole answer, after which the connection is closed. Nothing in it tells what program we are. `body`: None: the
    status in words; `extra`: more fields."""
    reason = HTTPStatus(status).phrase
    content = f"{reason}\n".encode() if body is None else body
    fields = [
        f"HTTP/1.1 {status} {reason}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(content)}",
        *extra,
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(fields).encode("ascii") + (content if with_body else b"")


async def say(stream: Closable, whole: bytes) -> None:
    """Send the last answer of a connection and see it arrive; closing stays the caller's."""
    await stream.send(whole)
    with anyio.move_on_after(_LINGER):
        try:
            await stream.send_eof()
            # Closing with unread bytes would send RST, which may overtake the answer.
            left = _LINGER_BYTES
            while left > 0:
                left -= len(await stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
