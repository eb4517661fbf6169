"""What a gateway makes of a message's head when it sends it on (RFC 9110 §7.6): fields of one hop are left out, and the
target learns who really asked (RFC 7239, and the X-Forwarded fields that came before it).

What users write into those fields themselves is never passed on, in whatever way some servers would read it.
"""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

from overlay.wire.ingress.http1 import Fields, Framing, RequestHead, ResponseHead, plain
from overlay.wire.ingress.rewrite import APPENDED, HOP, NO_REWRITE, Rewrite

_KEPT_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"upgrade", b"te"))
NO_UPGRADE: Final = (b"h2c",)  # it would take the rest of the connection out of our sight


def wants_upgrade(request: RequestHead) -> bool:
    """Whether the upgrade that it asks for may be passed on."""
    return bool(request.upgrade) and request.framing == 0 and not any(each in request.upgrade for each in NO_UPGRADE)


def request_to_target(request: RequestHead, *, source: str, scheme: str, rewrite: Rewrite = NO_REWRITE) -> bytes:
    """The head for the target. `source`: the user's address."""
    upgrading = wants_upgrade(request)
    lines = [b"%b %b HTTP/1.1" % (request.method, request.target), b"Host: " + (rewrite.host or request.authority)]
    named = request.options - _KEPT_OPTIONS
    before: dict[bytes, list[bytes]] = {}  # what stands before ours
    for name, value in request.fields:
        lower = name.lower()
        if lower in named or not rewrite.passes(read := plain(name)):
            continue
        if rewrite.forwarding == "append" and read in APPENDED:
            before.setdefault(lower, []).append(value)  # and nothing that is spelled otherwise
            continue
        lines.append(b"%b: %b" % (name, value))
    if request.framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
    elif request.framing or request.method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"Content-Length: %d" % request.framing)
    if rewrite.forwarding != "remove":
        ours = forwarded_fields(request.authority, source, scheme)
        lines += (b"%b: %b" % field for field in (_append(ours, before) if before else ours))
    lines += (b"%b: %b" % field for field in rewrite.to_target)
    if b"te" in request.options and any(name.lower() == b"te" for name, _ in request.fields):
        lines += (b"TE: trailers", b"Connection: TE")
    if upgrading:
        lines += (b"Upgrade: " + request.upgrade, b"Connection: Upgrade")
    lines += (b"", b"")
    return b"\r\n".join(lines)


@lru_cache(1024)  # a user asks again, and his address takes 10 µs to read and print
def forwarded_fields(authority: bytes, source: str, scheme: str) -> Fields:
    address = ip_address(source)
    node = f'"[{address}]"' if isinstance(address, IPv6Address) else str(address)
    quoted = authority.decode("ascii")
    return (
        (b"X-Forwarded-For", str(address).encode()),
        (b"X-Forwarded-Host", authority),
        (b"X-Forwarded-Proto", scheme.encode()),
        (b"Forwarded", f'for={node};host="{quoted}";proto={scheme}'.encode()),
    )


def _append(ours: Fields, before: dict[bytes, list[bytes]]) -> Fields:
    """Who asked first is told by those that were there; of the other two, ours is what the last proxy asked for."""
    fields = []
    for name, value in ours:
        came = before.get(name.lower(), [])
        if name in (b"X-Forwarded-For", b"Forwarded"):
            fields.append((name, b", ".join((*came, value))))
        else:
            fields.append((name, came[0] if came else value))
    return tuple(fields)


def trailers_to_target(trailers: Fields, rewrite: Rewrite) -> Fields:
    return tuple(field for field in trailers if rewrite.passes_trailer(plain(field[0])))


def trailers_to_user(trailers: Fields, rewrite: Rewrite) -> Fields:
    return tuple(field for field in trailers if plain(field[0]) not in rewrite.drop)


def response_to_user(response: ResponseHead, framing: Framing, *, close: bool, rewrite: Rewrite = NO_REWRITE) -> bytes:
    """The head for a user by HTTP/1.x. `framing`: as the body is sent on, which may differ from how it came; `close`:
    the connection ends with it."""
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    named = response.options - _KEPT_OPTIONS
    drop = rewrite.drop
    upgraded = response.status == 101
    for name, value in response.fields:
        lower = name.lower()
        if drop and plain(name) in drop:
            continue
        if lower == b"content-length":
            # Of an answer without a body, to HEAD or 304, it tells how long that would be.
            if response.status >= 200 and response.status != 204:
                lines.append(b"Content-Length: " + value)
        elif lower not in HOP and lower not in named or (lower == b"upgrade" and upgraded):
            lines.append(b"%b: %b" % (name, value))
    if response.status >= 200:
        lines += (b"%b: %b" % field for field in rewrite.to_user)
    if framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
    if upgraded:
        lines.append(b"Connection: Upgrade")
    elif close:
        lines.append(b"Connection: close")
    lines += (b"", b"")
    return b"\r\n".join(lines)
