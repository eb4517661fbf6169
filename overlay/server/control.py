"""A node's control connection, from its `Hello` to its end. Knows messages; what they do, `Network` does.

Nothing that a node sends is trusted: what is not allowed ends the connection with `Refused`, what cannot be granted is
answered with `Failed`.
"""

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import anyio

from overlay.carrier.tcp import ConnectionLost, ControlConnection
from overlay.errors import UserError
from overlay.server.network import Network
from overlay.wire.control.messages import (
    CONTROL_VERSION,
    AddRecord,
    Attach,
    Attached,
    Connect,
    Done,
    Endpoints,
    Expose,
    Exposed,
    Failed,
    Health,
    Hello,
    Leave,
    Message,
    Ping,
    Pong,
    Recorded,
    Refused,
    RemoveRecord,
    RequestEntry,
    Requests,
    ServerMessage,
    Unexpose,
    Watch,
)
from overlay.wire.endpoint import format_endpoint

MESSAGE_RATE = 20.0  # per second and node: a node whose addresses flap, exposing all it has, stays far below
TOLD_INTERVAL = 0.25  # s between two messages about users' requests
TOLD_AT_ONCE = 50  # requests of one exposure in such a message; of more, the last ones
MESSAGE_BURST = 200.0  # a node that comes back with all its exposures
_PASSING = frozenset({"state-write-failed", "state-busy", "state-corrupt"})  # troubles of the server's own disk
_log = logging.getLogger(__name__)


class TokenBucket:
    """How many messages a node may send: `burst` at once, `rate` per second in the long run."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last = now

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class NodeLink:
    """The hub's end of a connection."""

    def __init__(self, number: int, connection: ControlConnection) -> None:
        self.number = number
        self.host = connection.remote_address[0]
        self.scope = anyio.CancelScope()
        self.refused: Refused | None = None
        self._connection = connection

    async def send(self, messages: Sequence[bytes]) -> None:
        try:
            await self._connection.send_encoded(messages)
        except ConnectionLost as lost:
            _log.debug("nothing more goes to node %d: %s", self.number, lost)  # its `receive` ends the conversation

    def close(self, refused: Refused | None) -> None:
        self.refused = refused
        self.scope.cancel()


async def converse(network: Network, connection: ControlConnection) -> None:
    """The whole life of a connection. Raises `ConnectionLost`; the carrier closes the connection afterwards."""
    first = await connection.receive()
    if isinstance(first, Attach):
        await _attach(network, connection)
        return
    try:
        hello = _check_hello(first)
        number = await network.admit(connection.remote_key, hello)
    except UserError as error:
        _log.info("refused a node at %s: %s", format_endpoint(connection.remote_address), error.message)
        await connection.send(_refused(error))
        return
    link = NodeLink(number, connection)
    await connection.send(network.welcome(number, connection.carrier))
    await network.connect(link, hello.map_mark)
    told = _Told(network, connection, number)
    lost: ConnectionLost | None = None
    try:
        with link.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(told.run)
                try:
                    await _serve(network, connection, number, told)
                except ConnectionLost as error:
                    lost = error  # out of the group as it is
                tasks.cancel_scope.cancel()
        if lost is not None:
            raise lost
        if link.refused is not None:
            await connection.send(link.refused)
    finally:
        told.close()
        network.disconnect(link)


class _Told:
    """Requests of users on their way to the node that watches them."""

    def __init__(self, network: Network, connection: ControlConnection, number: int) -> None:
        self._network = network
        self._connection = connection
        self._number = number
        self._watched: set[str] = set()
        self._waiting: dict[str, deque[RequestEntry]] = {}
        self._news = anyio.Event()

    def watch(self, name: str, *, wanted: bool) -> None:
        """Raises `UserError` ("exposure-unknown")."""
        self._network.exposures.watch(self._number, name, self._tell if wanted else None)
        if wanted:
            self._watched.add(name)
        else:
            self._watched.discard(name)

    def close(self) -> None:
        for name in self._watched:
            with suppress(UserError):  # given back meanwhile
                self._network.exposures.watch(self._number, name, None)

    def _tell(self, name: str, entry: RequestEntry) -> None:
        self._waiting.setdefault(name, deque(maxlen=TOLD_AT_ONCE)).append(entry)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled, or the connection is lost."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            waiting, self._waiting = self._waiting, {}
            try:
                for name, entries in waiting.items():
                    await self._connection.send(Requests(id=name, entries=tuple(entries)))
            except ConnectionLost:
                return  # `receive` says so where somebody can act on it
            await anyio.sleep(TOLD_INTERVAL)


async def _attach(network: Network, connection: ControlConnection) -> None:
    """Make the connection a data link of a node that is registered."""
    key = connection.remote_key
    try:
        network.node_with_key(key)
    except UserError as error:
        network.count("attach_refused")
        await connection.send(_refused(error))
        return
    await connection.send(Attached())
    carrier = connection.carrier
    detached = await connection.detach()
    if detached is None:
        network.count("attach_refused")  # a node of ours asks for none by udp
        return
    try:
        network.attach(key, detached, carrier)
    except UserError as error:  # removed meanwhile: nobody else would close it
        detached.socket.close()
        _log.debug("no data link: %s", error.message)


def _check_hello(first: Message) -> Hello:
    if not isinstance(first, Hello):
        raise UserError("protocol", "The node did not say hello.")
    if first.version < 1:
        raise UserError(
            "version",
            f"The server speaks version {CONTROL_VERSION} of the control protocol, the node version {first.version}.",
            "Install the same release of overlay on both.",
        )
    return first


async def _serve(network: Network, connection: ControlConnection, number: int, told: _Told) -> None:
    bucket = TokenBucket(MESSAGE_RATE, MESSAGE_BURST, anyio.current_time())
    while True:
        message = await connection.receive()
        if not bucket.take(anyio.current_time()):
            network.count("too_many_messages")
            await connection.send(
                Refused(code="too-many-messages", message="The node sends too many messages.", final=False)
            )
            return
        if isinstance(message, Leave):
            return
        answer = await _answer(network, number, message, told)
        if answer is not None:
            await connection.send(answer)


async def _answer(network: Network, number: int, message: Message, told: _Told) -> ServerMessage | None:
    match message:
        case Ping():
            return Pong(seq=message.seq)
        case Pong():
            network.exposures.groups.heard(number)
            return None
        case Health():
            network.exposures.groups.set_health(number, message.id, message.problem)
            return None
        case Endpoints():
            network.set_endpoints(number, message.lan, message.observed)
            return None
        case Expose() | Unexpose() | Connect() | Watch() | AddRecord() | RemoveRecord():
            try:
                return await _grant(network, number, message, told)
            except UserError as error:
                return Failed(
                    seq=message.seq,
                    code=error.code,
                    message=error.message,
                    hint=error.hint,
                    exit_code=error.exit_code,
                )
        case _:
            return None  # a second Hello: of no use here


async def _grant(
    network: Network, number: int, request: Expose | Unexpose | Connect | Watch | AddRecord | RemoveRecord, told: _Told
) -> ServerMessage:
    """Do what a node asks for. Raises `UserError`."""
    match request:
        case Expose():
            return Exposed(seq=request.seq, exposure=await network.exposures.expose(number, request))
        case Unexpose():
            await network.exposures.unexpose(number, request.id)
        case Connect():
            return await network.exposures.private.connect(number, request)
        case Watch():
            told.watch(request.id, wanted=request.wanted)
        case AddRecord():
            record = await network.zone_records.add(number, request.name, request.rtype, request.value)
            return Recorded(seq=request.seq, record=record)
        case RemoveRecord():
            await network.zone_records.remove(number, request.name, request.rtype)
    return Done(seq=request.seq)


def _refused(error: UserError) -> Refused:
    return Refused(code=error.code, message=error.message, hint=error.hint, final=error.code not in _PASSING)
