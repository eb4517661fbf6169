"""A TCP connection to a peer, opened from both sides at once: the sockets of one attempt (`overlay.path.tcp_punch`),
and the proof that it is the peer who is at the other end.

Every socket of an attempt has the same local port: listeners, connections to the peer's endpoints, and the one to the
server that shows how the port looks from outside, which is kept open so that the NAT's mapping stays. The proof, on
each connection, in frames of `overlay.wire.stream.framing`:

    higher number → lower    a disco ping, whose txid is the id of the call ‖ 4 random bytes
    lower number → higher    the pong to it: this is the connection

The id went through the relay, sealed, and is of this attempt alone: who replays a ping has nothing of it. Who is not
the peer costs one socket for `PROOF_TIME`, some hundred bytes, and one authentication that fails.
"""

import errno
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.stream import connect_socket
from overlay.errors import RemoteProtocolError
from overlay.node.shared_port import ANY, shared_port_socket
from overlay.path.tcp_punch import TcpAttempt
from overlay.wire.disco import CALL_ID_SIZE, TXID_SIZE, DiscoKey, Ping, Pong, sender
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.stream.codec import Codec, Plain
from overlay.wire.stream.framing import FRAME_HEADER, FRAME_HEADER_SIZE, frames

OBSERVE_TIME: Final = 1.5
"""s for the server's word on how the port looks; without it there are the machine's own addresses."""

PROOF_TIME: Final = 3.0
"""s that a connection has to show that it leads to the peer: a lost packet costs one."""

MAX_UNPROVEN: Final = 24
"""Connections that wait for proof in one attempt: all targets, and as many strangers."""

MAX_PROOF: Final = 256
"""Bytes of the only datagram that is taken before the proof; a ping and a pong have some 80."""

_NONCE_SIZE: Final = 24
_PORT_TRIES: Final = 4
_EXPECTED: Final = (
    errno.ECONNREFUSED,  # nobody listens there yet, or a NAT refuses what comes too early
    errno.EADDRNOTAVAIL,  # the same pair of endpoints is in use: the peer's connection came first
    errno.EADDRINUSE,
    errno.ETIMEDOUT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ECONNRESET,
    errno.EPERM,  # a local firewall
    errno.EACCES,
)

_log = logging.getLogger(__name__)

Observe = Callable[[int], Awaitable[tuple[Endpoint, socket.socket]]]
"""How the local port looks from outside, and the open connection that shows it. Raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Punched:
    """What the engine takes over (`AddLink.handed`), and where it leads."""

    socket: socket.socket
    endpoint: Endpoint
    codec: Codec = field(default_factory=Plain)
    received: bytes = b""


class TcpPort:
    """A local port with listeners, IPv4 and IPv6 as far as the machine has them. Close it after use."""

    def __init__(self) -> None:
        """Raises `OSError`."""
        self.port = 0
        self.observed: Endpoint | None = None
        self.listeners: list[socket.socket] = []
        self._observer: socket.socket | None = None
        for _ in range(_PORT_TRIES):
            try:
                self.listeners.append(self._listen(socket.AF_INET, 0))
                self.port = self.listeners[0].getsockname()[1]
                with suppress(_NoFamily):
                    self.listeners.append(self._listen(socket.AF_INET6, self.port))
                return
            except OSError as error:
                failed = error
                self.close()  # the port may be taken by IPv6: another one
        raise failed

    async def observe(self, observe: Observe) -> None:
        """Ask how the port looks from outside; `observed` stays None if that takes too long."""
        try:
            with anyio.fail_after(OBSERVE_TIME):
                self.observed, self._observer = await observe(self.port)
        except (OSError, TimeoutError) as error:
            _log.debug("how TCP port %d looks from outside is not known: %s", self.port, error)

    def new_socket(self, family: int) -> socket.socket:
        """One with this port, to connect with. Raises `OSError`."""
        made = shared_port_socket(family)
        try:
            made.bind((ANY[family], self.port))
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        for each in (*self.listeners, *((self._observer,) if self._observer is not None else ())):
            anyio.notify_closing(each)
            each.close()
        self.listeners.clear()
        self._observer = None

    @staticmethod
    def _listen(family: int, port: int) -> socket.socket:
        try:
            made = shared_port_socket(family)
        except OSError as error:
            raise _NoFamily(error.errno, "no such family") from error
        try:
            made.bind((ANY[family], port))
            made.listen(MAX_UNPROVEN)
        except OSError as error:
            made.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:  # switched off
                raise _NoFamily(error.errno, "no such family") from error
            raise
        return made


class Proof:
    """Who is at the other end of a connection, for one attempt."""

    def __init__(self, key: DiscoKey, own: int, peer: int, call_id: bytes) -> None:
        self._key = key
        self._own = own
        self._peer = peer
        self._id = call_id

    def ping(self) -> tuple[bytes, bytes]:
        """→ what to write, and the transaction id that answers it."""
        txid = self._id + secrets.token_bytes(TXID_SIZE - CALL_ID_SIZE)
        return self._frame(self._key.seal(Ping(txid), self._own, secrets.token_bytes(_NONCE_SIZE))), txid

    def pong(self, txid: bytes, observed: Endpoint) -> bytes:
        return self._frame(self._key.seal(Pong(txid, observed), self._own, secrets.token_bytes(_NONCE_SIZE)))

    def take_ping(self, datagram: bytes) -> bytes:
        """→ its transaction id. Raises `RemoteProtocolError` if it is not the peer's for this attempt."""
        message = self._open(datagram)
        if not isinstance(message, Ping) or message.txid[:CALL_ID_SIZE] != self._id:
            raise RemoteProtocolError("tcp_stranger", "no ping of this attempt")
        return message.txid

    def take_pong(self, datagram: bytes, txid: bytes) -> None:
        """Raises `RemoteProtocolError` if it does not answer that ping."""
        message = self._open(datagram)
        if not isinstance(message, Pong) or message.txid != txid:
            raise RemoteProtocolError("tcp_stranger", "no answer to this ping")

    def _open(self, datagram: bytes) -> object:
        if sender(datagram) != self._peer:
            raise RemoteProtocolError("tcp_stranger", "another node's number")
        return self._key.open(datagram)

    @staticmethod
    def _frame(datagram: bytes) -> bytes:
        return b"".join(frames(datagram, 0))


async def punch(
    port: TcpPort, attempt: TcpAttempt, proof: Proof, *, decides: bool, drops: Counter[str]
) -> Punched | None:
    """Try until a connection is proven or the attempt is over. Who `decides` takes the first; the other side takes the
    one that it is told of. What strangers do is counted in `drops`."""
    run = _Run(port, attempt, proof, decides, drops)
    async with anyio.create_task_group() as tasks:
        for listener in port.listeners:
            tasks.start_soon(run.accept, listener, tasks)
        while run.won is None and not attempt.is_over(anyio.current_time()):
            for endpoint in attempt.due(anyio.current_time()):
                tasks.start_soon(run.connect, endpoint, tasks.cancel_scope)
            await anyio.sleep_until(attempt.next_timeout())
        tasks.cancel_scope.cancel()
    return run.won


class _Run:
    def __init__(self, port: TcpPort, attempt: TcpAttempt, proof: Proof, decides: bool, drops: Counter[str]) -> None:
        self.won: Punched | None = None
        self._port = port
        self._attempt = attempt
        self._proof = proof
        self._decides = decides
        self._drops = drops
        self._unproven = 0

    async def connect(self, endpoint: Endpoint, scope: anyio.CancelScope) -> None:
        """One try with one endpoint."""
        try:
            family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
            made = self._port.new_socket(family)
        except OSError as error:
            _log.debug("no socket from port %d: %s", self._port.port, error)
            self._attempt.failed(endpoint)
            return
        try:
            await connect_socket(made, endpoint)
            await self._prove(made, endpoint, scope)
        except OSError as error:
            if error.errno not in _EXPECTED:
                _log.debug("no connection to %s: %s", endpoint, error)
        finally:
            self._attempt.failed(endpoint)
            self._close(made)

    async def accept(self, listener: socket.socket, tasks: TaskGroup) -> None:
        """Take connections, from whomever."""
        while True:
            await anyio.wait_readable(listener)
            try:
                made, address = listener.accept()
            except OSError:  # it was reset before it was taken
                continue
            made.setblocking(False)
            if self._unproven >= MAX_UNPROVEN:
                self._drops["tcp_crowded"] += 1
                made.close()
                continue
            endpoint = canonical_endpoint(address[0].partition("%")[0], address[1])
            tasks.start_soon(self._accepted, made, endpoint, tasks.cancel_scope)

    async def _accepted(self, made: socket.socket, endpoint: Endpoint, scope: anyio.CancelScope) -> None:
        try:
            await self._prove(made, endpoint, scope)
        except OSError as error:
            _log.debug("the connection from %s came to nothing: %s", endpoint, error)
        finally:
            self._close(made)

    async def _prove(self, made: socket.socket, endpoint: Endpoint, scope: anyio.CancelScope) -> None:
        """Have the peer prove itself on a connection; if it does, and none is there yet, this is the one."""
        self._unproven += 1
        try:
            with anyio.fail_after(PROOF_TIME):
                if self._decides:
                    txid = self._proof.take_ping(await _read_frame(made))
                    if self.won is not None:
                        return
                    made.send(self._proof.pong(txid, endpoint))  # the first bytes always find room
                else:
                    ping, txid = self._proof.ping()
                    made.send(ping)
                    self._proof.take_pong(await _read_frame(made), txid)
                    if self.won is not None:
                        return
            self.won = Punched(made, endpoint)
            scope.cancel()
        except RemoteProtocolError as error:
            _log.debug("a stranger at %s: %s", endpoint, error)
            self._drops["tcp_stranger"] += 1
        except TimeoutError:
            self._drops["tcp_unproven"] += 1
        finally:
            self._unproven -= 1

    def _close(self, made: socket.socket) -> None:
        if self.won is None or self.won.socket is not made:
            anyio.notify_closing(made)
            made.close()


class _NoFamily(OSError):
    """The machine has no such address family."""


async def _read_frame(made: socket.socket) -> bytes:
    """The first frame, and not a byte more. Raises `RemoteProtocolError`, `OSError`."""
    length, segment, reserved = FRAME_HEADER.unpack(await _read(made, FRAME_HEADER_SIZE))
    if not 0 < length <= MAX_PROOF or segment or reserved:
        raise RemoteProtocolError("tcp_stranger", "no frame")
    return await _read(made, length)


async def _read(made: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await anyio.wait_readable(made)
        more = made.recv(size - len(data))
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the other side closed")
        data += more
    return data
