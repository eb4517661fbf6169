"""Asks the system's own name servers what is not ours to answer.

A query goes on as the client sent it, under an identifier and from a port of our own choice (RFC 5452: both random), to
one name server after the other; a truncated answer is asked for again over TCP (RFC 7766). What comes back is handed to
the client unread, once identifier, source and question fit.
"""

import secrets
from collections.abc import Callable, Sequence

import anyio

from overlay_dns.message import is_reply_to, is_truncated

ATTEMPT_TIMEOUT = 2.0
"""Seconds for one name server over UDP; glibc's own patience is five, so that two can be tried within it."""
TCP_TIMEOUT = 4.0
CONCURRENT_LIMIT = 256
"""Questions under way at once. More are refused (SERVFAIL): the client asks again."""

Upstream = tuple[str, int]


class ForwardError(Exception):
    """No upstream answered. `args[0]` names the drop counter."""


class Forwarder:
    """`upstreams` is asked for each query, so that a change of the system's configuration counts at once."""

    def __init__(self, upstreams: Callable[[], Sequence[Upstream]]) -> None:
        self._upstreams = upstreams
        self._under_way = 0

    async def ask(self, query: bytes) -> bytes:
        """The reply to `query`, with the query's identifier. Raises `ForwardError`."""
        if self._under_way >= CONCURRENT_LIMIT:
            raise ForwardError("forward_limit")
        self._under_way += 1
        try:
            upstreams = self._upstreams()
            if not upstreams:
                raise ForwardError("no_upstream")
            for upstream in upstreams:
                reply = await self._ask_one(query, upstream)
                if reply is not None:
                    return query[:2] + reply[2:]
            raise ForwardError("upstream_silent")
        finally:
            self._under_way -= 1

    async def _ask_one(self, query: bytes, upstream: Upstream) -> bytes | None:
        ours = secrets.token_bytes(2) + query[2:]
        try:
            reply = await _ask_udp(ours, upstream)
            if reply is not None and is_truncated(reply):
                return await _ask_tcp(ours, upstream) or reply
        except (OSError, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            return None  # this name server is away: the next one is asked
        return reply


async def _ask_udp(query: bytes, upstream: Upstream) -> bytes | None:
    host, port = upstream
    with anyio.move_on_after(ATTEMPT_TIMEOUT):
        # Connected: the kernel drops what comes from anywhere else, and tells us of an unreachable port.
        async with await anyio.create_connected_udp_socket(host, port) as udp:
            await udp.send(query)
            async for reply in udp:
                if is_reply_to(reply, query):
                    return reply
    return None


async def _ask_tcp(query: bytes, upstream: Upstream) -> bytes | None:
    with anyio.move_on_after(TCP_TIMEOUT):
        async with await anyio.connect_tcp(*upstream) as stream:
            await stream.send(len(query).to_bytes(2) + query)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                data += await stream.receive()
            reply = data[2 : 2 + int.from_bytes(data[:2])]
            return reply if is_reply_to(reply, query) else None
    return None
