"""Sockets for the state machines of `overlay.path.observation`: sends what they ask as STUN, and feeds them what comes.

Socket 0 may be somebody else's (the engine's); all others are opened here when they are first named, and closed at the
end. Knows no NAT.
"""

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from overlay.errors import RemoteProtocolError
from overlay.path.nat import Observations
from overlay.path.observation import Ask, Observer
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.stun import TRANSACTION_ID_SIZE, ErrorResponse, Message, Request, Response, decode, encode

Send = Callable[[bytes, Endpoint], None]

_BATCH: Final = 64  # datagrams taken from one socket before others get a turn
_LARGEST: Final = 2048  # bytes read of a datagram; what is longer is none that was asked for
_log = logging.getLogger(__name__)


class Machine(Protocol):
    """What `Observer` and `LifetimeSearch` have in common."""

    done: bool

    def asks_to_send(self) -> list[Ask]: ...
    def next_timeout(self) -> float | None: ...
    def handle_timeout(self, now: float) -> None: ...
    def answered(self, number: int, at: int, mapped: Endpoint, source: Endpoint, now: float) -> None: ...
    def refused(self, number: int, now: float) -> None: ...
    def arrived(self, number: int, source: Endpoint, now: float) -> None: ...


class Inquiry:
    """Runs one machine. `send_main` sends from socket 0, whose datagrams come by `received`; None: it is ours."""

    def __init__(
        self,
        machine: Machine,
        send_main: Send | None = None,
        main: socket.socket | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`main`: socket 0, bound, this inquiry's from now on. `on_progress`: the machine may know more than before."""
        self._machine = machine
        self._on_progress = on_progress
        self._send_main = send_main
        self._sockets: dict[int, socket.socket] = {} if main is None else {0: main}
        self._numbers: dict[bytes, int] = {}  # transaction id → number of the question
        self._ids: dict[int, bytes] = {}
        self._news = anyio.Event()
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Until the machine is done, or cancelled."""
        machine = self._machine
        try:
            async with anyio.create_task_group() as self._tasks:
                for number, opened in self._sockets.items():
                    self._tasks.start_soon(self._receive, number, opened)
                while not machine.done:
                    for ask in machine.asks_to_send():
                        self._send(ask)
                    with anyio.move_on_at(_deadline(machine)):
                        await self._news.wait()
                    self._news = anyio.Event()
                    # What has come counts before the clock does: this process may have waited for its turn.
                    await anyio.lowlevel.checkpoint()
                    for number, opened in self._sockets.items():
                        self._drain(number, opened)
                    machine.handle_timeout(anyio.current_time())
                    self._on_progress()
                self._tasks.cancel_scope.cancel()
        finally:
            for opened in self._sockets.values():
                anyio.notify_closing(opened)
                opened.close()
            self._sockets.clear()

    def received(self, message: Message, source: Endpoint) -> bool:
        """A message came to socket 0. False: it belongs to no question of ours."""
        return self._take(message, 0, source)

    # inside ----------------------------------------------------------------------------------------------------------

    def _take(self, message: Message, at: int, source: Endpoint) -> bool:
        number = self._numbers.get(message.transaction_id)
        if number is None:
            return False
        now = anyio.current_time()
        match message:
            case Response(mapped=mapped):
                self._machine.answered(number, at, mapped, source, now)
            case ErrorResponse():
                self._machine.refused(number, now)
            case Request():
                self._machine.arrived(number, source, now)
        self._news.set()
        return True

    def _send(self, ask: Ask) -> None:
        transaction_id = self._ids.get(ask.number)
        if transaction_id is None:
            transaction_id = self._ids[ask.number] = secrets.token_bytes(TRANSACTION_ID_SIZE)
            self._numbers[transaction_id] = ask.number
        request = encode(Request(transaction_id, ask.change_address, ask.change_port, ask.response_port))
        if ask.socket == 0 and self._send_main is not None:
            self._send_main(request, ask.to)
            return
        try:
            opened = self._sockets.get(ask.socket)
            if opened is None:
                opened = self._sockets[ask.socket] = open_socket(ask.to)
                self._tasks.start_soon(self._receive, ask.socket, opened)
                if isinstance(self._machine, Observer):
                    self._machine.opened(ask.socket, int(opened.getsockname()[1]))
            opened.sendto(request, ask.to)
        except OSError as error:
            _log.debug("no question to %s: %s", ask.to, error)  # the same as one that was lost

    async def _receive(self, number: int, opened: socket.socket) -> None:
        while True:
            await anyio.wait_readable(opened)
            self._drain(number, opened)

    def _drain(self, number: int, opened: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                datagram, address = opened.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # of something sent before: it is asked again
            try:
                self._take(decode(datagram), number, canonical_endpoint(address[0], address[1]))
            except RemoteProtocolError as error:
                _log.debug("no STUN from %s: %s", address, error)


async def observe(servers: Sequence[Endpoint], own: Sequence[str]) -> list[Observations]:
    """Look at the NAT from sockets of our own, by both address families, IPv4 first: those by which anybody answered.

    `servers`: endpoints that may answer STUN; `own`: this machine's addresses.
    """
    observers: list[Observer] = []
    async with anyio.create_task_group() as tasks:
        for of_family in by_family(servers):
            try:
                main = open_socket(of_family[0])
            except OSError:
                continue  # no such family here
            observer = Observer(of_family, own, int(main.getsockname()[1]), anyio.current_time())
            observers.append(observer)
            tasks.start_soon(Inquiry(observer, main=main).run)
    return [each.observations for each in observers if each.observations.mapped]


def by_family(endpoints: Sequence[Endpoint]) -> list[list[Endpoint]]:
    """IPv4 and IPv6 apart, in this order, without those of which there are none."""
    ipv4 = [each for each in endpoints if ":" not in each[0]]
    ipv6 = [each for each in endpoints if ":" in each[0]]
    return [each for each in (ipv4, ipv6) if each]


def open_socket(to: Endpoint) -> socket.socket:
    """A non-blocking UDP socket of the family of `to`, at a port that the kernel picks. Raises `OSError`."""
    opened = socket.socket(
        socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    )
    try:
        opened.bind(("::" if ":" in to[0] else "0.0.0.0", 0))
    except BaseException:
        opened.close()
        raise
    return opened


def _deadline(machine: Machine) -> float:
    due = machine.next_timeout()
    return float("inf") if due is None else due
