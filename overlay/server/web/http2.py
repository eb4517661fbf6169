"""Users by HTTP/2 (RFC 9113): each stream is served as a connection with one request by HTTP/1.1 is, so that all that
holds for the one holds for the other; one that becomes a WebSocket (RFC 8441) is an upgraded connection, END_STREAM for
FIN and RST_STREAM for RST. The frames, their states and windows are the `h2` library's.

What a user may cost is bounded: streams at once, what is kept of a body that its target does not take and of an answer
that the user does not take, streams that are reset as soon as they are opened, and frames that bring nothing.
"""

import base64
import logging
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from overlay.carrier.http import MAX_HEAD, answer, say
from overlay.carrier.port import Stream
from overlay.errors import RemoteProtocolError
from overlay.wire.ingress.body import BodyReader, chunk, last_chunk
from overlay.wire.ingress.http1 import HEAD_END, HttpError, parse_response
from overlay.wire.ingress.http2 import request_head, response_fields, trailer_fields

MAX_STREAMS: Final = 100  # of a connection at once, as RFC 9113 §6.5.2 recommends at least
WINDOW: Final = 256 * 1024  # bytes of bodies that a connection holds until its targets take them
MAX_WAITING: Final = 64 * 1024  # bytes of an answer, and of frames, that may wait; then nothing more is read
MAX_HEADERS: Final = 64 * 1024  # bytes of a header list after which the connection ends; above `MAX_HEAD` it is a 431
HEADER_TABLE: Final = 4096  # bytes that are remembered of answers' fields, however much the user would (RFC 7541 §4.2)
MAX_QUIET: Final = 96 * 1024  # bytes that may come and bring no event: a header block without end
IDLE_TIMEOUT: Final = 75.0  # s without a stream
GOODBYE: Final = 2.0  # s for the last frames to go
WRITE_TIMEOUT: Final = 60.0  # s for the user to take what is sent
RESETS: Final = 200  # streams that may be reset at once, as by a person who leaves a page …
RESET_TIME: Final = 0.05  # s … and one more each (CVE-2023-44487, CVE-2025-8671)
FREE_BYTES: Final = 64 * 1024  # of use, that each connection is credited with
OVERHEAD: Final = 8  # bytes that may come for each byte of use
_READ_SIZE: Final = 64 * 1024

_log = logging.getLogger(__name__)


class Http2Stream:
    """One stream, to be read and written as a user's connection by HTTP/1.1: what comes is a request, what is sent must
    be its answer. `cut` before `close` has the user know that the answer is not whole."""

    def __init__(
        self, connection: "Http2Connection", number: int, request: bytes, method: bytes, *, websocket: bool
    ) -> None:
        self.scope = anyio.CancelScope()
        self.number = number
        self.waiting = bytearray()  # of the answer's body
        self.ending = False  # all of the answer is in `waiting`
        self.trailers: list[tuple[bytes, bytes]] = []
        self.answered = False  # all of it is in frames
        self.request_ended = False
        self.chunked = False
        self.upgraded = False  # to a WebSocket
        self._connection = connection
        self._method = method
        self._websocket = websocket  # it is to become one
        self._incoming: deque[tuple[bytes, int]] = deque([(request, 0)])  # with what it takes of the window
        self._answer: BodyReader | None = None
        self._gone = False
        self._changed = anyio.Event()

    # as a byte stream

    async def receive(self, max_bytes: int = _READ_SIZE, within: float | None = None) -> bytes:
        """Raises `EndOfStream` when the answer has gone, or the user has, or has said all of a WebSocket;
        `TimeoutError` if nothing comes `within` so many seconds."""
        if not self._incoming:
            with anyio.fail_after(within):
                await self._something()
        data, credit = self._incoming.popleft()
        if len(data) > max_bytes:
            self._incoming.appendleft((data[max_bytes:], credit))
            return data[:max_bytes]
        while self._incoming and len(data) + len(self._incoming[0][0]) <= max_bytes:
            more, and_credit = self._incoming.popleft()
            data, credit = data + more, credit + and_credit
        self._connection.taken(self, credit)
        return data

    async def _something(self) -> None:
        while not self._incoming:
            if self._gone or (self.answered and not self.upgraded) or (self.request_ended and self._websocket):
                raise anyio.EndOfStream
            await self._changed.wait()

    async def send(self, item: bytes) -> None:
        while len(self.waiting) >= MAX_WAITING and not self._gone:
            await self._changed.wait()
        await self._connection.room()
        self._take(item)

    def send_now(self, data: bytes | memoryview) -> int:
        """→ bytes taken: all or none."""
        if len(self.waiting) >= MAX_WAITING or self._connection.is_full:
            return 0
        self._take(bytes(data))
        return len(data)

    async def send_eof(self) -> None:
        """Of a WebSocket, once all has gone. An answer says itself where it ends."""
        if not self.upgraded or self._gone:
            return
        self.ending = True
        self._connection.ready(self)
        try:
            with anyio.fail_after(WRITE_TIMEOUT):
                await self.flushed()
        except TimeoutError as error:
            raise anyio.BrokenResourceError from error

    def cut(self) -> None:
        """What has not gone yet shall not go."""
        self._gone = True
        self.waiting.clear()

    def close(self) -> None:
        self._gone = True
        self._connection.closed(self)

    # for the connection

    def feed(self, data: bytes, credit: int) -> None:
        """A piece of the request's body."""
        self._incoming.append((chunk(data) if self.chunked else data, credit))
        self.wake()

    def end(self, trailers: events.TrailersReceived | None = None) -> None:
        """The request's body is whole. Raises `HttpError`."""
        if self.request_ended:
            return
        if self._websocket and trailers is not None:
            raise HttpError(400, "bad_http", "trailers of a connection")
        self.request_ended = True
        if self._websocket:
            self.wake()
        elif self.chunked:
            fields = trailer_fields(trailers.headers) if trailers is not None else ()
            self._incoming.append((last_chunk(fields), 0))
            self.wake()

    def lose(self) -> None:
        """The user does not want it any more."""
        self._gone = True
        self.waiting.clear()
        self.scope.cancel()

    async def flushed(self) -> None:
        """Until the answer has gone, as far as there is one."""
        while self.ending and not self.answered and not self._gone:
            await self._changed.wait()

    def unread(self) -> int:
        """What of the window is held by what nobody has read."""
        return sum(credit for _, credit in self._incoming)

    def wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _take(self, data: bytes) -> None:
        if self._gone:
            raise anyio.BrokenResourceError
        try:
            while data and not self.ending:
                if self._answer is None:
                    data = self._take_head(data)
                else:
                    self.waiting += self._answer.feed(data)
                    data = b""
                    self._end_if_done()
        except (HttpError, H2Error) as error:
            raise anyio.BrokenResourceError(str(error)) from error
        self._connection.ready(self)

    def _take_head(self, data: bytes) -> bytes:
        head, mark, rest = data.partition(HEAD_END)
        response = parse_response(head + mark, self._method)
        self.upgraded = self._websocket and response.status == 101
        reader = BodyReader("close" if self.upgraded else response.framing)
        final = response.status >= 200 or self.upgraded
        end = final and reader.done
        self._connection.send_head(self, response_fields(response), end=end)
        if final:
            self._answer = reader
            self.ending = self.answered = end
            self.wake()
        return rest

    def _end_if_done(self) -> None:
        if self._answer is not None and self._answer.done:
            self.ending = True
            self.trailers = [(name.lower(), value) for name, value in self._answer.trailers]


class Http2Connection:
    """`serve` serves a stream, until its request is answered. `drops` counts what was wrong by reason."""

    def __init__(
        self,
        stream: Stream,
        begun: bytes,
        serve: Callable[[Http2Stream], Awaitable[None]],
        drops: Counter[str],
    ) -> None:
        self._stream = stream
        self._begun = begun
        self._serve = serve
        self._drops = drops
        # Fields are checked by the library, and once more where lines are made of them.
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._streams: dict[int, Http2Stream] = {}
        self._ready: dict[int, Http2Stream] = {}  # that have something to send, by turns
        self._outgoing = bytearray()
        self._wake = anyio.Event()
        self._sent = anyio.Event()  # of what was outgoing
        self._done = False  # nothing more is to be written
        self._written = anyio.Event()
        self._leaving = False  # the user has said goodbye
        self._quiet = 0
        self._came = 0
        self._useful = FREE_BYTES
        self._calm_at = 0.0  # when all resets so far are forgotten
        self._patience = anyio.CancelScope()
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Until the connection ends, which the caller closes."""
        self._h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW - self._h2.inbound_flow_control_window)
        self._h2.decoder.max_header_list_size = MAX_HEADERS
        self._rest()
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._write)
            try:
                code: ErrorCodes | None = ErrorCodes.NO_ERROR
                with self._patience:
                    code = await self._read()
                await self._say_goodbye(code)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the user has gone
            self._tasks.cancel_scope.cancel()

    # what comes

    async def _read(self) -> ErrorCodes | None:
        """→ with what to say goodbye; None: that is said already"""
        data, self._begun = self._begun, b""
        while not self._leaving:
            if not data:
                await self.room()  # who takes nothing is not heard
                data = await self._stream.receive(_READ_SIZE)
                await anyio.lowlevel.checkpoint()  # the streams' turn, however fast it comes
            try:
                happened = self._h2.receive_data(data)
                if self._h2.encoder.header_table_size > HEADER_TABLE:
                    self._h2.encoder.header_table_size = HEADER_TABLE
                self._quiet = 0 if happened else self._quiet + len(data)
                self._came += len(data)
                for event in happened:
                    self._handle(event)
                self._check_calm()
            except ProtocolError as error:
                self._drops["http2_error"] += 1
                _log.debug("a user by HTTP/2 breaks its rules: %s", error)
                return None
            except _Flood as flood:
                self._drops[flood.reason] += 1
                return ErrorCodes.ENHANCE_YOUR_CALM
            self._wake.set()
            data = b""
        return ErrorCodes.NO_ERROR

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.RequestReceived):
            self._open(event)
        elif isinstance(event, events.DataReceived):
            self._useful += len(event.data)
            stream = self._streams.get(event.stream_id)
            if stream is None:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                stream.feed(event.data, event.flow_controlled_length)
        elif isinstance(event, events.TrailersReceived | events.StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                try:
                    stream.end(event if isinstance(event, events.TrailersReceived) else None)
                except HttpError as error:
                    self._drops[error.reason] += 1
                    self._reset(stream, ErrorCodes.PROTOCOL_ERROR)
                    self._count_reset()
        elif isinstance(event, events.StreamReset):
            self._count_reset()
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.lose()
        elif isinstance(event, events.ConnectionTerminated):
            self._leaving = True  # to the library that is the connection's end in both directions

    def _open(self, event: events.RequestReceived) -> None:
        fields: list[tuple[bytes, bytes]] = [(bytes(name), bytes(value)) for name, value in event.headers]
        self._useful += sum(len(name) + len(value) for name, value in fields)
        number = event.stream_id
        if len(self._streams) >= MAX_STREAMS:  # before it knows our settings a user may open more
            self._drops["http2_too_many_streams"] += 1
            self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            self._count_reset()
            return
        ended = event.stream_ended is not None
        named = dict(fields)
        method = named.get(b":method", b"")
        try:
            head, chunked = request_head(fields, ended=ended, key=base64.b64encode(secrets.token_bytes(16)))
        except HttpError as error:
            self._drops[error.reason] += 1
            head, chunked = b"", False
            refusal = answer(error.status, with_body=method != b"HEAD")
        else:
            refusal = b""
        stream = self._streams[number] = Http2Stream(
            self, number, head, method, websocket=b":protocol" in named and not refusal
        )
        stream.chunked, stream.request_ended = chunked, ended
        self._patience.deadline = float("inf")
        self._tasks.start_soon(self._run, stream, refusal)

    async def _run(self, stream: Http2Stream, refusal: bytes) -> None:
        try:
            with stream.scope:
                if refusal:
                    await say(stream, refusal)
                else:
                    await self._serve(stream)
                with anyio.move_on_after(WRITE_TIMEOUT):
                    await stream.flushed()
        except RemoteProtocolError as error:
            self._drops[error.reason] += 1
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        finally:
            stream.close()

    def _count_reset(self) -> None:
        now = anyio.current_time()
        self._calm_at = max(self._calm_at, now) + RESET_TIME
        if self._calm_at - now > RESETS * RESET_TIME:
            raise _Flood("http2_rapid_reset")

    def _check_calm(self) -> None:
        self._outgoing += self._h2.data_to_send()
        if self._quiet > MAX_QUIET or self._came > OVERHEAD * self._useful:
            raise _Flood("http2_flood")

    # what the streams say

    def taken(self, stream: Http2Stream, credit: int) -> None:
        """A stream's reader has taken so much of the window."""
        if credit:
            self._h2.acknowledge_received_data(credit, stream.number)
            self._wake.set()

    @property
    def is_full(self) -> bool:
        """Whether so much is on its way that nothing more may be said."""
        return len(self._outgoing) >= MAX_WAITING

    async def room(self) -> None:
        while self.is_full:
            await self._sent.wait()

    def send_head(self, stream: Http2Stream, fields: list[tuple[bytes, bytes]], *, end: bool) -> None:
        """Raises `H2Error`."""
        self._h2.send_headers(stream.number, fields, end_stream=end)
        self._outgoing += self._h2.data_to_send()

    def ready(self, stream: Http2Stream) -> None:
        """A stream has something to say."""
        if stream.waiting or (stream.ending and not stream.answered):
            self._ready.setdefault(stream.number, stream)
        self._wake.set()

    def closed(self, stream: Http2Stream) -> None:
        """Nobody serves it any more."""
        if self._streams.pop(stream.number, None) is None:
            return
        self._ready.pop(stream.number, None)
        self.taken(stream, stream.unread())
        if not stream.answered:
            self._reset(stream, ErrorCodes.CANCEL if stream.upgraded else ErrorCodes.INTERNAL_ERROR)
        elif not stream.request_ended and stream.upgraded:
            self._reset(stream, ErrorCodes.CANCEL)
        elif not stream.request_ended:
            self._reset(stream, ErrorCodes.NO_ERROR)  # the rest of it is of no interest (RFC 9113 §8.1)
        if not self._streams:
            self._rest()
        self._wake.set()

    def _reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        try:
            self._h2.reset_stream(stream.number, code)
        except H2Error:
            return  # the user was quicker
        stream.lose()

    def _rest(self) -> None:
        """There is no stream: whoever says nothing for long goes."""
        self._patience.deadline = anyio.current_time() + IDLE_TIMEOUT

    # what goes

    async def _write(self) -> None:
        try:
            while True:
                self._fill()
                if not self._outgoing:
                    if self._done:
                        self._written.set()
                        return
                    await self._wake.wait()
                    self._wake = anyio.Event()
                    continue
                data, self._outgoing = bytes(self._outgoing), bytearray()
                self._sent.set()
                self._sent = anyio.Event()
                with anyio.fail_after(WRITE_TIMEOUT):
                    await self._stream.send(data)
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._tasks.cancel_scope.cancel()

    def _fill(self) -> None:
        """As much of the answers as the user's windows take and is sent in one go: a frame of each stream by turns."""
        self._outgoing += self._h2.data_to_send()
        blocked = 0
        while self._ready and len(self._outgoing) < MAX_WAITING and blocked < len(self._ready):
            number, stream = next(iter(self._ready.items()))
            del self._ready[number]
            try:
                sent = self._send_frame(stream)
            except H2Error:
                stream.lose()
                continue
            self._outgoing += self._h2.data_to_send()
            if stream.waiting or not stream.answered and stream.ending:
                self._ready[number] = stream
                blocked = 0 if sent else blocked + 1

    def _send_frame(self, stream: Http2Stream) -> bool:
        """→ whether there was room for one"""
        size = min(
            len(stream.waiting),
            self._h2.local_flow_control_window(stream.number),
            self._h2.max_outbound_frame_size,
        )
        last = stream.ending and size == len(stream.waiting)
        if size <= 0 and not last:
            return False
        piece = bytes(stream.waiting[:size])
        del stream.waiting[:size]
        self._useful += size
        if piece or not stream.trailers:
            self._h2.send_data(stream.number, piece, end_stream=last and not stream.trailers)
        if last:
            if stream.trailers:
                self._h2.send_headers(stream.number, stream.trailers, end_stream=True)
            stream.answered = True
        stream.wake()
        return True

    async def _say_goodbye(self, code: ErrorCodes | None) -> None:
        """GOAWAY, behind what is on its way already. None: the library has written it."""
        for stream in tuple(self._streams.values()):
            stream.lose()
        if code is not None:
            self._h2.close_connection(code)
        self._done = True
        self._wake.set()
        with anyio.move_on_after(GOODBYE):
            await self._written.wait()


class _Flood(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
