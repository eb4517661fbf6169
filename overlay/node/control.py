"""The node's side of the control channel: one conversation with the server after the other, while the node runs.

Hello, Welcome, then maps, pings, and answers to requests. A lost connection is dialled again with backoff; until then
the node works from the last map. Knows neither engine nor state folder: what it learns goes to a `Listener`, whose
methods are called on the event loop and must not block.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, Protocol

import anyio

from overlay.carrier.tcp import ConnectionLost, ControlConnection
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.node.backoff import Backoff, Liveness
from overlay.wire.control import netmap
from overlay.wire.control.messages import (
    Admit,
    Connected,
    Done,
    Endpoints,
    Exposed,
    Exposure,
    Exposures,
    Failed,
    GroupMember,
    Hello,
    Leave,
    Members,
    Message,
    NetworkMap,
    Ping,
    Pong,
    Recorded,
    Refused,
    RequestEntry,
    Requests,
    SignedMap,
    Supply,
    Welcome,
    Withdrawn,
)
from overlay.wire.endpoint import Endpoint, format_endpoint

WELCOME_TIMEOUT = 10.0
"""Seconds for the server to answer `Hello`: it may have to write to its registry."""
REQUEST_TIMEOUT = 10.0
LEAVE_TIMEOUT = 1.0
"""Seconds that saying good-bye may hold up `overlay down`; the server notices by itself later if it is not heard."""
ENDPOINTS_DELAY = 0.1
"""Seconds in which several changes of the own endpoints become one message."""

_log = logging.getLogger(__name__)

Answer = Exposed | Connected | Recorded | Done
Dial = Callable[[], Awaitable[ControlConnection]]


class Listener(Protocol):
    """Who wants to know what the server says."""

    def welcomed(self, welcome: Welcome) -> None: ...
    def mapped(self, network_map: NetworkMap) -> None: ...
    def exposures_changed(self, exposures: tuple[Exposure, ...]) -> None: ...
    def withdrawn(self, name: str, why: str) -> None: ...
    def requested(self, name: str, entries: tuple[RequestEntry, ...]) -> None: ...
    def supply(self, wish: Supply) -> None: ...
    def group_changed(self, name: str, members: tuple[GroupMember, ...]) -> None: ...
    def let_in(self, name: str, address: str, seconds: float) -> None: ...
    def disconnected(self) -> None: ...


class Better(Protocol):
    """Who looks for a better carrier while one is in use: `overlay.node.ways.Ways`."""

    async def better(self) -> ControlConnection: ...
    async def taken_over(self, connection: ControlConnection) -> None: ...
    def lost(self) -> None: ...
    def link_changed(self) -> None: ...


class _Pending:
    """A request that waits for its answer."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.answer: Answer | Failed | None = None  # None with `arrived`: the connection is lost


class ControlClient:
    """See the module's docstring."""

    def __init__(
        self,
        dial: Dial,
        hello: Callable[[int, bytes], Hello],
        listener: Listener,
        network_map: NetworkMap | None,
        *,
        better: Better | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`dial` connects (raises `UserError`); `hello` makes the first message from the version of the map at hand and
        the mark of the server's last update to it."""
        self.state: Literal["starting", "connected", "offline"] = "starting"
        self.address = ""  # the server's endpoint, of the last connection
        self.endpoint: Endpoint | None = None  # the same
        self.rtt: float | None = None  # s, of the last ping while connected
        self.last_error: UserError | None = None  # why the server was not reached, the last time
        self._dial = dial
        self._better = better
        self._found: ControlConnection | None = None  # a better one, which takes over
        self._hello = hello
        self._listener = listener
        self._replica = netmap.Replica(network_map)
        self._map_mark = b""  # of the last update that it has taken, as the server knows it again
        self._map_wanted = False  # the map at hand is no base for the server's deltas: ask for a whole one
        self._map_key = b""
        self._backoff = Backoff(uniform)
        self._retry_now = anyio.Event()
        self._dialling: anyio.CancelScope | None = None
        self._welcomed = False  # once at least
        self._connection: ControlConnection | None = None
        self._liveness = Liveness(1.0, 0.0)
        self._wake_heartbeat = anyio.Event()
        self._endpoints = Endpoints()
        self._endpoints_changed = anyio.Event()
        self._pings: dict[int, float] = {}
        self._pending: dict[int, _Pending] = {}
        self._settled = anyio.Event()  # no take-over is under way
        self._settled.set()
        self._answered = anyio.Event()  # replaced after each request
        self._seq = 0

    async def run(self, *, patient: bool) -> None:
        """Keep a conversation going until cancelled.

        Raises `UserError` when the server refuses the node for good, and, unless `patient`, at the first failure before
        it has welcomed the node once.
        """
        while True:
            started = anyio.current_time()
            reason = await self._attempt(patient=patient or self._welcomed)
            if not (patient or self._welcomed):
                raise UserError(
                    "not-welcomed",
                    f"The server did not let this node in: {reason.rstrip('.')}.",
                    "Try again in a moment; if it stays so, see the server's log.",
                    Exit.UNREACHABLE,
                )
            if self._better is not None:
                self._better.lost()
            if self.state == "connected":
                _log.info("the connection to the server is lost: %s", reason)
                self._backoff.lasted(anyio.current_time() - started)
                self._listener.disconnected()
            else:
                _log.log(logging.INFO if self.state == "starting" else logging.DEBUG, "no connection: %s", reason)
            self.state, self.rtt = "offline", None
            with anyio.move_on_after(self._backoff.next()):
                await self._retry_now.wait()
            self._retry_now = anyio.Event()

    def link_changed(self) -> None:
        """The machine's links changed: see at once whether the connection still works, or dial again now."""
        if self._better is not None:
            self._better.link_changed()
        if self._connection is None:
            self._retry_now.set()
            if self._dialling is not None:
                self._dialling.cancel()
        else:
            self._liveness.suspect(anyio.current_time())
            self._wake_heartbeat.set()

    def doubt(self) -> None:
        """Packets to the server go unanswered by the way of this connection: see at once whether it still works."""
        if self._connection is not None:
            self._liveness.suspect(anyio.current_time())
            self._wake_heartbeat.set()

    def set_endpoints(self, lan: tuple[str, ...], observed: tuple[str, ...]) -> None:
        """Tell the server, now and after each reconnection, where this node may be reached."""
        self._endpoints = Endpoints(lan=lan, observed=observed)
        self._endpoints_changed.set()

    async def request(self, make: Callable[[int], Message]) -> Answer:
        """Send what `make` builds with a fresh sequence number, and wait for the answer.

        Raises `UserError`: the server's refusal, or "server-unreachable" (exit 5).
        """
        with anyio.move_on_after(REQUEST_TIMEOUT):
            await self._settled.wait()
        connection = self._connection
        if connection is None or self.state != "connected":
            raise _unreachable()
        self._seq += 1
        seq, pending = self._seq, _Pending()
        self._pending[seq] = pending
        try:
            with anyio.fail_after(REQUEST_TIMEOUT):
                await connection.send(make(seq))
                await pending.arrived.wait()
        except (TimeoutError, ConnectionLost) as error:
            raise _unreachable() from error
        finally:
            del self._pending[seq]
            self._answered.set()
            self._answered = anyio.Event()
        if pending.answer is None:
            raise _unreachable()
        if isinstance(pending.answer, Failed):
            failed = pending.answer
            # Others are about the way to the server, which is known here.
            exit_code = Exit(failed.exit_code) if failed.exit_code in (Exit.USAGE, Exit.REFUSED) else Exit.FAILED
            raise UserError(failed.code, failed.message, failed.hint, exit_code)
        return pending.answer

    async def say(self, message: Message) -> None:
        """Tell the server something that is not answered; if it is away, it learns it at the next welcome, or never."""
        connection = self._connection
        if connection is not None and self.state == "connected":
            with suppress(ConnectionLost):  # `_receive` says so where somebody can act on it
                await connection.send(message)

    async def leave(self) -> None:
        """Say good-bye, if anybody listens."""
        connection = self._connection
        if connection is not None:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                try:
                    await connection.send(Leave())
                except ConnectionLost as error:
                    _log.debug("the server was not told: %s", error)

    # inside ----------------------------------------------------------------------------------------------------------

    async def _attempt(self, *, patient: bool) -> str:
        """Dial and converse; returns why it ended. Raises `UserError` if the server refuses, or as `run` says."""
        try:
            connection = await self._dialled()
        except UserError as error:
            if not patient:
                raise
            self.last_error = error
            return error.message
        try:
            greeting: Welcome | str | None = await self._greet(connection)
            while not isinstance(greeting, str):
                if greeting is not None:
                    self._use(connection, greeting)
                reason = await self._converse_on(connection)
                better, self._found = self._found, None
                if better is None:
                    return reason
                connection, greeting = await self._take_over(connection, better)
                self._settled.set()
            return greeting
        except (ConnectionLost, RemoteProtocolError) as error:
            return str(error)
        except TimeoutError:
            return "the server does not answer the first message"
        finally:
            self._connection = None
            self._settled.set()
            for pending in self._pending.values():
                pending.arrived.set()
            if self._found is not None:
                self._found.lose("closed")
                self._found = None
            with anyio.CancelScope(shield=True):
                await connection.aclose()

    async def _dialled(self) -> ControlConnection:
        """A connection. Begins anew when the machine's links change: from an address that is gone nothing comes."""
        while True:
            with anyio.CancelScope() as self._dialling:
                return await self._dial()

    async def _greet(self, connection: ControlConnection) -> Welcome | str:
        """Hello and Welcome; or why there is no welcome for now. Raises `UserError` if the server refuses for good."""
        current = None if self._map_wanted else self._replica.current
        hello = self._hello(0, b"") if current is None else self._hello(current.version, self._map_mark)
        with anyio.fail_after(WELCOME_TIMEOUT):
            await connection.send(hello)
            first = await connection.receive()
        if isinstance(first, Refused):
            return self._refused(first)
        if not isinstance(first, Welcome):
            raise RemoteProtocolError("no_welcome", f"the server began with {type(first).__name__}")
        return first

    def _use(self, connection: ControlConnection, welcome: Welcome) -> None:
        now = anyio.current_time()
        self._map_key = welcome.map_key
        self._replica = netmap.Replica(self._replica.current)  # parts of a map that came before are of no use any more
        self._pings.clear()
        self._liveness = Liveness(welcome.heartbeat, now)
        self.endpoint = connection.remote_address
        self.address = format_endpoint(connection.remote_address)
        self._connection, self.state, self.last_error = connection, "connected", None
        _log.info("connected to the server at %s by %s", self.address, connection.carrier)
        self._listener.welcomed(welcome)
        self._welcomed = True

    async def _take_over(
        self, old: ControlConnection, new: ControlConnection
    ) -> tuple[ControlConnection, Welcome | None]:
        """Go on over `new` once the server has welcomed the node there; until then the old one stays, and if that is
        not to be, it is gone on with. → the connection to converse on, and its welcome if it is another"""
        assert self._better is not None
        taken = False
        try:
            greeting = await self._greet(new)
            if isinstance(greeting, Welcome):
                taken = True
                old.lose("closed")  # the server has let go of it already
                await self._better.taken_over(new)
                return new, greeting
            _log.debug("the better carrier is of no use: %s", greeting)
        except (ConnectionLost, RemoteProtocolError, TimeoutError) as error:
            _log.debug("the better carrier is of no use: %s", error)
        finally:
            if not taken:
                new.lose("closed")
        return old, None

    async def _converse_on(self, connection: ControlConnection) -> str:
        """After the welcome: receive, and beside it ping and announce, until one of them ends."""
        reasons: list[str] = []
        refusals: list[UserError] = []
        async with anyio.create_task_group() as tasks:

            async def until_lost(part: Callable[[ControlConnection], Awaitable[str]]) -> None:
                try:
                    reasons.append(await part(connection))
                except (ConnectionLost, RemoteProtocolError) as error:
                    reasons.append(str(error))
                except UserError as error:
                    refusals.append(error)
                tasks.cancel_scope.cancel()

            for part in (self._receive, self._heartbeat, self._announce, self._seek):
                tasks.start_soon(until_lost, part)
        if refusals:
            raise refusals[0]
        return reasons[0]

    async def _seek(self, connection: ControlConnection) -> str:
        """End the conversation when there is a better connection for it, between two requests."""
        if self._better is None:
            await anyio.sleep_forever()
            raise AssertionError
        self._found = await self._better.better()
        while self._pending:
            await self._answered.wait()
        self._settled = anyio.Event()
        return f"{self._found.carrier} works again"

    async def _receive(self, connection: ControlConnection) -> str:
        while True:
            message = await connection.receive()
            now = anyio.current_time()
            self._liveness.received(now)
            match message:
                case Ping(seq=seq):
                    await connection.send(Pong(seq=seq))
                case Pong(seq=seq):
                    if seq in self._pings:
                        self.rtt = now - self._pings.pop(seq)
                case SignedMap():
                    self._receive_map(message)
                case Exposed(seq=seq) | Connected(seq=seq) | Recorded(seq=seq) | Done(seq=seq) | Failed(seq=seq):
                    if seq in self._pending:
                        self._pending[seq].answer = message
                        self._pending[seq].arrived.set()
                case Exposures(exposures=exposures):
                    self._listener.exposures_changed(exposures)
                case Withdrawn(id=name, why=why):
                    self._listener.withdrawn(name, why)
                case Supply():
                    self._listener.supply(message)
                case Members(id=name, members=members):
                    self._listener.group_changed(name, members)
                case Admit(id=name, address=address, seconds=seconds):
                    self._listener.let_in(name, address, seconds)
                case Requests(id=name, entries=entries):
                    self._listener.requested(name, entries)
                case Refused():
                    return self._refused(message)
                case _:
                    _log.debug("ignored a message of type %s", type(message).__name__)

    def _receive_map(self, signed: SignedMap) -> None:
        update = netmap.verify(signed, self._map_key)
        try:
            network_map = self._replica.take(update)
        except RemoteProtocolError:
            if not self._map_wanted:  # once: a server that goes on sending what does not fit is dialled with backoff
                self._retry_now.set()
            self._map_wanted = True
            raise
        if network_map is not None:
            self._map_mark, self._map_wanted = signed.mark, False
            self._listener.mapped(network_map)

    def _refused(self, refused: Refused) -> str:
        if refused.final:
            raise UserError(refused.code, refused.message, refused.hint, Exit.REFUSED)
        return refused.message

    async def _heartbeat(self, connection: ControlConnection) -> str:
        while True:
            now = anyio.current_time()
            if self._liveness.dead(now):
                return "the server has fallen silent"
            if self._liveness.ping_due(now):
                self._seq += 1
                self._pings = {self._seq: now}  # an answer to an earlier one says nothing about the way as it is now
                await connection.send(Ping(seq=self._seq))
            with anyio.move_on_at(self._liveness.next_timeout()):
                await self._wake_heartbeat.wait()
                self._wake_heartbeat = anyio.Event()

    async def _announce(self, connection: ControlConnection) -> str:
        told: Endpoints | None = None
        while True:
            self._endpoints_changed = anyio.Event()
            if self._endpoints != (told or Endpoints()):
                told = self._endpoints
                await connection.send(told)
            await self._endpoints_changed.wait()
            await anyio.sleep(ENDPOINTS_DELAY)


def _unreachable() -> UserError:
    return UserError(
        "server-unreachable",
        "This needs the server, and the connection to it is lost at the moment.",
        "See 'overlay status'; try again when it says 'connected'.",
        Exit.UNREACHABLE,
    )
