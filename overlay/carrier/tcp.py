"""The server's TCP port, and the control channel on every carrier that comes in there.

Either end gives out a connection only when the Noise handshake is done and, on the server, proven to be no replay.
What a stranger can cost is bounded by `Limits`. What messages mean is not known here.
"""

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.stapled import MultiListener

from overlay.carrier.carriers import CarrierName, CarrierStream
from overlay.carrier.connection import ConnectionLost, ControlConnection, broken_by
from overlay.carrier.dialling import dial
from overlay.carrier.limits import DEFAULT_LIMITS, Door, Limits, Visit
from overlay.carrier.port import NOISE, TOKEN, Caller, Guest, Services, TlsGuest, greet, take_caller
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_door import QuicDoor
from overlay.carrier.silence import Silence, take_token
from overlay.carrier.stream import Reader, TcpStream
from overlay.carrier.stun import Answer, StunRoom
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import BUSY, NoiseChannel
from overlay.wire.control.codec import decode_node_message
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint

__all__ = ["DEFAULT_LIMITS", "ConnectionLost", "ControlConnection", "Limits", "dial", "serve"]

logger = logging.getLogger(__name__)

_Greeted = tuple[CarrierStream, CarrierName]
_Served = Guest | TlsGuest | Caller | TcpStream
_Greeting = Callable[["_Arrival"], Awaitable[_Greeted | _Served | None]]
"""Finds out what a connection runs over, and sets that up: as `overlay.carrier.port.greet`."""

_ACCEPT_BATCH: Final = 64  # connections taken before other tasks get a turn
_ACCEPT_PAUSE: Final = 0.1  # s, when the system has no file descriptor or memory left
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_LISTENER_GONE: Final = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK))
_NO_SERVICES: Final = Services()
_READ_SIZE: Final = 4096
_ORDINARY: Final = frozenset(("closed", "closed_by_peer", "detached"))  # ends of a connection that are nobody's fault


async def serve(
    listeners: Listener[SocketStream] | Sequence[Listener[SocketStream]],
    private_key: bytes,
    handler: Callable[[ControlConnection], Awaitable[object]],
    limits: Limits = DEFAULT_LIMITS,
    *,
    drops: Counter[str] | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
    quic: QuicDoor | None = None,
    services: Services = _NO_SERVICES,
    stun: Answer | None = None,
    door: Door | None = None,
) -> None:
    """Serve nodes until cancelled, all under one set of limits. `listeners`: one or several of those that
    `anyio.create_tcp_listener` gives; they stay the caller's.

    `handler` is called in a task of its own for each peer that has proven its key, and the connection ends when it
    returns: what it sent last still arrives. It must send `Welcome` within `Limits.admission`, which ends the peer's
    time as a stranger. It learns of the connection's end from `receive` or `send`. A `ConnectionLost` that it lets out
    is expected; any other error is logged, and ends that connection alone.
    `services`: what else there is on the port. `stun` answers Binding requests there. `door`: one of the caller's, who
    has the limits in it.
    `drops` counts every connection that was not let in, or was closed for cause, by reason; each reason is logged
    once as a warning, and after that only at debug level. `quic` is served besides, under the same limits.
    """
    counted = Counter() if drops is None else drops
    server = _Server(private_key, handler, limits, counted, random_bytes, services, stun, door)
    await server.run(_listening_sockets(listeners), quic)


def _listening_sockets(listeners: Listener[SocketStream] | Sequence[Listener[SocketStream]]) -> list[socket.socket]:
    # anyio's own accept loop ends with the first error, so that a stranger who takes all file descriptors would end it.
    if isinstance(listeners, MultiListener):
        return _listening_sockets(listeners.listeners)
    if isinstance(listeners, Listener):
        return [listeners.extra(SocketAttribute.raw_socket)]
    return [found for each in listeners for found in _listening_sockets(each)]


class _Server:
    def __init__(
        self,
        private_key: bytes,
        handler: Callable[[ControlConnection], Awaitable[object]],
        limits: Limits,
        drops: Counter[str],
        random_bytes: Callable[[int], bytes],
        services: Services,
        stun: Answer | None,
        door: Door | None,
    ) -> None:
        self._private_key = private_key
        self._handler = handler
        self._limits = limits
        self._drops = drops
        self._random_bytes = random_bytes
        self._services = services
        self._stun = None if stun is None else StunRoom(stun)
        self.door = Door(limits) if door is None else door
        self._streams: set[CarrierStream] = set()
        self._silences: dict[Silence, tuple[TcpStream, _Arrival]] = {}
        self._tasks: TaskGroup

    async def run(self, sockets: Sequence[socket.socket], quic: QuicDoor | None) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                if quic is not None:
                    self._tasks.start_soon(quic.run, self)
                for listening in sockets:
                    self._tasks.start_soon(self._accept_from, listening)
        finally:
            for stream in self._streams:  # those whose task was cancelled before its first step
                stream.close()
            for silence, (tcp, _) in self._silences.items():
                silence.stop()
                tcp.close()

    async def _accept_from(self, listening: socket.socket) -> None:
        reader = Reader(listening)
        try:
            while True:
                await reader.wait()
                await self._accept_some(listening)
        finally:
            reader.stop()

    async def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _LISTENER_GONE:
                    raise
                self.count("accept_failed", "the listener", str(error))
                if error.errno in _EXHAUSTED:
                    await anyio.sleep(_ACCEPT_PAUSE)
                break
            self._let_in(accepted, canonical_endpoint(address[0], address[1]))

    def _let_in(self, accepted: socket.socket, endpoint: Endpoint) -> None:
        visit = self.door.knock(endpoint[0])
        if isinstance(visit, str):
            self.count(visit, format_endpoint(endpoint))
            _turn_away(accepted)
            return
        tcp = TcpStream(accepted)
        if self._take_call(tcp, accepted):  # a node that is near
            visit.leave()
            return
        arrival = _Arrival(self.door, endpoint, visit, accepted, self._limits.handshake)
        self._silences[Silence(accepted, self._limits.handshake, self._end_silence)] = tcp, arrival

    def _end_silence(self, silence: Silence, heard: bool) -> None:
        tcp, arrival = self._silences.pop(silence)
        if not heard:
            self.count("handshake_timeout", format_endpoint(arrival.endpoint))
            tcp.close()
            arrival.leave()
        elif self._take_call(tcp, silence.accepted):
            arrival.leave()
        else:

            async def greeting(arrival: _Arrival) -> _Greeted | _Served | None:
                return await greet(tcp, self._services, arrival.enter, self._random_bytes)

            self._start(tcp, greeting, arrival)

    def _take_call(self, tcp: TcpStream, accepted: socket.socket) -> bool:
        guests = self._services.guests
        token = take_token(accepted) if guests is not None else None
        if guests is None or token is None:
            return False
        guests.take_caller(Caller(tcp, token))
        return True

    def start(self, stream: QuicStream, endpoint: Endpoint, visit: Visit) -> None:
        """Serve a connection over QUIC in a task of its own."""

        async def greeted(_arrival: _Arrival) -> _Greeted | _Served:
            start = b""
            while len(start) < len(TOKEN):
                start += await stream.receive(len(TOKEN) - len(start))
            if start == TOKEN:
                return await take_caller(stream, start)
            stream.unread(start)
            return stream, "udp"

        self._start(stream, greeted, _Arrival(self.door, endpoint, visit, None, self._limits.handshake))

    def _start(self, stream: CarrierStream, greeting: _Greeting, arrival: "_Arrival") -> None:
        self._streams.add(stream)
        self._tasks.start_soon(self._serve, stream, greeting, arrival)

    async def _serve(self, stream: CarrierStream, greeting: _Greeting, arrival: "_Arrival") -> None:
        taken = False
        try:
            come = await self._authenticate(greeting, arrival)
            if isinstance(come, ControlConnection):
                await self._converse(come)
            elif isinstance(come, Caller) and self._services.guests is not None:
                taken = True
                self._services.guests.take_caller(come)
            elif come is not None:
                await self._serve_other(come, arrival)
        finally:
            if not taken:
                stream.close()
            self._streams.discard(stream)
            arrival.leave()

    async def _serve_other(self, come: _Served, arrival: "_Arrival") -> None:
        guests = self._services.guests
        try:
            if isinstance(come, TcpStream):
                if self._stun is not None:
                    await self._stun.serve(come, arrival.endpoint, arrival.leave)
                return
            arrival.leave()
            if guests is None or isinstance(come, Caller):
                self.count("unknown_protocol", format_endpoint(arrival.endpoint))
            else:
                await guests.serve_user(come, arrival.endpoint)
        except RemoteProtocolError as error:
            self.count(error.reason, format_endpoint(arrival.endpoint), str(error))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        except Exception:
            # A fault of ours must not end the port for all the others.
            logger.exception("Serving %s failed", format_endpoint(arrival.endpoint))
            self._drops["serving_failed"] += 1

    async def _authenticate(self, greeting: _Greeting, arrival: "_Arrival") -> ControlConnection | _Served | None:
        peer = format_endpoint(arrival.endpoint)
        try:
            with anyio.fail_after(arrival.deadline - anyio.current_time()):
                greeted = await greeting(arrival)
                if greeted is None or not isinstance(greeted, tuple):
                    return greeted
                return await self._prove(*greeted, arrival)
        except TimeoutError:
            self.count("handshake_timeout", peer)
        except _NotLetIn as error:
            self.count(error.reason, peer)
            if arrival.accepted is not None:
                _say_busy(arrival.accepted)
        except RemoteProtocolError as error:
            self.count(error.reason, peer, str(error))
        except anyio.EndOfStream:
            self.count("closed_early", peer)
        except anyio.BrokenResourceError as error:
            self.count(broken_by(error, "closed_early"), peer, str(error))
        except anyio.ClosedResourceError:
            self.count("closed_early", peer)
        except Exception:
            # A certificate that cannot be read, or a fault of ours: it must not end the port for all the others.
            logger.exception("Greeting %s failed", peer)
            self._drops["greeting_failed"] += 1
        return None

    async def _prove(self, stream: CarrierStream, carrier: CarrierName, arrival: "_Arrival") -> ControlConnection:
        limits = self._limits
        channel = NoiseChannel.responder(
            self._private_key, random_bytes=self._random_bytes, max_message=limits.first_message
        )
        while (key := channel.remote_key) is None:
            channel.receive_data(await stream.receive(_READ_SIZE))
            if channel.bytes_to_send:
                await stream.send(channel.data_to_send())
        return ControlConnection(
            stream, channel, key, arrival.endpoint, decode_node_message, limits, arrival.leave, carrier=carrier
        )

    async def _converse(self, connection: ControlConnection) -> None:
        peer = format_endpoint(connection.remote_address)
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.write_queued)
            tasks.start_soon(self._expect_admission, connection)
            try:
                await self._handler(connection)
            except ConnectionLost as lost:
                connection.lose(lost.reason, lost.detail)
            except Exception:
                # One connection's fault must not end the others: it is named, counted, and its traceback logged.
                logger.exception("The handler of the control connection from %s failed", peer)
                self._drops["handler_failed"] += 1
            tasks.cancel_scope.cancel()
        if connection.lost is None:
            await connection.aclose()
        elif connection.lost.reason not in _ORDINARY:
            self.count(connection.lost.reason, peer, connection.lost.detail)

    async def _expect_admission(self, connection: ControlConnection) -> None:
        with anyio.move_on_after(self._limits.admission):
            await connection.admitted.wait()
            return
        connection.lose("not_admitted", f"no welcome within {self._limits.admission:g} s")

    def count(self, reason: str, peer: str, detail: str = "") -> None:
        self._drops[reason] += 1
        level = logging.WARNING if self._drops[reason] == 1 else logging.DEBUG
        logger.log(level, "Control connection from %s closed: %s%s", peer, reason, f" ({detail})" if detail else "")


class _NotLetIn(RemoteProtocolError):
    """The door is closed for now."""


class _Arrival:
    """Somebody at the port, counted as one who has shown nothing until he enters."""

    def __init__(
        self, door: Door, endpoint: Endpoint, visit: Visit, accepted: socket.socket | None, patience: float
    ) -> None:
        self.deadline = anyio.current_time() + patience  # for proving a key
        self.endpoint = endpoint
        self.accepted = accepted
        self._door = door
        self._visit = visit

    def enter(self) -> None:
        """Be counted as one who wants to be let in. Raises `RemoteProtocolError`: that of `Door.enter`."""
        visit = self._door.enter(self.endpoint[0], anyio.current_time())
        if isinstance(visit, str):
            raise _NotLetIn(visit)
        self._visit.leave()
        self._visit = visit

    def leave(self) -> None:
        self._visit.leave()


def _turn_away(accepted: socket.socket) -> None:
    """Close the connection of one who is not even heard."""
    with accepted:
        accepted.setblocking(False)
        _say_busy(accepted)


def _say_busy(accepted: socket.socket) -> None:
    """Say that we are busy, if it can be said at once; an honest node then tries again later.

    Who is seen to speak TLS or HTTP gets nothing: two zero bytes would tell him only what program this is.
    """
    try:
        if not _may_be_noise(accepted):
            return
        accepted.send(BUSY)
        accepted.shutdown(socket.SHUT_WR)
        accepted.recv(_READ_SIZE)  # unread bytes would make close() send RST in front of our two bytes
    except OSError:
        return  # it has gone, or has sent nothing: turned away in any case, and counted


def _may_be_noise(accepted: socket.socket) -> bool:
    try:
        start = accepted.recv(len(NOISE), socket.MSG_PEEK)
    except BlockingIOError:
        return True  # nothing has come yet
    return NOISE.startswith(start)
