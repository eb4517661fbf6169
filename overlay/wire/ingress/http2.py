"""Messages of HTTP/2 as those of HTTP/1.1 and back (RFC 9113 §8), without its frames.

Whatever a field of HTTP/2 may hold, in HTTP/1.1 it must be one line and no other; that is all that smuggling by this
way is made of. What is taken here goes through the same strict reading as a request by HTTP/1.1.
"""

import re
from collections.abc import Iterable
from typing import Final

from overlay.wire.ingress.http1 import Fields, HttpError, ResponseHead

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 §5.6.2, in lower case (RFC 9113 §8.2.1)
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PATH: Final = re.compile(rb"/[\x21-\x7e]*|\*")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_CONNECTION_SPECIFIC: Final = frozenset(b"connection keep-alive proxy-connection transfer-encoding upgrade".split())


def request_head(fields: Iterable[tuple[bytes, bytes]], *, ended: bool, key: bytes) -> tuple[bytes, bool]:
    """→ the head of an HTTP/1.1 request with the empty line, and whether its body is to follow in chunks. `ended`: no
    body follows. A CONNECT for a WebSocket (RFC 8441) becomes a request for an upgrade, with `key` as its
    Sec-WebSocket-Key, and what follows is the WebSocket's. Raises `HttpError` (400, 501)."""
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    crumbs: list[bytes] = []
    cookie = 0  # its place
    regular = trailers = False
    for name, value in fields:
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or regular:
                raise _malformed("a pseudo-header field where none may be")
            pseudo[name] = value
            continue
        regular = True
        _check_field(name, value)
        if name == b"host":
            hosts.append(value)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise _malformed("a TE that is not trailers")
            trailers = True
        elif name == b"cookie":
            if not crumbs:
                cookie = len(lines)
                lines.append(b"")
            crumbs.append(value)  # one field to HTTP/1.1 (RFC 9113 §8.2.3)
        elif name != b"sec-websocket-key" or b":protocol" not in pseudo:
            if name == b"content-length":
                lengths.append(value)
            lines.append(b"%b: %b" % (name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority") or (hosts[0] if hosts else b"")
    if any(host != authority for host in hosts) or not authority or not _VALUE.fullmatch(authority):
        raise _malformed("not one authority")
    if pseudo.get(b":scheme") != b"https" or not _METHOD.fullmatch(method) or not _PATH.fullmatch(path):
        raise _malformed("no method, scheme or path")
    if ended and any(length.strip(b"0") for length in lengths):
        raise _malformed("a length, and no body")
    protocol = pseudo.get(b":protocol")
    if protocol is not None and (method != b"CONNECT" or ended or lengths):
        raise _malformed("a protocol without a connection")
    if protocol is not None and protocol.lower() != b"websocket":
        raise HttpError(501, "http2_protocol")
    if crumbs:
        lines[cookie] = b"cookie: " + b"; ".join(crumbs)
    chunked = not ended and not lengths and protocol is None
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    if protocol is not None:
        method = b"GET"
        lines += (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-key: " + key)
    elif trailers:
        lines += (b"te: trailers", b"connection: te")
    head = (b"%b %b HTTP/1.1" % (method, path), b"host: " + authority, *lines, b"", b"")
    return b"\r\n".join(head), chunked


def trailer_fields(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Raises `HttpError` (400)."""
    found = tuple(fields)
    for name, value in found:
        _check_field(name, value)
    return found


def response_fields(response: ResponseHead) -> list[tuple[bytes, bytes]]:
    """Of the answer as `overlay.wire.ingress.forwarding.response_to_user` made it; an upgrade is a 200
    (RFC 8441 §5)."""
    upgraded = response.status == 101
    found = [(b":status", b"200" if upgraded else b"%d" % response.status)]
    found += ((lower, value) for name, value in response.fields if (lower := name.lower()) not in _CONNECTION_SPECIFIC)
    return [each for each in found if each[0] != b"sec-websocket-accept"] if upgraded else found


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or value != value.strip(b" \t"):
        raise _malformed("a field that is none")
    if name in _CONNECTION_SPECIFIC:
        raise _malformed("a field of a connection")


def _malformed(detail: str) -> HttpError:
    return HttpError(400, "bad_http", detail)
