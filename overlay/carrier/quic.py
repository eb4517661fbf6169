"""The carrier `udp`: one QUIC stream as a byte stream, and how a node opens it.

Everything happens in callbacks of the event loop (a datagram, a timer), so that an open stream needs no task, as a TCP
stream needs none. What the peer sends ahead is bounded by its window, what it does not take by `UNSENT`.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode

from overlay.carrier.carriers import DialOptions
from overlay.carrier.limits import KIB
from overlay.carrier.quic_connection import STREAM_ID, BoundedConnection
from overlay.carrier.stream import GONE_AFTER, errno_text
from overlay.carrier.verification import authorities_pem, check_pin
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint

logger = logging.getLogger(__name__)

UNSENT: Final = 256 * KIB  # bytes that are taken before the peer has acknowledged them
UNANSWERED: Final = 10.0  # s in which something was sent again and again, and nothing came: the way is blocked
LARGEST_DATAGRAM: Final = 1100  # bytes that fit a datagram of the connection, whatever the path
EARLY_DATAGRAMS: Final = 16  # that are kept until somebody takes them
KEEP_ALIVE: Final = 10.0  # s; a third of the idle timeout
_PROBE_INTERVAL: Final = 1.0  # s
LINGER: Final = 30.0  # s that a peer has to take the rest of a closed stream
_TICK: Final = 0.001  # s by which a timer of the loop may be early
_PIECE: Final = 16 * KIB  # room that is waited for, so that writes do not become crumbs
_READ_BATCH: Final = 64  # datagrams taken before other tasks get a turn
_DATAGRAM_SIZE: Final = 4096  # no QUIC peer of ours sends as much at once
_REFUSALS: Final = 3  # port unreachable, in a row: there is no server any more
_CERTIFICATE_ALERTS: Final = range(QuicErrorCode.CRYPTO_ERROR + 42, QuicErrorCode.CRYPTO_ERROR + 50)  # RFC 8446 §6
_PASSING: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE))  # a datagram less, as if the network lost it


class QuicStream:
    """A `CarrierStream`. Whoever owns the socket calls `feed` and then `flush`; `transmit` sends what comes out."""

    def __init__(
        self,
        connection: BoundedConnection,
        transmit: Callable[[Sequence[tuple[bytes, Endpoint]]], None],
        forget: Callable[[], None],
        identify: Callable[[bytes, bool], None] | None = None,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = connection
        self.established = False
        """The QUIC handshake is done."""
        self._loop = asyncio.get_running_loop()
        self._transmit = transmit
        self._forget = forget  # called once: no datagram comes or goes any more
        self._identify = identify  # a connection id is now ours, or no more
        self.admit = admit
        """For who has seen that the peer is a node of ours: much may come from it."""
        self._received = bytearray()
        self._datagrams: deque[bytes] = deque(maxlen=EARLY_DATAGRAMS)
        self._on_datagram: Callable[[bytes], object] = self._datagrams.append
        self._opened = False  # the stream exists: a server learns that from its first byte
        self._ended = False  # in order, by the peer
        self._broken: str | None = None
        self._closed = False
        self._eof_sent = False
        self._cut = False
        self._over = False
        self._flushing = False
        self._unanswered_since: float | None = None
        self._closely = False
        self._probing: asyncio.TimerHandle | None = None
        self._when_closed: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<QuicStream, {'over' if self._over else 'open'}>"

    # the stream ------------------------------------------------------------------------------------------------------

    async def receive(self, max_bytes: int = 65536, within: float | None = None) -> bytes:
        """At least one byte. Raises `EndOfStream` when the peer has closed in order, `TimeoutError` if nothing comes
        `within` so many seconds, `BrokenResourceError` else."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise anyio.ClosedResourceError
            if self._received:
                data = bytes(self._received[:max_bytes])
                del self._received[:max_bytes]
                if self.connection.read(len(data)) and not self._over:
                    self.flush()
                return data
            if self._broken is not None:
                raise anyio.BrokenResourceError(self._broken)
            if self._ended:
                raise anyio.EndOfStream
            with anyio.fail_after(within):
                await self._changed.wait()

    async def send_some(self, data: bytes | memoryview) -> int:
        """Take what there is room for, waiting until there is some. → bytes taken; cancelled: none."""
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            taken = self.send_now(data)
            if taken or (self._opened and not data):
                return taken
            await self._changed.wait()

    def send_now(self, data: bytes | memoryview) -> int:
        """→ bytes taken: what there is room for, if it is worth a packet."""
        self._raise_if_over()
        room = UNSENT - self.connection.unacknowledged
        if not self._opened or room < min(len(data), _PIECE):
            return 0
        piece = bytes(data[:room])
        self._write(piece)
        return len(piece)

    async def send(self, item: bytes) -> None:
        """All of `item`; how much of it has gone when this is cancelled, only the peer knows."""
        view = memoryview(item)
        while view:
            view = view[await self.send_some(view) :]

    async def send_eof(self) -> None:
        """The other direction stays open."""
        self._raise_if_over()
        if self._opened:
            self._write(b"", end=True)
            self._eof_sent = True
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """At once; but what was sent before `send_eof` is brought to its end, without anybody waiting for it. Whoever
        waits in another task is woken."""
        if self._closed:
            return
        self._closed = True
        if self._when_closed is not None:
            self._when_closed()
        self._received.clear()
        if not self._over:
            if self._eof_sent and not self._cut:
                self._loop.call_later(LINGER, self._end)
                self.flush()
            else:
                self._end()
        self._wake()

    def detach(self) -> None:
        """There is no socket to give away."""

    def unread(self, data: bytes) -> None:
        """Put back what was received last."""
        self._received[:0] = data

    def cut(self) -> None:
        """Have `close` tell the peer that this is not all."""
        self._cut = True

    def is_quiet(self) -> bool:
        """Whether nothing has come, and the peer has not gone."""
        return not (self._received or self._ended or self._over)

    def send_datagram(self, datagram: bytes) -> bool:
        """By a datagram of the connection (RFC 9221). → whether it fits one."""
        if len(datagram) > LARGEST_DATAGRAM or self._over or not self.connection.takes_datagrams:
            return False
        self.connection.send_datagram_frame(datagram)
        self.flush()
        return True

    def take_datagrams(self, take: Callable[[bytes], object]) -> None:
        """Have `take` called with what comes by datagrams of the connection, and has come."""
        self._on_datagram = take
        while self._datagrams:
            take(self._datagrams.popleft())

    def keep_alive(self) -> None:
        """From now on the connection does not end by silence: neither end has a heartbeat of its own."""
        if not (self._over or self._closed):
            self.connection.send_ping(0)
            self.flush()
            self._loop.call_later(KEEP_ALIVE, self.keep_alive)

    def when_closed(self, call: Callable[[], None]) -> None:
        """As `TcpStream.when_closed`."""
        self._when_closed = call

    def watch(self, *, closely: bool) -> None:
        """As `TcpStream.watch`."""
        self._closely = closely
        if self._probing is not None:
            self._probing.cancel()
        if closely:
            self._probe()

    # whoever owns the socket -----------------------------------------------------------------------------------------

    def feed(self, datagram: bytes, source: Endpoint) -> None:
        """Take a datagram; `flush` or `flush_soon` must follow."""
        if self._over:
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
        if self._over:
            return
        try:
            self._take_events()
            if self._closed and self._eof_sent and not self.connection.unacknowledged:
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
        self._wake()

    def fail(self, reason: str) -> None:
        """Over at once, without a word to the peer."""
        if not self._over:
            self._broken = self._broken or reason
            self._finish()
            self._wake()

    async def wait_established(self) -> None:
        """Until the handshake is done. Raises `BrokenResourceError`."""
        while not self.established:
            if self._over:
                raise anyio.BrokenResourceError(self._broken or "it closed the connection")
            await self._changed.wait()
        self._opened = True

    # inside ----------------------------------------------------------------------------------------------------------

    def _give_up(self, error: Exception) -> None:
        # The library fails in many ways on what nobody sends by mistake; the other connections must not notice.
        logger.debug("A QUIC connection cannot go on", exc_info=error)
        self.fail(f"not understood: {type(error).__name__}")

    def _end(self) -> None:
        """Of our side, now."""
        if not self._over:
            self.connection.close(QuicErrorCode.APPLICATION_ERROR if self._cut else QuicErrorCode.NO_ERROR)
            self.flush()

    @property
    def _patience(self) -> float:
        return GONE_AFTER if self._closely else UNANSWERED

    def _probe(self) -> None:
        """The other machine, while it is watched closely."""
        if not (self._over or self._closed):
            self.connection.send_ping(0)
            self.flush()
            self._probing = self._loop.call_later(_PROBE_INTERVAL, self._probe)

    def _raise_if_over(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._over or self._broken is not None:
            raise anyio.BrokenResourceError(self._broken or "closed by the peer")

    def _write(self, data: bytes, *, end: bool = False) -> None:
        try:
            self.connection.send_stream_data(STREAM_ID, data, end_stream=end)
        except (RuntimeError, ValueError) as error:  # ended already, or the peer has asked us to stop
            raise anyio.BrokenResourceError(str(error)) from error
        self.flush()

    def _take_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            match event:
                case events.StreamDataReceived(stream_id=stream_id) if stream_id == STREAM_ID:
                    self._opened = True
                    self._received += event.data
                    self._ended = self._ended or event.end_stream
                case events.StreamDataReceived() | events.StreamReset() | events.StopSendingReceived():
                    self._broken = self._broken or "the peer gave the stream up"
                    self.connection.close(QuicErrorCode.STREAM_STATE_ERROR)
                case events.DatagramFrameReceived():
                    self._take_datagram(event.data)
                case events.HandshakeCompleted():
                    self.established = True
                case events.ConnectionIdIssued() if self._identify is not None:
                    self._identify(event.connection_id, True)
                case events.ConnectionIdRetired() if self._identify is not None:
                    self._identify(event.connection_id, False)

    def _take_datagram(self, datagram: bytes) -> None:
        if not self._closed:
            self._on_datagram(datagram)

    def _take_end(self, ending: events.ConnectionTerminated) -> None:
        if ending.error_code == QuicErrorCode.NO_ERROR:
            self._ended = True
        else:
            self._broken = self._broken or ending.reason_phrase or f"error {ending.error_code:#x}"
        self._finish()

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._arm()
            self._forget()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = None if self._over else self.connection.get_timer()
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


async def open_quic(endpoint: Endpoint, options: DialOptions) -> QuicStream:
    """An `Opener`: one UDP socket, one connection, one stream. Lasts until the server answers or this is cancelled.

    Raises `OSError` when the network says that nobody is there, `RemoteProtocolError` when what answers does not speak
    our QUIC (`not_quic`), shows another certificate than it should (`wrong_certificate`), or is full (`server_busy`).
    """
    client = _Client(endpoint, _configuration(endpoint, options))
    try:
        await client.handshake()
        check_pin(client.stream.connection.peer_certificate, options.pin)
    except BaseException:
        client.stream.close()
        raise
    return client.stream


def _configuration(endpoint: Endpoint, options: DialOptions) -> QuicConfiguration:
    host = options.host or endpoint[0]
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise OSError(f"{host} is not a host's name") from error
    configuration = QuicConfiguration(is_client=True, server_name=host, verify_mode=ssl.CERT_NONE)
    if options.authorities or options.ca_file is not None:
        configuration.verify_mode = ssl.CERT_REQUIRED
        configuration.cadata, configuration.cafile, configuration.capath = authorities_pem(options.ca_file)
    return configuration


class _Client:
    """The socket of one connection. It is connected, so that the kernel tells us what the way answers."""

    def __init__(self, endpoint: Endpoint, configuration: QuicConfiguration) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._error: OSError | None = None
        self._refusals = 0
        self._socket = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(endpoint)
            connection = BoundedConnection(configuration=configuration)
            self.stream = QuicStream(connection, self._transmit, self._close)
            self._loop.add_reader(self._socket, self._readable)
        except BaseException:
            self._socket.close()
            raise

    async def handshake(self) -> None:
        self.stream.connection.connect(self._endpoint, self._loop.time())
        self.stream.flush()
        try:
            await self.stream.wait_established()
        except anyio.BrokenResourceError as error:
            raise self._reason(str(error)) from error

    def _reason(self, text: str) -> OSError | RemoteProtocolError:
        ending = self.stream.connection.ending
        if self._error is not None:
            number = self._error.errno or 0
            return OSError(number, errno_text(number)) if number else self._error
        if ending is None:
            return RemoteProtocolError("not_quic", text)
        if ending.error_code == QuicErrorCode.CONNECTION_REFUSED:
            return RemoteProtocolError("server_busy", text)
        if ending.error_code in _CERTIFICATE_ALERTS:
            return RemoteProtocolError("wrong_certificate", text)
        if text == "Idle timeout":
            return OSError(errno.ETIMEDOUT, "no answer")
        return RemoteProtocolError("not_quic", text)

    def _readable(self) -> None:
        for _ in range(_READ_BATCH):
            try:
                datagram = self._socket.recv(_DATAGRAM_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                self._on_error(error)
                break
            self._refusals = 0
            self.stream.feed(datagram, self._endpoint)
            if self._socket.fileno() < 0:
                return
        self.stream.flush()

    def _transmit(self, datagrams: Sequence[tuple[bytes, Endpoint]]) -> None:
        for datagram, _ in datagrams:
            try:
                self._socket.send(datagram)
            except OSError as error:
                if error.errno not in _PASSING:
                    self._on_error(error)
                return

    def _on_error(self, error: OSError) -> None:
        # Before the handshake is done, the way's answer is the outcome. Afterwards a single one proves nothing, since
        # routes come back, and it may be forged: QUIC sends again, and only a row of refusals ends it.
        if not self.stream.established:
            self._error = error
            self.stream.fail(errno_text(error.errno) if error.errno else str(error))
        elif error.errno == errno.ECONNREFUSED:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self.stream.fail(errno_text(errno.ECONNREFUSED))

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
