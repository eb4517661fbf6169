"""Bodies of HTTP/1.1 messages: which of the bytes that come are payload, and where the message ends (RFC 9112 §6, §7).

Chunks are decoded and made anew by whoever sends them on, so that no framing of a stranger's is ever passed on. Chunk
extensions, which nobody uses and parsers skip in different ways, are refused in requests and left out of responses.
"""

import re
from collections.abc import Iterator
from typing import Final

from overlay.wire.ingress.http1 import Fields, Framing, HttpError, parse_trailers

MAX_TRAILERS: Final = 8 * 1024  # bytes
LAST_CHUNK: Final = b"0\r\n"
_MAX_SIZE_LINE: Final = 256  # with extensions
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,12}")
_SIZE_WITH_EXTENSIONS: Final = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


class BodyReader:
    """Feed it what comes until it is `done`; `rest` is then what came behind the message."""

    def __init__(self, framing: Framing, *, extensions: bool = False) -> None:
        self.done = framing == 0
        self.rest = b""
        self.trailers: Fields = ()
        self._chunked = framing == "chunked"
        self._left = framing if isinstance(framing, int) else 0  # of the body, or of the chunk at hand
        self._until_close = framing == "close"
        self._extensions = extensions
        self._held = b""  # an incomplete line
        self._state = "size"

    def feed(self, data: bytes) -> bytes:
        """→ the payload in `data`. Raises `HttpError` (400)."""
        if self.done:
            self.rest += data
            return b""
        if self._chunked:
            return b"".join(self._chunks(data))
        if self._until_close:
            return data
        payload = data if len(data) <= self._left else data[: self._left]
        self._left -= len(payload)
        if not self._left:
            self.done, self.rest = True, data[len(payload) :]
        return payload

    def end(self) -> bool:
        """The stream has ended. → whether the body is whole with that."""
        if self._until_close:
            self.done = True
        return self.done

    def _chunks(self, data: bytes) -> Iterator[bytes]:
        if self._held:
            data, self._held = self._held + data, b""
        at = 0
        while not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                yield piece
                if self._left:
                    return
                self._state = "end"
            if self._state == "trailers":
                end = _end_of_trailers(data, at)
                if end is None:
                    if len(data) - at > MAX_TRAILERS:
                        raise HttpError(431, "bad_chunks", "trailers without end")
                    self._held = data[at:]
                    return
                self.trailers = parse_trailers(data[at : max(at, end - 4)])
                self.done, self.rest = True, data[end:]
                return
            end = data.find(b"\r\n", at)
            if end < 0 or end - at > _MAX_SIZE_LINE:
                self._held = data[at:]
                self._check_held()
                return
            line = data[at:end]
            at = end + 2
            if self._state == "end":
                if line:
                    raise HttpError(400, "bad_chunks", "a chunk that is longer than it says")
                self._state = "size"
            else:
                self._left = self._size(line)
                self._state = "data" if self._left else "trailers"

    def _check_held(self) -> None:
        if self._state == "end" and self._held not in (b"", b"\r"):
            raise HttpError(400, "bad_chunks", "a chunk that is longer than it says")
        if len(self._held) > _MAX_SIZE_LINE:
            raise HttpError(400, "bad_chunks", "a chunk without a size")
        if self._state == "size" and self._held and not self._extensions:
            self._size(self._held.removesuffix(b"\r"))

    def _size(self, line: bytes) -> int:
        if self._extensions:
            found = _SIZE_WITH_EXTENSIONS.fullmatch(line)
            if found is not None:
                return int(found.group(1), 16)
        elif _SIZE.fullmatch(line):
            return int(line, 16)
        raise HttpError(400, "bad_chunks", "a chunk without a size")


def _end_of_trailers(data: bytes, at: int) -> int | None:
    if data.startswith(b"\r\n", at):
        return at + 2
    end = data.find(b"\r\n\r\n", at)
    return None if end < 0 else end + 4


def chunk(payload: bytes) -> bytes:
    """One chunk; of nothing: nothing, as an empty one would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def last_chunk(trailers: Fields) -> bytes:
    return b"".join((LAST_CHUNK, *(b"%b: %b\r\n" % field for field in trailers), b"\r\n"))
