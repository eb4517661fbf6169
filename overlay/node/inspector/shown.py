"""What is shown of an exchange: fields with secrets masked, bodies decoded, laid out, or as hexadecimal digits. All of
it is a stranger's: what is made of it is bounded, whatever it claims to be. No I/O.
"""

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from typing import Final, Literal

import brotli
import msgspec

from overlay.node.inspector.exchanges import Body, Exchange, State
from overlay.wire.ingress.http1 import Fields

MOST_DECODED: Final = 256 * 1024  # bytes that a compressed body may become
MOST_TEXT: Final = 256 * 1024  # characters that are shown
MOST_DUMPED: Final = 4096  # bytes that are shown as digits
MOST_CODINGS: Final = 3  # one within the other
MOST_MEMBERS: Final = 16  # of gzip, one behind the other, which are one body (RFC 1952 §2.2)
_DIGITS_A_LINE: Final = 16
_GZIP: Final = b"\x1f\x8b"
MASK: Final = "••••••"
_SECRET: Final = frozenset(
    "authorization proxy-authorization cookie set-cookie api-key apikey x-api-key x-access-token x-auth-token "
    "x-amz-security-token x-csrf-token x-github-token x-gitlab-token x-goog-api-key x-vault-token x-xsrf-token "
    "private-token".split()
)
_CHARSETS: Final = frozenset(
    "utf-8 us-ascii ascii utf-16 iso-8859-1 latin1 iso-8859-2 iso-8859-15 windows-1250 windows-1251 windows-1252 "
    "koi8-r shift_jis euc-jp euc-kr gbk gb18030 big5".split()
)
"""Python knows "charsets" that decompress, or take quadratic time."""
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s"\[\]{},:]+')
_INDENT: Final = 2
_DEEPEST: Final = 64  # levels that are indented further

Kind = Literal["", "json", "text", "binary"]


class ShownBody(msgspec.Struct, frozen=True, kw_only=True):
    size: int  # bytes that passed, compressed as they were
    kind: Kind  # "": there is none
    text: str = ""  # binary: as digits
    notes: tuple[str, ...] = ()  # what was decoded, and what is missing


class ShownMessage(msgspec.Struct, frozen=True, kw_only=True):
    line: str  # "GET /x HTTP/1.1"
    fields: tuple[tuple[str, str], ...]
    masked: bool  # some of the values are
    body: ShownBody


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    exposure: str
    at: float  # Unix seconds
    method: str
    target: str  # path and query
    host: str
    source: str  # who asked; "": not told
    state: State
    status: int | None  # None: no answer yet, or none at all
    took_ms: float | None
    sent: int  # bytes of the request's body
    received: int  # of the answer's; of a WebSocket: of all that came
    upgraded: bool
    replay_of: str = ""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    summary: Summary
    request: ShownMessage
    answer: ShownMessage | None


def summary_of(exchange: Exchange) -> Summary:
    request = exchange.request
    source = _value(request.fields, b"x-forwarded-for").rpartition(",")[2].strip()
    return Summary(
        id=exchange.id,
        exposure=exchange.exposure,
        at=exchange.at,
        method=_text(request.method),
        target=_text(request.target),
        host=_text(request.authority),
        source=source,
        state=exchange.state,
        status=exchange.answer.status if exchange.answer is not None else None,
        took_ms=None if exchange.took is None else round(exchange.took * 1000, 3),
        sent=exchange.sent.size,
        received=exchange.received.size,
        upgraded=exchange.upgraded,
        replay_of=exchange.replay_of,
    )


def detail_of(exchange: Exchange, *, secrets: bool) -> Detail:
    """`secrets`: values of fields that hold some are shown."""
    request, answer = exchange.request, exchange.answer
    line = f"{_text(request.method)} {_text(request.target)} HTTP/1.{request.version}"
    fields = ((b"Host", request.authority), *request.fields)
    return Detail(
        summary=summary_of(exchange),
        request=_message(line, fields, exchange.sent, secrets=secrets),
        answer=None
        if answer is None
        else _message(
            f"HTTP/1.{answer.version} {answer.status} {_text(answer.reason)}".rstrip(),
            answer.fields,
            exchange.received,
            secrets=secrets,
            upgraded=exchange.upgraded,
        ),
    )


def shown_body(body: Body, coding: str, kind_said: str) -> ShownBody:
    """`coding`, `kind_said`: the values of Content-Encoding and Content-Type."""
    data, notes = bytes(body.kept), []
    whole = body.size == len(data)
    if not whole:
        notes.append(f"the first {len(data)} of {body.size} bytes were kept")
    if not data:
        return ShownBody(size=body.size, kind="", notes=tuple(notes))
    codings = [each for each in (part.strip().lower() for part in coding.split(",")) if each not in ("", "identity")]
    if len(codings) > MOST_CODINGS:
        notes.append(f"compressed more than {MOST_CODINGS} times, and not decoded")
        codings = []
    for name in reversed(codings):
        decoded = _decode(name, data)
        if decoded is None:
            notes.append(f"{name[:32]}: not decoded")
            return ShownBody(size=body.size, kind="binary", text=_dump(data), notes=tuple(notes))
        data, cut = decoded
        notes.append(f"decoded from {name}")
        if cut:
            whole = False
            notes.append(f"it goes on after these {len(data)} bytes")
    text = _as_text(data, kind_said, whole=whole)
    if text is None:
        if len(data) > MOST_DUMPED:
            notes.append(f"the first {MOST_DUMPED} of {len(data)} bytes are shown")
        return ShownBody(size=body.size, kind="binary", text=_dump(data), notes=tuple(notes))
    kind: Kind = "text"
    if whole and text.lstrip()[:1] in ("{", "["):
        laid_out = _lay_out(text)
        if laid_out is not None:
            kind, text = "json", laid_out
    if len(text) > MOST_TEXT:
        text = text[:MOST_TEXT]
        notes.append(f"the first {MOST_TEXT} characters are shown")
    return ShownBody(size=body.size, kind=kind, text=text, notes=tuple(notes))


# inside --------------------------------------------------------------------------------------------------------------


def _message(line: str, fields: Fields, body: Body, *, secrets: bool, upgraded: bool = False) -> ShownMessage:
    shown = [
        (_text(name), _text(value) if secrets else _masked(name.lower().decode("latin-1"), _text(value)))
        for name, value in fields
    ]
    coding, kind = _value(fields, b"content-encoding"), _value(fields, b"content-type")
    return ShownMessage(
        line=line,
        fields=tuple(shown),
        masked=any(value.endswith(MASK) for _, value in shown) and not secrets,
        body=ShownBody(size=body.size, kind="", notes=("the connection was upgraded: its bytes are counted alone",))
        if upgraded
        else shown_body(body, coding, kind),
    )


def _masked(name: str, value: str) -> str:
    """What tells nothing stays: the scheme, the names of cookies."""
    if name not in _SECRET or not value:
        return value
    if name == "cookie":
        return "; ".join(f"{each.partition('=')[0].strip()[:64]}={MASK}" for each in value.split(";")[:32])
    if name == "set-cookie":
        return f"{value.partition('=')[0][:64]}={MASK}"
    scheme, space, _ = value.partition(" ")
    return f"{scheme} {MASK}" if name.endswith("authorization") and space else MASK


def _decode(name: str, data: bytes) -> tuple[bytes, bool] | None:
    """→ at most `MOST_DECODED` bytes, and whether it goes on; None: it is not what it claims, or we do not know it."""
    try:
        if name in ("gzip", "x-gzip"):
            return _inflate(data, 16 + zlib.MAX_WBITS)
        if name == "deflate":
            try:
                return _inflate(data, zlib.MAX_WBITS)
            except zlib.error:
                return _inflate(data, -zlib.MAX_WBITS)  # without zlib's head, as some send it (RFC 9110 §8.4.1.2)
        if name == "br":
            return _unbrotli(data)
    except (zlib.error, brotli.error):
        pass
    return None


def _inflate(data: bytes, window: int) -> tuple[bytes, bool]:
    found = b""
    for _ in range(MOST_MEMBERS):
        decoder = zlib.decompressobj(window)
        found += decoder.decompress(data, MOST_DECODED - len(found))
        if len(found) >= MOST_DECODED:
            return found, not decoder.eof or bool(decoder.unused_data)
        data = decoder.unused_data
        if not data.startswith(_GZIP) or window < zlib.MAX_WBITS + 16:
            return found, bool(decoder.unconsumed_tail)
    return found, True


def _unbrotli(data: bytes) -> tuple[bytes, bool]:
    decoder, found = brotli.Decompressor(), b""
    while len(found) < MOST_DECODED:
        more = decoder.process(data, output_buffer_limit=MOST_DECODED - len(found))
        data = b""
        found += more
        if not more:
            break
    return found[:MOST_DECODED], len(found) >= MOST_DECODED and not decoder.is_finished()


def _as_text(data: bytes, kind_said: str, *, whole: bool) -> str | None:
    found = re.search(r"charset=\"?([\w.:-]{1,32})", kind_said, re.IGNORECASE)
    said = found[1].lower() if found else ""
    for name in (said, "utf-8") if said in _CHARSETS else ("utf-8",):
        try:
            text = codecs.getincrementaldecoder(name)().decode(data, whole)
        except UnicodeDecodeError:
            continue
        if not any(each < " " and each not in "\t\r\n\f\x1b" for each in text):
            return text
    return None


def _lay_out(text: str) -> str | None:
    """JSON with a line for each member, else as it was, to the last digit; None: it is not JSON, or not to be read."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    pieces, size = [], 0
    for piece in _laid_out(text):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_TEXT:
            break
    return "".join(pieces)


def _laid_out(text: str) -> Iterator[str]:
    depth, before = 0, ""
    for found in _PIECE.finditer(text):
        piece = found[0]
        if piece in "}]":
            depth -= 1
            yield piece if before in "{[" else _line(depth) + piece
        elif piece == ":":
            yield ": "
        else:
            if before and before in "{[,":
                yield _line(depth)
            yield piece
            depth += piece in "{["
        before = piece


def _line(depth: int) -> str:
    return "\n" + " " * _INDENT * min(depth, _DEEPEST)


def _dump(data: bytes) -> str:
    lines = []
    for at in range(0, min(len(data), MOST_DUMPED), _DIGITS_A_LINE):
        row = data[at : at + _DIGITS_A_LINE]
        letters = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        lines.append(f"{at:06x}  {row.hex(' '):{_DIGITS_A_LINE * 3 - 1}}  {letters}")
    return "\n".join(lines)


def _value(fields: Fields, name: bytes) -> str:
    return ", ".join(_text(value) for field, value in fields if field.lower() == name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
