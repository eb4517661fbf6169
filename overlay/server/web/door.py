"""Users by HTTP/1.1: one connection after the other, and on each one request after the other; each stream of HTTP/2 is
served as such a connection, too.

A user's connection has its own to the target, which is kept for the next request to the same exposure and never shared
with another user, so that nobody can get what was meant for somebody else. What users may cost is bounded here: how
many there are, how long a head may take, how long nothing may happen.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

import anyio

from overlay.carrier.http import answer, say
from overlay.carrier.limits import Room, network_of
from overlay.carrier.port import Guest
from overlay.server.access.credentials import without_secret
from overlay.server.access.gate import Asker, Reply
from overlay.server.groups import MOST_TRIES, Group
from overlay.server.tunnels import TunnelError, Visitor
from overlay.server.web.exchange import Exchange, TargetGone, Unanswered, UserGone, may_repeat
from overlay.server.web.http2 import Http2Connection, Http2Stream
from overlay.server.web.incoming import Incoming
from overlay.server.web.sites import Site
from overlay.server.web.targets import KeptTargets
from overlay.wire.control.messages import RequestEntry
from overlay.wire.ingress.forwarding import request_to_target
from overlay.wire.ingress.http1 import HttpError, RequestHead, parse_request
from overlay.wire.ingress.trouble import trouble_page

HEAD_TIMEOUT: Final = 10.0  # s for a head, from its first byte
IDLE_TIMEOUT: Final = 75.0  # s between two requests
MAX_USERS: Final = 8192  # connections at once, each of them two descriptors
MAX_PER_NETWORK: Final = 1024  # of one address (of IPv6, /64): an office behind one
_LONGEST_PATH: Final = 256  # characters in the log
_ABORTED: Final = 499  # in the log: the user went away before the answer (nginx's number for it)

Scheme = Literal["http", "https"]
Find = Callable[[RequestHead], Site | None]


def make_room() -> Room:
    return Room(MAX_USERS, MAX_PER_NETWORK)


class WebDoor:
    """Serves users. `drops` counts by reason what did not get through."""

    def __init__(self, drops: Counter[str], wall: Callable[[], float] = time.time, room: Room | None = None) -> None:
        """`room`: for all users of the shared port."""
        self._drops = drops
        self._wall = wall
        self._room = make_room() if room is None else room

    async def serve(self, guest: Guest, visitor: Visitor, find: Find) -> None:
        """Until the connection ends, which the caller closes. `find`: whose a request is."""
        network = network_of(visitor.source[0])
        if self._room.full_for(network):
            self._drops["too_many_users"] += 1
            guest.stream.cut()
            return
        visit = self._room.enter(network)
        try:
            if guest.http2:
                await self._serve_streams(guest, visitor, find)
            else:
                user, asker = Incoming(guest.stream, guest.begun), Asker(visitor.source[0], guest.secure)
                await _Connection(user, asker, visitor, find, self._drops, self._wall).run()
        finally:
            visit.leave()

    async def _serve_streams(self, guest: Guest, visitor: Visitor, find: Find) -> None:
        targets, asker = KeptTargets(), Asker(visitor.source[0], secure=True)

        async def serve(stream: Http2Stream) -> None:
            await _Connection(Incoming(stream), asker, visitor, find, self._drops, self._wall, targets).run()

        try:
            await Http2Connection(guest.stream, guest.begun, serve, self._drops).run()
        finally:
            targets.close()


class _Connection:
    def __init__(
        self,
        user: Incoming,
        asker: Asker,
        visitor: Visitor,
        find: Find,
        drops: Counter[str],
        wall: Callable[[], float],
        targets: KeptTargets | None = None,
    ) -> None:
        """`targets`: of the same user, for streams that come one after the other."""
        self._user = user
        self._scheme: Scheme = "https" if asker.secure else "http"
        self._targets = targets
        self._visitor = visitor
        self._source = visitor.source[0]
        self._asker = asker
        self._find = find
        self._drops = drops
        self._wall = wall
        self._scope = anyio.CancelScope()
        self._site: Site | None = None
        self._target: Incoming | None = None  # of `_site`

    async def run(self) -> None:
        try:
            with self._scope:
                while await self._one():
                    pass
            if self._scope.cancelled_caught:
                self._user.stream.cut()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        finally:
            self._leave_site()

    async def _one(self) -> bool:
        """One request. → whether another may come"""
        try:
            request = await self._request()
        except HttpError as error:
            self._drops[error.reason] += 1
            await say(self._user.stream, answer(error.status))
            return False
        if request is None:
            return False
        if request.method == b"CONNECT":
            await say(self._user.stream, answer(405))
            return False
        site = self._find(request)
        if site is None:
            return await self._reply(request, Reply(404, "http_stranger"))
        admitted = await site.gate.admit(request, self._asker)
        if not isinstance(admitted, Reply) and not self._enter(site):
            admitted = Reply(503, "too_many_users")
        if isinstance(admitted, Reply):
            site.note(self._refused(request, site.count + 1, admitted.status))
            return await self._reply(request, admitted)
        return await self._serve(admitted, site)

    async def _reply(self, request: RequestHead, reply: Reply) -> bool:
        if reply.reason:
            self._drops[reply.reason] += 1
        whole = answer(reply.status, with_body=request.method != b"HEAD", extra=reply.fields)
        await say(self._user.stream, whole)
        return False

    async def _request(self) -> RequestHead | None:
        """The next one; None: there is none."""
        try:
            await self._user.wait(IDLE_TIMEOUT)
        except (TimeoutError, anyio.EndOfStream):
            return None
        try:
            if self._user.has_head:
                return parse_request(await self._user.head())
            with anyio.fail_after(HEAD_TIMEOUT):
                return parse_request(await self._user.head())
        except TimeoutError as error:
            raise HttpError(408, "slow_head") from error
        except anyio.EndOfStream:
            return None

    def _enter(self, site: Site) -> bool:
        if site is self._site:
            return True
        self._leave_site()
        if site.full_for(self._asker):
            return False
        site.enter(self._scope, self._asker)
        self._site = site
        if self._targets is not None:
            self._target = self._targets.take(site)
        return True

    def _leave_site(self) -> None:
        if self._targets is not None and self._site is not None and self._target is not None:
            self._targets.put(self._site, self._target)
            self._target = None
        self._drop_target()
        if self._site is not None:
            self._site.leave(self._scope)
            self._site = None

    def _drop_target(self) -> None:
        if self._target is not None:
            self._target.stream.close()
            self._target = None

    async def _serve(self, request: RequestHead, site: Site) -> bool:
        started = time.monotonic()
        is_left = site.tunnel.is_left if isinstance(site.tunnel, Group) and may_repeat(request) else None
        exchange = Exchange(request, self._user, site.gate, is_left=is_left)
        refusal: Unanswered | None = None
        try:
            await self._exchange(exchange, site)
        except Unanswered as error:
            refusal = error
        except UserGone:
            exchange.keep_user = False
        except TargetGone as error:
            exchange.keep_user = False
            self._drops[error.reason] += 1
            self._user.stream.cut()
        finally:
            if not (exchange.keep_user and exchange.keep_target) or refusal is not None:
                self._drop_target()
            took = time.monotonic() - started
            site.note(self._entry(exchange, site.count + 1, refusal, took))
        if refusal is None:
            return exchange.keep_user
        self._drops[refusal.reason] += 1
        if exchange.began:
            self._user.stream.cut()
        else:
            told = trouble_page(refusal.trouble) if refusal.trouble and site.is_near(self._source) else None
            await say(self._user.stream, answer(refusal.status, told, with_body=request.method != b"HEAD"))
        return False

    def _refused(self, request: RequestHead, number: int, status: int) -> RequestEntry:
        return RequestEntry(
            number=number,
            at=self._wall(),
            method=request.method.decode("ascii"),
            path=without_secret(request.target.decode("ascii"))[:_LONGEST_PATH],
            status=status,
            took_ms=0.0,
            sent=0,
            source=self._source,
        )

    def _entry(self, exchange: Exchange, number: int, refusal: Unanswered | None, took: float) -> RequestEntry:
        return RequestEntry(
            number=number,
            at=self._wall(),
            method=exchange.request.method.decode("ascii"),
            path=exchange.request.target.decode("ascii")[:_LONGEST_PATH],
            status=refusal.status if refusal is not None else exchange.status or _ABORTED,
            took_ms=round(took * 1000, 3),
            sent=exchange.sent,
            source=self._source,
        )

    async def _exchange(self, exchange: Exchange, site: Site) -> None:
        request = exchange.request
        head = request_to_target(request, source=self._source, scheme=self._scheme, rewrite=site.gate.rewrite)
        group = site.tunnel if isinstance(site.tunnel, Group) else None
        if self._target is not None and not (
            self._target.is_quiet() and (group is None or group.serves_well(self._target.stream))
        ):
            self._drop_target()  # closed meanwhile, or by what nobody has asked for (RFC 9112 §9.2)
        if self._target is not None:
            try:
                await exchange.run(head, self._target)
                return
            except Unanswered as error:
                # What was kept may have been closed by the target just as the request went out.
                if error.reason != "target_closed" or not may_repeat(request):
                    raise
            self._drop_target()
        if group is not None:
            await self._exchange_with_any(exchange, head, group)
            return
        try:
            self._target = Incoming(await site.tunnel.open(replace(self._visitor, authority=request.host)))
        except TunnelError as error:
            raise Unanswered(error.status, error.reason) from error
        await exchange.run(head, self._target)

    async def _exchange_with_any(self, exchange: Exchange, head: bytes, group: Group) -> None:
        """With one member of a group after the other, as long as the request may be repeated and none has answered."""
        visitor = replace(self._visitor, authority=exchange.request.host)
        tried: set[int] = set()
        gone: Unanswered | None = None
        while True:
            try:
                self._target = Incoming(await group.open_another(visitor, tried))
            except TunnelError as error:
                raise gone or Unanswered(error.status, error.reason) from error
            try:
                await exchange.run(head, self._target)
                return
            except Unanswered as error:
                if error.reason != "target_closed" or not may_repeat(exchange.request) or len(tried) >= MOST_TRIES:
                    raise
                gone = error
            self._drops["member_gone"] += 1
            self._drop_target()
