"""One request and its answer, between a user's connection and one to the target.

Nothing is held back: what the target says is sent on as it comes, so that events (server-sent ones, long polling)
arrive when they happen. A body goes to the target while the answer is awaited already, which makes 100-continue and
early refusals work by themselves.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute
from wsproto.utilities import generate_accept_token

from overlay.carrier.port import UserStream
from overlay.server.access.gate import Gate
from overlay.server.access.meter import forward_metered
from overlay.server.web.http2 import Http2Stream
from overlay.server.web.incoming import Incoming
from overlay.wire.ingress.body import BodyReader, chunk, last_chunk
from overlay.wire.ingress.forwarding import response_to_user, wants_upgrade
from overlay.wire.ingress.http1 import Framing, HttpError, RequestHead, ResponseHead, parse_response
from overlay.wire.ingress.trouble import trouble_in

ANSWER_TIMEOUT: Final = 60.0  # s for the target to begin its answer, after the request's last byte: 504 then
BODY_TIMEOUT: Final = 60.0  # s for the user's next bytes of a body
WRITE_TIMEOUT: Final = 60.0  # s for a user, or target, to take what is sent
MAX_INTERIM: Final = 1000  # answers before the final one (102 comes every few seconds at most)
WATCH_AFTER: Final = 1.0  # s of waiting for the target, after which it is of interest whether the user is still there
LEFT_INTERVAL: Final = 0.25  # s between looks whether who is to answer is still the one to ask
_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))  # RFC 9110 §9.2.2, without those that write

T = TypeVar("T")


class UserGone(Exception):
    """The user's connection is of no further use."""


class Unanswered(Exception):
    """Nothing of an answer has reached the user yet. `status`: what to say instead; `trouble`: a sentence for the owner
    of the target alone."""

    def __init__(self, status: int, reason: str, trouble: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.trouble = trouble


class TargetGone(Exception):
    """The target has left in the middle of its answer: the user must not take that for a whole one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Exchange:
    """See the module's docstring. `run` once."""

    def __init__(
        self,
        request: RequestHead,
        user: Incoming,
        gate: Gate,
        *,
        is_left: Callable[[object], bool] | None = None,
    ) -> None:
        """`is_left`: whether another than this stream's end is to be asked, where the request may be repeated: notice
        then within some 2 s, too, when the machine at the other end is gone."""
        self.request = request
        self.status = 0  # of the final answer, once it is known
        self.sent = 0  # bytes of its body
        self.began = False  # something of the final answer has been sent to the user
        self.keep_user = False
        self.keep_target = False
        self.upgraded = False
        self._user = user
        self._is_left = is_left
        self._meter = gate.meter
        self._rewrite = gate.rewrite
        self._body = BodyReader(request.framing)
        self._is_sent = self._body.done
        self._body_error: Exception | None = None

    async def run(self, head: bytes, target: Incoming) -> None:
        """`head`: the request's, as the target gets it.

        Raises `Unanswered`, if another answer may be given; `UserGone`; `TargetGone` in the middle of an answer.
        """
        if self._body.done:
            await self._send_to_target(target, head)
            await self._respond(target)
            return
        async with anyio.create_task_group() as tasks:
            # With the head goes what is here of the body: most bodies are whole then.
            sent = anyio.Event()
            tasks.start_soon(self._pump, head, target, sent, tasks.cancel_scope)
            try:
                await self._respond(target, sent)
            except (Unanswered, UserGone, TargetGone) as error:
                if self._body_error is None:
                    self._body_error = error
            tasks.cancel_scope.cancel()
        if self._body_error is not None:
            raise self._body_error
        if not self._is_sent:
            # What came next on either connection would be taken for the rest of the body.
            self.keep_user = self.keep_target = False

    # the request's body

    async def _pump(self, head: bytes, target: Incoming, sent: anyio.Event, scope: anyio.CancelScope) -> None:
        chunked = self.request.framing == "chunked"
        waiting = head
        try:
            while True:
                if not waiting or self._user.ahead:
                    payload = self._body.feed(await self._from_user())
                    waiting += chunk(payload) if chunked else payload
                if self._body.done and chunked:
                    waiting += last_chunk(self._body.trailers)
                size, last = len(waiting), self._body.done
                if waiting:
                    await self._give_target(target, waiting)
                    waiting = b""
                if last:
                    self._user.unread(self._body.rest)
                    self._is_sent = True
                    sent.set()
                await self._pace_up(size)
                if last:
                    return
        except HttpError as error:
            # The target must not take what it has for a whole request.
            target.stream.cut()
            self._body_error = Unanswered(error.status, error.reason)
            scope.cancel()
        except UserGone as error:
            target.stream.cut()
            self._body_error = error
            scope.cancel()
        except (Unanswered, TargetGone):
            sent.set()  # it does not want the rest: its answer says why, if there is one in time

    async def _from_user(self) -> bytes:
        try:
            return await self._user.receive(BODY_TIMEOUT)
        except TimeoutError as error:
            raise HttpError(408, "slow_body") from error
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise UserGone from error

    # the answer

    async def _respond(self, target: Incoming, sent: anyio.Event | None = None) -> None:
        interim = 0
        while (response := await self._head(target, sent)).status < 200 and response.status != 101:
            interim += 1
            if interim > MAX_INTERIM:
                raise Unanswered(502, "bad_answer")
            if self.request.version == 1:
                await self._to_user(response_to_user(response, 0, close=False))
            await anyio.lowlevel.checkpoint()  # others' turn, however many there are
        trouble = trouble_in(response)
        if trouble is not None:
            self.keep_target = False
            raise Unanswered(response.status, "target_unreachable", trouble)
        if response.status < 300 and response.status != 101 and self._opens_websocket:
            raise Unanswered(502, "bad_answer")  # a user by HTTP/2 would take it for a WebSocket
        self.status = response.status
        if response.status == 101:
            await self._upgrade(response, target)
        else:
            await self._body_to_user(response, target)

    async def _head(self, target: Incoming, sent: anyio.Event | None) -> ResponseHead:
        try:
            if self._is_sent:
                with contextlib.suppress(TimeoutError):
                    await target.wait(WATCH_AFTER)
            if target.has_head:
                return parse_response(await target.head(), self.request.method)
            if self._is_left is not None:
                target.probe(closely=True)
            with anyio.fail_after(ANSWER_TIMEOUT) as patience:
                if sent is not None and not self._is_sent:
                    patience.deadline = float("inf")  # the user's time is watched where the body comes from
                    await self._either(sent.wait, target.wait)
                    patience.deadline = anyio.current_time() + ANSWER_TIMEOUT
                await self._watched(target.wait, target)
                head = await target.head()
            if self._is_left is not None:
                target.probe(closely=False)
            return parse_response(head, self.request.method)
        except TimeoutError as error:
            raise Unanswered(504, "target_slow") from error
        except HttpError as error:
            raise Unanswered(502, error.reason) from error
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise Unanswered(502, "target_closed") from error

    async def _body_to_user(self, response: ResponseHead, target: Incoming) -> None:
        framing: Framing = response.framing
        if framing in ("chunked", "close"):
            framing = "chunked" if self.request.version == 1 else "close"
        self.keep_user = self.request.keep_alive and framing != "close"
        reader = BodyReader(response.framing, extensions=True)
        waiting = response_to_user(response, framing, close=not self.keep_user, rewrite=self._rewrite)
        while True:
            if not reader.done and (not waiting or target.ahead):
                payload = await self._payload(target, reader)
                self.sent += len(payload)
                waiting += chunk(payload) if framing == "chunked" else payload
            if reader.done and framing == "chunked":
                waiting += last_chunk(reader.trailers)
            if waiting:
                await self._to_user(waiting)
                self.began = True
                waiting = b""
            if reader.done:
                break
        target.unread(reader.rest)
        self.keep_target = response.keep_alive and not target.ahead

    async def _payload(self, target: Incoming, reader: BodyReader) -> bytes:
        try:
            return reader.feed(await self._watched(target.receive))
        except HttpError as error:
            raise TargetGone("bad_answer") from error
        except anyio.EndOfStream as error:
            if reader.end():
                return b""
            raise TargetGone("answer_cut") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise TargetGone("answer_cut") from error

    async def _upgrade(self, response: ResponseHead, target: Incoming) -> None:
        user, other = self._user.stream, target.stream
        if not wants_upgrade(self.request) or isinstance(other, Http2Stream):
            raise Unanswered(502, "bad_answer")
        if self._opens_websocket and not _accepts(self.request, response):
            raise Unanswered(502, "bad_answer")
        self.began = self.upgraded = True
        await self._to_user(response_to_user(response, 0, close=False) + target.take_ahead())
        if early := self._user.take_ahead():
            await self._send_to_target(target, early)
        forwarded = await forward_metered(user, other, self._meter)
        self.sent = forwarded.b_to_a

    @property
    def _opens_websocket(self) -> bool:
        """Whether the upgrade is ours, for a user by HTTP/2 (RFC 8441)."""
        return isinstance(self._user.stream, Http2Stream) and bool(self.request.upgrade)

    # sending and waiting

    async def _to_user(self, data: bytes) -> None:
        self._meter.add(len(data))
        try:
            # Nearly always the kernel takes it at once, and a time limit costs more than the rest of it.
            if (taken := self._user.stream.send_now(data)) < len(data):
                with anyio.fail_after(WRITE_TIMEOUT):
                    await self._user.stream.send(data[taken:])
            if self._meter.down is not None:
                await self._meter.down.passed(len(data))
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise UserGone from error

    async def _send_to_target(self, target: Incoming, data: bytes) -> None:
        await self._give_target(target, data)
        await self._pace_up(len(data))

    async def _pace_up(self, size: int) -> None:
        if size and self._meter.up is not None:
            await self._meter.up.passed(size)

    async def _give_target(self, target: Incoming, data: bytes) -> None:
        self._meter.add(len(data))
        try:
            if (taken := target.stream.send_now(data)) < len(data):
                with anyio.fail_after(WRITE_TIMEOUT):
                    await target.stream.send(data[taken:])
        except TimeoutError as error:
            raise Unanswered(504, "target_slow") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            # A target that refuses early closes with its answer on the way: the answer is read first.
            if self._is_sent:
                raise Unanswered(502, "target_closed") from error
            raise TargetGone("target_closed") from error

    async def _watched(self, get: Callable[[float | None], Awaitable[T]], awaited: Incoming | None = None) -> T:
        """What `get` gives. Raises `UserGone` when the user goes while it takes long, and `BrokenResourceError` when
        `awaited`, which has not answered yet, is left."""
        with contextlib.suppress(TimeoutError):
            return await get(WATCH_AFTER)
        if not self._is_sent:
            return await get(None)  # who sends the body watches
        gone = False
        result: list[T] = []
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal gone
                try:
                    await self._user.watch()
                except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    gone = True
                    tasks.cancel_scope.cancel()

            async def look(is_left: Callable[[object], bool], stream: object) -> None:
                nonlocal error
                while not is_left(stream):  # noqa: ASYNC110 - a clock decides it, too
                    await anyio.sleep(LEFT_INTERVAL)
                error = anyio.BrokenResourceError("it is out")
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            if self._is_left is not None and awaited is not None:
                tasks.start_soon(look, self._is_left, awaited.stream)
            try:
                result.append(await get(None))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as caught:
                error = caught  # out of the group as it is
            tasks.cancel_scope.cancel()
        if result:
            return result[0]
        if error is not None:
            raise error
        assert gone
        raise UserGone

    async def _either(self, one: Callable[[], Awaitable[object]], other: Callable[[], Awaitable[object]]) -> None:
        """Until one of them is done. Raises what it raises."""
        errors: list[Exception] = []
        async with anyio.create_task_group() as tasks:

            async def run(part: Callable[[], Awaitable[object]]) -> None:
                try:
                    await part()
                except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                    errors.append(error)
                tasks.cancel_scope.cancel()

            tasks.start_soon(run, one)
            tasks.start_soon(run, other)
        if errors:
            raise errors[0]


def may_repeat(request: RequestHead) -> bool:
    """Whether a request may be sent again on a new connection, when the old one was closed as it came."""
    return request.method in _IDEMPOTENT and request.framing == 0


def _accepts(request: RequestHead, response: ResponseHead) -> bool:
    """Whether the target has understood what it was asked (RFC 6455 §4.2.2)."""
    key = next(value for name, value in request.fields if name == b"sec-websocket-key")
    said = [value for name, value in response.fields if name.lower() == b"sec-websocket-accept"]
    return said == [generate_accept_token(key)]


def raw_socket(stream: UserStream) -> socket.socket:
    found: socket.socket = stream.extra(SocketAttribute.raw_socket)
    return found
