"""Asks the system's own name servers what is not ours to answer.

Of the upstreams those are asked whose domain is the longest suffix of the name (split DNS). The first one is asked,
after a short wait the next one beside it, and the first good answer wins; who was late or silent comes last for a
while. What they say is kept for as long as it says (`cache`). The same question is under way once, whoever asks: so a
name server that asks us back what we have asked it waits for itself and gets nothing, and the next one answers.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

import anyio
import msgspec
from dnslib import DNSRecord

from overlay_dns.cache import Cache, Kept
from overlay_dns.message import HEADER_SIZE, is_truncated, question_end
from overlay_dns.records import as_asked, is_to_the_point, outgoing, parse
from overlay_dns.upstream import LINK_LOCAL, UNREACHABLE, Transport, Upstream

HEDGE: Final = 0.25
"""Seconds until the next upstream is asked beside the one before: above most round trips, below what a person feels."""
PATIENCE: Final = 4.5
"""Seconds for all of them together: glibc gives up at five."""
STALE_AFTER: Final = 1.8
"""Seconds until a stale answer is given instead of a late one (RFC 8767 section 5, "client response timer")."""
LATE: Final = 30.0
"""Seconds that an upstream stays behind the others for having been late or silent."""
CONCURRENT_LIMIT: Final = 256
"""Questions under way at once. More are refused (SERVFAIL): the client asks again."""

_GOOD = (0, 3)  # NOERROR, NXDOMAIN

__all__ = ["Explanation", "ForwardError", "Forwarder", "Upstream"]


class ForwardError(Exception):
    """No upstream answered. `args[0]` names the drop counter."""


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """An answer in the cache. `seconds`: until it is stale, negative if it is."""

    qtype: str
    seconds: int
    negative: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Which way a question for `name` takes: `domain` is the suffix that decided ("" for none)."""

    name: str
    domain: str
    upstreams: list[str]  # in the order in which they are asked
    late: list[str]  # those of them that come last, for having been late or silent
    remembered: list[Remembered]


class _Flight:
    """One question under way; `reply` is there when `done` is set, or else `error`, or neither: who asked went away."""

    __slots__ = ("done", "error", "reply")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.reply: Kept | bytes | None = None
        self.error: ForwardError | None = None


class Forwarder:
    """`upstreams` is asked for each query, so that a change of the system's configuration counts at once.

    `is_own`: whether a host and port are those of this resolver itself, which is never asked.
    """

    def __init__(
        self,
        upstreams: Callable[[], Sequence[Upstream]],
        *,
        is_own: Callable[[str, int], bool] = lambda host, port: False,
        clock: Callable[[], float] = monotonic,
        transport: Transport | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._is_own = is_own
        self._clock = clock
        self._transport = transport or Transport()
        self._cache = Cache()
        self._late_until: dict[Upstream, float] = {}
        self._flights: dict[bytes, _Flight] = {}

    async def aclose(self) -> None:
        """End connections that are kept open."""
        await self._transport.aclose()

    def clear(self) -> None:
        """Forget what upstreams said: other ones count from now on."""
        self._cache.clear()
        self._late_until.clear()

    def remembered(self, query: bytes) -> Kept | None:
        """The answer to `query` that is still fresh."""
        key = outgoing(query)
        return None if key is None else self._cache.fresh(key, self._clock())

    async def ask(self, query: bytes) -> bytes:
        """The reply to `query`, with the query's identifier. Raises `ForwardError`."""
        key = outgoing(query)
        if key is None:
            raise ForwardError("bad_query")
        kept = self._cache.fresh(key, self._clock())
        if kept is None:
            stale = self._cache.stale(key, self._clock())
            if stale is not None and self._cache.waits(key, self._clock()):
                kept = stale
        found = kept if kept is not None else await self._ask_once(key)
        if isinstance(found, Kept):
            return found.render(query, self._clock())
        return as_asked(found, query)

    def explain(self, name: str) -> Explanation:
        """The way that a question for `name` takes now."""
        question = DNSRecord.question(name)
        domain, upstreams = self._route(bytes(question.pack()))
        now = self._clock()
        remembered = []
        for qtype in ("A", "AAAA", "CNAME", "MX", "TXT", "SRV", "PTR", "HTTPS"):
            kept = self._best(bytes(DNSRecord.question(name, qtype).pack()), now)
            if kept is not None:
                remembered.append(Remembered(qtype=qtype, seconds=int(kept.expires - now), negative=kept.negative))
        return Explanation(
            name=str(question.q.qname),
            domain=domain,
            upstreams=[str(upstream) for upstream in upstreams],
            late=[str(upstream) for upstream in upstreams if now < self._late_until.get(upstream, 0.0)],
            remembered=remembered,
        )

    # --- one question -------------------------------------------------------------------------------------------------

    async def _ask_once(self, key: bytes) -> Kept | bytes:
        while (under_way := self._flights.get(key)) is not None:
            await under_way.done.wait()
            if under_way.reply is not None:
                return under_way.reply
            if under_way.error is not None:
                raise ForwardError(*under_way.error.args)
        if len(self._flights) >= CONCURRENT_LIMIT:
            raise ForwardError("forward_limit")
        flight = self._flights[key] = _Flight()
        try:
            flight.reply = await self._ask_or_stale(key)
            return flight.reply
        except ForwardError as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.done.set()

    async def _ask_or_stale(self, key: bytes) -> Kept | bytes:
        stale = self._cache.stale(key, self._clock())
        error = ForwardError("upstream_silent")
        reply = None
        with anyio.move_on_after(PATIENCE if stale is None else STALE_AFTER):
            try:
                reply = await self._ask_some(key)
            except ForwardError as reason:
                error = reason
        if reply is not None and reply[3] & 15 in _GOOD:
            return self._cache.keep(key, reply, self._clock()) or reply
        if stale is not None:
            self._cache.failed(key, self._clock())
            return stale
        if reply is None:
            raise error
        return reply

    async def _ask_some(self, key: bytes) -> bytes:
        _, upstreams = self._route(key)
        if not upstreams:
            raise ForwardError("no_upstream")
        good: list[bytes] = []
        bad: list[bytes] = []
        asked: list[Upstream] = []

        async def ask(upstream: Upstream, failed: anyio.Event) -> None:
            try:
                reply = await self._transport.ask(key, upstream)
            except UNREACHABLE:
                reply = None
            if reply is not None and is_truncated(reply):
                reply = _head(
                    reply
                )  # TCP fails there, and half an answer is none: the client hears that it is too long
            if reply is None or not _is_sound(reply):
                self._mark(upstream)
            elif reply[3] & 15 in _GOOD and not is_truncated(reply):
                for other in asked[: asked.index(upstream)]:
                    self._mark(other)  # asked before, and not answered since
                self._late_until.pop(upstream, None)
                good.append(reply)
                tasks.cancel_scope.cancel()
            else:
                bad.append(reply)
            failed.set()

        async with anyio.create_task_group() as tasks:
            for upstream in upstreams:
                failed = anyio.Event()
                asked.append(upstream)
                tasks.start_soon(ask, upstream, failed)
                with anyio.move_on_after(HEDGE):
                    await failed.wait()
        if good or bad:
            return (good or bad)[0]
        raise ForwardError("upstream_silent")

    def _mark(self, upstream: Upstream) -> None:
        if len(self._late_until) >= 256:
            self._late_until.clear()
        self._late_until[upstream] = self._clock() + LATE

    def _best(self, query: bytes, now: float) -> Kept | None:
        """Whatever is kept for this name and type, with EDNS or without."""
        plain = outgoing(query)
        assert plain is not None
        edns = plain[:11] + b"\1" + plain[12:] + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
        found = (self._cache.stale(key, now) for key in (edns, plain))
        return next((kept for kept in found if kept is not None), None)

    def _route(self, key: bytes) -> tuple[str, list[Upstream]]:
        """The domain that decides, and the upstreams to ask, those that were late last."""
        best, chosen = "", list[Upstream]()
        suffixes = _suffixes(key)
        is_near = not LINK_LOCAL.isdisjoint(suffixes)
        longest = -1
        for upstream in self._upstreams():
            if self._is_own(upstream.host, upstream.port) or (is_near and not (upstream.near or upstream.domains)):
                continue
            for domain in upstream.domains or ("",):
                domain = domain.lower().strip(".")
                if domain not in suffixes or len(domain) < longest:
                    continue
                if len(domain) > longest:
                    longest, best, chosen = len(domain), domain, []
                if upstream not in chosen:
                    chosen.append(upstream)
        now = self._clock()
        return best, sorted(chosen, key=lambda upstream: now < self._late_until.get(upstream, 0.0))


def _is_sound(reply: bytes) -> bool:
    """Whether what an upstream answers is what it was asked. Errors have nothing to check."""
    if reply[3] & 15 not in _GOOD:
        return True
    message = parse(reply)
    return message is not None and is_to_the_point(message, reply)


def _head(reply: bytes) -> bytes:
    """A reply without its records."""
    end = question_end(reply)
    return reply[:4] + (b"\0\1" if end else b"\0\0") + bytes(6) + reply[HEADER_SIZE : end or HEADER_SIZE]


def _suffixes(message: bytes) -> set[str]:
    """All domains that the question's name is in, "" for the root among them."""
    labels, offset = [], 12
    while length := message[offset]:
        labels.append(message[offset + 1 : offset + 1 + length].decode("latin-1").lower())
        offset += 1 + length
    return {".".join(labels[start:]) for start in range(len(labels) + 1)}
