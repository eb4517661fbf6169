"""The inspector of a node: what passes to inspected exposures, who looks at it, and requests that are sent again."""

import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from overlay.carrier.streams import OverTcp
from overlay.carrier.tapped import TappedStream
from overlay.daemon.application import serve_application
from overlay.daemon.localapi import Produce, Write
from overlay.errors import Exit, UserError
from overlay.node.inspector.exchanges import Exchange, Exchanges
from overlay.node.inspector.page import make_page
from overlay.node.inspector.shown import Detail, Summary, detail_of, summary_of
from overlay.node.inspector.tap import Tap
from overlay.wire.ingress.http1 import RequestHead

REPLAY_HEADER: Final = b"X-Overlay-Replay"
REPLAY_TIMEOUT: Final = 60.0  # s for the whole answer
MOST_REPLAYS: Final = 8  # at once
MOST_WATCHERS: Final = 32
MOST_CALLERS: Final = 64  # connections to the page
_BACKLOG: Final = 256  # changes that wait for a watcher; more are left out
_OF_A_CONNECTION: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect content-length "
    b"x-overlay-replay".split()
)

Open = Callable[[str], Awaitable[OverTcp | None]]
"""A connection to the target of the exposure of this id; None: there is none."""


class Inspector:
    def __init__(self, open_target: Open) -> None:
        self._open_target = open_target
        self._exchanges = Exchanges(self._changed)
        self._watchers: dict[MemoryObjectSendStream[Summary], str] = {}
        self._replays = 0
        self._tasks: TaskGroup | None = None
        self._url = ""
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Serve the page, once it is asked for, until cancelled."""
        try:
            async with anyio.create_task_group() as self._tasks:
                await anyio.sleep_forever()
        finally:
            self._tasks, self._url = None, ""

    def tapped(self, stream: OverTcp, exposure: str, limit: int) -> TappedStream:
        """A connection to the target, with the inspector beside it. `limit`: bytes of each body that are kept."""
        return TappedStream(stream, _Beside(Tap(self._exchanges, exposure, limit)))

    def forget(self, exposure: str) -> None:
        """It is inspected no longer."""
        self._exchanges.forget(exposure)
        for sending in [each for each, watched in self._watchers.items() if watched == exposure]:
            sending.close()

    def summaries(self, exposure: str = "") -> list[Summary]:
        """The oldest first; of all exposures: ""."""
        found = self._exchanges.of(exposure) if exposure else self._exchanges.all()
        return [summary_of(each) for each in found]

    async def detail(self, name: str, *, secrets: bool) -> Detail:
        """Raises `UserError` ("exchange-unknown")."""
        exchange = self._known(name)
        # To lay out a large body takes a tenth of a second.
        return await anyio.to_thread.run_sync(lambda: detail_of(exchange, secrets=secrets))

    def watch(self, exposure: str, form: Callable[[bytes], bytes] = lambda line: line + b"\n") -> Produce:
        """What writes the summary of each exchange of an exposure ("": of all), as JSON in this form: first of those
        that there are, then at each change. Raises `UserError` ("too-many-watchers")."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise UserError("too-many-watchers", "Too many look at requests already.", "End one of them.")

        async def produce(write: Write) -> None:
            sending, receiving = anyio.create_memory_object_stream[Summary](_BACKLOG)
            self._watchers[sending] = exposure
            with sending, receiving:
                try:
                    for each in self.summaries(exposure):
                        await write(form(msgspec.json.encode(each)))
                    await write(b"\n")
                    async for each in receiving:
                        await write(form(msgspec.json.encode(each)))
                finally:
                    self._watchers.pop(sending, None)

        return produce

    async def replay(self, name: str) -> str:
        """Send a request to the target once more. → the new exchange's id. Raises `UserError`: "exchange-unknown",
        "replay-impossible", "target-unreachable", "too-many-replays"."""
        old = self._known(name)
        request = old.request
        if request.upgrade or request.method == b"CONNECT":
            raise _impossible(f"{name} asked for another protocol", "Only ordinary requests can be sent again.")
        if not old.asked:
            raise _impossible(
                f"{name}'s body has not ended" if old.state == "open" else f"{name} was cut off before its body ended",
                "Send it anew from where it came." if old.state != "open" else "Try again when it has.",
            )
        if not old.is_whole:
            raise _impossible(
                f"of the {old.sent.size} bytes of {name}'s body {len(old.sent.kept)} were kept",
                "Expose with a larger --inspect-body to keep whole bodies.",
            )
        if self._replays >= MOST_REPLAYS:
            raise UserError("too-many-replays", "Too many requests are sent again at this moment.", "Try again.")
        body = bytes(old.sent.kept)  # it may be forgotten while we connect
        self._replays += 1
        try:
            stream = await self._open_target(old.exposure)
            if stream is None:
                raise UserError(
                    "target-unreachable",
                    f"The target of {old.exposure} is not reachable.",
                    "Start the service, or see 'overlay expose ls' for where it should be.",
                    Exit.UNREACHABLE,
                )
            tap = Tap(self._exchanges, old.exposure, old.limit, name)
            await _send(TappedStream(stream, _Beside(tap)), tap, _head(request, len(body)) + body)
        finally:
            self._replays -= 1
        if tap.last is None:
            raise _impossible(f"the head of {name} has as many fields as can be", "")
        return tap.last.id

    async def url(self) -> str:
        """Where a browser of this machine finds the page. Raises `UserError` ("page-failed", "not-up")."""
        async with self._lock:
            if not self._url:
                if self._tasks is None:
                    raise UserError("not-up", "This node is ending.", exit_code=Exit.NOT_RUNNING)
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                try:
                    listener.bind(("127.0.0.1", 0))
                    listener.listen(64)
                    listener.setblocking(False)
                except OSError as error:
                    listener.close()
                    raise UserError(
                        "page-failed", f"The inspector's page cannot be served: {error.strerror}.", "Try again."
                    ) from error
                port, secret = listener.getsockname()[1], secrets.token_urlsafe(24)
                page = make_page(self, port, secret)
                await self._tasks.start(partial(serve_application, page, listener, limit=MOST_CALLERS))
                self._url = f"http://127.0.0.1:{port}/{secret}/"
            return self._url

    # inside ----------------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> Exchange:
        found = self._exchanges.get(name)
        if found is None:
            raise UserError(
                "exchange-unknown",
                f"There is no request '{name[:64]}' here.",
                "'overlay expose inspect' lists those that are kept; older ones are gone.",
            )
        return found

    def _changed(self, exchange: Exchange) -> None:
        if not self._watchers:
            return
        summary = summary_of(exchange)
        for sending, exposure in tuple(self._watchers.items()):
            if exposure in ("", exchange.exposure):
                with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
                    sending.send_nowait(summary)


class _Beside:
    """A tap and the clocks."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def sent(self, data: bytes | memoryview) -> None:
        self._tap.to_target(bytes(data), time.time(), time.monotonic())

    def received(self, data: bytes) -> None:
        self._tap.from_target(data, time.monotonic())

    def ended(self) -> None:
        self._tap.target_ended(time.monotonic())

    def closed(self) -> None:
        self._tap.closed(time.monotonic())


async def _send(stream: TappedStream, tap: Tap, request: bytes) -> None:
    """Until the answer has ended, or does not go on."""
    try:
        with anyio.move_on_after(REPLAY_TIMEOUT):
            await stream.send(request)
            while not tap.answers and not tap.lost:
                await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


def _head(request: RequestHead, size: int) -> bytes:
    """What belongs to the connection that it came by is left out; how long the body is, is said anew."""
    fields = [(b"Host", request.authority)] if request.authority else []
    fields += [field for field in request.fields if field[0].lower() not in _OF_A_CONNECTION]
    if size or request.framing:
        fields.append((b"Content-Length", b"%d" % size))
    fields += [(REPLAY_HEADER, b"1"), (b"Connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"%b %b HTTP/1.%d\r\n%b\r\n" % (request.method, request.target, bool(request.authority), lines)


def _impossible(why: str, hint: str) -> UserError:
    return UserError("replay-impossible", f"That cannot be sent again: {why}.", hint)
