"""How a node opens QUIC: a UDP socket for each connection, and streams of tunnels that share one."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode

from overlay.carrier.carriers import CarrierStream, DialOptions
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_connection import MOST_STREAMS, BoundedConnection
from overlay.carrier.quic_line import QuicLine
from overlay.carrier.stream import errno_text
from overlay.carrier.verification import authorities_pem, check_pin
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint

ADMISSION: Final = 2.5  # s that others wait until the server lets more streams into a connection
_READ_BATCH: Final = 64  # datagrams taken before other tasks get a turn
_DATAGRAM_SIZE: Final = 4096  # no QUIC peer of ours sends as much at once
_REFUSALS: Final = 3  # port unreachable, in a row: there is no server any more
_CERTIFICATE_ALERTS: Final = range(QuicErrorCode.CRYPTO_ERROR + 42, QuicErrorCode.CRYPTO_ERROR + 50)  # RFC 8446 §6
_PASSING: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE))  # a datagram less, as if the network lost it


async def open_quic(endpoint: Endpoint, options: DialOptions) -> QuicStream:
    """An `Opener`: one UDP socket, one connection, one stream. Lasts until the server answers or this is cancelled.

    Raises `OSError` when the network says that nobody is there, `RemoteProtocolError` when what answers does not speak
    our QUIC (`not_quic`), shows another certificate than it should (`wrong_certificate`), or is full (`server_busy`).
    """
    client = _Client(endpoint, _configuration(endpoint, options))
    try:
        await client.handshake()
        check_pin(client.line.connection.peer_certificate, options.pin)
    except BaseException:
        client.line.close()
        raise
    return client.line.first


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
            self.line = QuicLine(connection, self._transmit, self._close)
            self._loop.add_reader(self._socket, self._readable)
        except BaseException:
            self._socket.close()
            raise

    async def handshake(self) -> None:
        self.line.connection.connect(self._endpoint, self._loop.time())
        self.line.flush()
        try:
            await self.line.wait_established()
        except anyio.BrokenResourceError as error:
            raise self._reason(str(error)) from error

    def _reason(self, text: str) -> OSError | RemoteProtocolError:
        ending = self.line.connection.ending
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
            self.line.feed(datagram, self._endpoint)
            if self._socket.fileno() < 0:
                return
        self.line.flush()

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
        if not self.line.established:
            self._error = error
            self.line.fail(errno_text(error.errno) if error.errno else str(error))
        elif error.errno == errno.ECONNREFUSED:
            self._refusals += 1
            if self._refusals >= _REFUSALS:
                self.line.fail(errno_text(errno.ECONNREFUSED))

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


@dataclass(eq=False)
class _Shared:
    """What leads to one place."""

    lines: list[QuicLine] = field(default_factory=list)
    young: set[QuicLine] = field(default_factory=set)  # the server has not let more streams in yet
    dialled: int = 0  # that are no lines yet
    waiting: int = 0
    changed: anyio.Event = field(default_factory=anyio.Event)

    def stream(self) -> QuicStream | None:
        for line in self.lines:
            if line.is_well and (found := line.open_stream()) is not None:
                return found
        return None

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    def take(self, line: QuicLine) -> None:
        def room_changed() -> None:
            if line.over and line in self.lines:
                self.lines.remove(line)
            if line.over or line.room:
                self.young.discard(line)
            self.tell()

        self.lines.append(line)
        self.young.add(line)
        line.share(room_changed)
        room_changed()


class SharedLines:
    """Streams of a few connections, where each would else be a connection of its own: a handshake, timers and 60 KB at
    either end. A server lets more than one in once the first has shown that it is expected."""

    def __init__(self) -> None:
        self._places: dict[Hashable, _Shared] = {}

    async def open(self, place: Hashable, dial: Callable[[], Awaitable[CarrierStream]]) -> CarrierStream:
        """A stream to `place`: of a connection that there is, or by `dial`, which opens one, and raises as that does.
        Whoever is first must say at once what the server waits for: the others go on when it has let them in."""
        shared = self._places.setdefault(place, _Shared())
        until = anyio.current_time() + ADMISSION
        while True:
            if (found := shared.stream()) is not None:
                return found
            coming = MOST_STREAMS * (shared.dialled + len(shared.young))
            if coming <= shared.waiting or anyio.current_time() >= until:
                return await self._dial(shared, dial)
            shared.waiting += 1
            try:
                with anyio.move_on_at(until):
                    await shared.changed.wait()
            finally:
                shared.waiting -= 1

    def close(self) -> None:
        """All connections, with the streams that are left."""
        for shared in self._places.values():
            for line in tuple(shared.lines):
                line.close()
        self._places.clear()

    async def _dial(self, shared: _Shared, dial: Callable[[], Awaitable[CarrierStream]]) -> CarrierStream:
        shared.dialled += 1
        try:
            stream = await dial()
        finally:
            shared.dialled -= 1
            shared.tell()
        if isinstance(stream, QuicStream):
            shared.take(stream.line)
        return stream
