"""QUIC's connections: whose streams they are, what they say, and how they end.

A connection has one stream, the carrier `udp` of the control channel, and ends with it; or it is *shared* by the users
of dynamic tunnels, each with a stream of its own, when the server knows that a node is there.
Everything happens in callbacks of the event loop (a datagram, a timer), so that an open stream needs no task, as a TCP
stream needs none.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode

from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_connection import MOST_STREAMS, STREAM_ID, BoundedConnection, flow_of, with_flow
from overlay.carrier.stream import GONE_AFTER
from overlay.wire.endpoint import Endpoint

logger = logging.getLogger(__name__)

UNANSWERED: Final = 10.0  # s in which something was sent again and again, and nothing came: the way is blocked
KEEP_ALIVE: Final = 10.0  # s; a third of the idle timeout
EMPTY: Final = 10.0  # s that a shared connection stays without a stream; at the server three times as long
_DOUBTFUL: Final = 1.0  # s without the answer that is due: no new stream by this way
_PROBE_INTERVAL: Final = 1.0  # s
LINGER: Final = 30.0  # s that a peer has to take the rest of a closed stream
_TICK: Final = 0.001  # s by which a timer of the loop may be early


class QuicLine:
    """A connection. Whoever owns the socket calls `feed` and then `flush`; `transmit` sends what comes out."""

    def __init__(
        self,
        connection: BoundedConnection,
        transmit: Callable[[Sequence[tuple[bytes, Endpoint]]], None],
        forget: Callable[[], None],
        identify: Callable[[bytes, bool], None] | None = None,
        arrive: Callable[[QuicStream], None] | None = None,
        admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = connection
        self.established = False
        """The QUIC handshake is done."""
        self.over = False
        self.shared = False
        self.room = 0  # streams that may be opened now
        self.blocked: set[QuicStream] = set()  # that wait for room
        self.first = QuicStream(self, STREAM_ID, opened=False)
        self._loop = asyncio.get_running_loop()
        self._transmit = transmit
        self._forget = forget  # called once: no datagram comes or goes any more
        self._identify = identify  # a connection id is now ours, or no more
        self._arrive = arrive  # a server's: of a shared connection, the peer has opened one more stream
        self._admitted = admitted  # called once, by `admit`
        self._streams = {STREAM_ID: self.first}
        self._left: set[int] = set()  # streams that we have closed, and the library may not have forgotten yet
        self._room_changed: Callable[[], None] = lambda: None
        self._broken: str | None = None
        self._flushing = False
        self._kept_alive = False
        self._unanswered_since: float | None = None
        self._closely = False
        self._probing: asyncio.TimerHandle | None = None
        self._emptied: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<QuicLine, {'over' if self.over else 'open'}>"

    # streams ---------------------------------------------------------------------------------------------------------

    def share(self, room_changed: Callable[[], None]) -> None:
        """From now on it does not end with its first stream. `room_changed`: `room` is another, or it is over."""
        self.shared = True
        self._room_changed = room_changed

    def admit(self) -> None:
        """A server's end: share it, and let the peer open more streams."""
        if not (self.shared or self.over):
            self.shared = True
            self.connection.permit()
            self._admitted()
            self.flush()

    @property
    def is_well(self) -> bool:
        """Whether it is worth a new stream."""
        since = self._unanswered_since
        return not self.over and (since is None or self._loop.time() < since + _DOUBTFUL)

    def open_stream(self) -> QuicStream | None:
        """None: the peer lets no more in now."""
        if self.over or not self.shared or self.room <= 0:
            return None
        self.room -= 1
        return self._add(self.connection.open_stream())

    def leave(self, stream: QuicStream, *, in_order: bool, cut: bool) -> None:
        """`stream` is closed on our side. `in_order`: but for what is on its way."""
        if self.over:
            return
        connection, stream_id = self.connection, stream.stream_id
        if not self.shared:
            if in_order:
                self._loop.call_later(LINGER, self._end, cut)
                self.flush()
            else:
                self._end(cut)
            return
        if not in_order:
            connection.abandon(stream_id, QuicErrorCode.APPLICATION_ERROR if cut else QuicErrorCode.NO_ERROR)
        else:
            connection.stop(stream_id)
            if connection.unacknowledged(stream_id):
                self._loop.call_later(LINGER, self._abandon, stream_id)
        self._streams.pop(stream_id, None)
        self._note_left(stream_id)
        connection.forget(stream_id)
        self.blocked.discard(stream)
        if not self._streams:
            self._emptied = self._loop.call_later(EMPTY * (3 if self._arrive is not None else 1), self.close)
        self.flush()

    def taken(self, stream_id: int, size: int) -> None:
        """So many bytes of a stream were read."""
        if self.connection.read(stream_id, size) and not self.over:
            self.flush()

    @property
    def takes_datagrams(self) -> bool:
        return not self.over and self.connection.takes_datagrams

    def send_datagram(self, stream_id: int, datagram: bytes) -> None:
        self.connection.send_datagram_frame(with_flow(stream_id, datagram))
        self.flush()

    def keep_alive(self) -> None:
        """From now on it does not end by silence."""
        if not self._kept_alive:
            self._kept_alive = True
            self._ping()

    def watch(self, *, closely: bool) -> None:
        """As `TcpStream.watch`."""
        self._closely = closely
        if self._probing is not None:
            self._probing.cancel()
        if closely:
            self._probe()

    def close(self) -> None:
        """With all its streams, and the peer is told."""
        for stream in tuple(self._streams.values()):
            if self.shared:
                stream.cut()
            stream.close()
        if self.shared:
            self._end(cut=False)

    # whoever owns the socket -----------------------------------------------------------------------------------------

    def feed(self, datagram: bytes, source: Endpoint) -> None:
        """Take a datagram; `flush` or `flush_soon` must follow."""
        if self.over:
            return
        self._unanswered_since = None
        try:
            self.connection.receive(datagram, source, self._loop.time())
        except Exception as error:
            self._give_up(error)

    def flush_soon(self) -> None:
        """When the datagrams that wait in the same turn of the loop are taken: one answer for all of them."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Pass on what has happened, send what there is to send, and arm the timer."""
        self._flushing = False
        if self.over:
            return
        try:
            self._take_events()
            if not self.shared and self.first.lingers and not self.connection.unacknowledged(STREAM_ID):
                self.connection.close()
            # Without a peer's address nothing was understood yet.
            if self.connection.get_peer_address() is not None:
                datagrams = self.connection.datagrams_to_send(self._loop.time())
                if datagrams:
                    self._transmit(datagrams)
            ending = self.connection.ending
            if ending is not None:
                self._take_end(ending)
            if self._unanswered_since is None and self.connection.awaits_answer:
                self._unanswered_since = self._loop.time()
            self._arm()
        except Exception as error:
            self._give_up(error)
        for stream in tuple(self.blocked):
            stream.wake_if_room()
        if self.shared and self.room != (room := self.connection.room):
            self.room = room
            self._room_changed()

    def fail(self, reason: str) -> None:
        """Over at once, without a word to the peer."""
        if not self.over:
            self._broken = self._broken or reason
            self._finish(reason)

    async def wait_established(self) -> None:
        """Until the handshake is done. Raises `BrokenResourceError`."""
        while not self.established:
            if self.over:
                raise anyio.BrokenResourceError(self._broken or "it closed the connection")
            await self._changed.wait()
        self.first.open()

    # inside ----------------------------------------------------------------------------------------------------------

    def _add(self, stream_id: int) -> QuicStream:
        if self._emptied is not None:
            self._emptied.cancel()
            self._emptied = None
        stream = self._streams[stream_id] = QuicStream(self, stream_id, opened=True)
        return stream

    def _give_up(self, error: Exception) -> None:
        # The library fails in many ways on what nobody sends by mistake; the other connections must not notice.
        logger.debug("A QUIC connection cannot go on", exc_info=error)
        self.fail(f"not understood: {type(error).__name__}")

    def _end(self, cut: bool) -> None:
        """Of our side, now."""
        if not self.over:
            self.connection.close(QuicErrorCode.APPLICATION_ERROR if cut else QuicErrorCode.NO_ERROR)
            self.flush()

    def _abandon(self, stream_id: int) -> None:
        if not self.over:
            self.connection.abandon(stream_id, QuicErrorCode.APPLICATION_ERROR)
            self.flush()

    @property
    def _patience(self) -> float:
        return GONE_AFTER if self._closely else UNANSWERED

    def _ping(self) -> None:
        if not self.over:
            self.connection.send_ping(0)
            self.flush()
            self._loop.call_later(KEEP_ALIVE, self._ping)

    def _probe(self) -> None:
        """The other machine, while it is watched closely."""
        if not (self.over or self.first.is_closed):
            self.connection.send_ping(0)
            self.flush()
            self._probing = self._loop.call_later(_PROBE_INTERVAL, self._probe)

    def _take_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    self._take_data(event)
                case events.StreamReset() | events.StopSendingReceived():
                    self._take_refusal(event)
                case events.DatagramFrameReceived():
                    self._take_datagram(event.data)
                case events.HandshakeCompleted():
                    self.established = True
                    self._wake()
                case events.ConnectionIdIssued() if self._identify is not None:
                    self._identify(event.connection_id, True)
                case events.ConnectionIdRetired() if self._identify is not None:
                    self._identify(event.connection_id, False)

    def _take_data(self, event: events.StreamDataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.take(event.data, end=event.end_stream)
        elif not self.shared:
            self._refuse()
        elif self._arrive is None or event.stream_id in self._left:
            return  # one that we have closed
        elif len(self._streams) >= 2 * MOST_STREAMS:  # the peer has ended them, and nobody has read them yet
            self.connection.abandon(event.stream_id, QuicErrorCode.APPLICATION_ERROR)
            self._note_left(event.stream_id)
        else:
            stream = self._add(event.stream_id)
            stream.take(event.data, end=event.end_stream)
            self._arrive(stream)

    def _take_refusal(self, event: events.StreamReset | events.StopSendingReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if not self.shared:
            self._refuse()
        elif stream is None:
            if event.stream_id not in self._left:  # it begins with its end
                self.connection.abandon(event.stream_id, QuicErrorCode.NO_ERROR)
                self._note_left(event.stream_id)
        elif isinstance(event, events.StopSendingReceived):
            stream.refuse("the peer takes nothing more")
        else:
            in_order = event.error_code == QuicErrorCode.NO_ERROR
            stream.end(None if in_order else "the peer gave the stream up")

    def _note_left(self, stream_id: int) -> None:
        self._left = {each for each in (*self._left, stream_id) if self.connection.has(each)}

    def _refuse(self) -> None:
        self.first.end("the peer gave the stream up")
        self.connection.close(QuicErrorCode.STREAM_STATE_ERROR)

    def _take_datagram(self, datagram: bytes) -> None:
        found = flow_of(datagram)
        if found is not None and (stream := self._streams.get(found[0])) is not None:
            stream.take_datagram(found[1])

    def _take_end(self, ending: events.ConnectionTerminated) -> None:
        if ending.error_code == QuicErrorCode.NO_ERROR:
            self._finish("the connection was closed" if self.shared else None)
        else:
            self._broken = self._broken or ending.reason_phrase or f"error {ending.error_code:#x}"
            self._finish(self._broken)

    def _finish(self, reason: str | None) -> None:
        """`reason`: why its streams are broken; None: they have ended in order."""
        if self.over:
            return
        self.over = True
        self._arm()
        if self._emptied is not None:
            self._emptied.cancel()
        self._forget()
        for stream in tuple(self._streams.values()):
            stream.end(reason)
        self._wake()
        self._room_changed()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = None if self.over else self.connection.get_timer()
        if due is None:
            return
        at = due if self._unanswered_since is None else min(due, self._unanswered_since + self._patience)
        self._timer = self._loop.call_at(at, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        self._timer = None
        now = self._loop.time()
        if self._unanswered_since is not None and now >= self._unanswered_since + self._patience:
            self.fail(f"no answer for {self._patience:g} s")
            return
        try:
            # The loop may call a clock tick early; called for the deadline above, the library finds nothing due.
            self.connection.handle_timer(due if now < due <= now + _TICK else now)
        except Exception as error:
            self._give_up(error)
        self.flush()

    def _wake(self) -> None:
        if self._changed.statistics().tasks_waiting:
            self._changed.set()
            self._changed = anyio.Event()
