"""The server's STUN service (RFC 8489, RFC 5780): tells nodes how their NAT shows them, and stock clients too.

Requests come to the main UDP port by way of the engine, to a second UDP port that is this module's own, and to the TCP
port. Without the second port nodes do not learn what their NAT's mapping and filtering depend on; all else goes on.

Nobody is proven here, so that an answer is short, is counted per address and in all, and goes nowhere but to the
address that asked (there to another port at most: RFC 5780 §4.6 finds out mappings' lifetimes so).
"""

import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import anyio

from overlay.carrier import local_address
from overlay.carrier.limits import network_of
from overlay.errors import RemoteProtocolError, UserError
from overlay.path.budget import Budget
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint
from overlay.wire.stun import MAX_GAIN, PORT, ErrorResponse, Message, Request, Response, decode, encode
from overlay.wire.stun.attributes import CHANGE_REQUEST, RESPONSE_PORT

DEFAULT_PORT: Final = PORT
"""STUN's own: networks that let out little let it out, and who knows no other tries it."""

ADDRESS_RATE: Final = 20.0
ADDRESS_BURST: Final = 200.0
"""Answers per second to one address (of IPv6, /64), and at once: a node that starts asks for a dozen, so an office of
ten that comes back at once gets all of them; and nobody gets more than 3 KB/s of ours by somebody else's request."""

RATE: Final = 2000.0
BURST: Final = 2000.0
"""Answers in all: 30 us of the event loop each, and the way through the engine."""

_ADDRESSES_KEPT: Final = 4096  # in the table of rates; the longest unseen goes first
_LOWEST_RESPONSE_PORT: Final = 1024  # no NAT maps to a port below, and servers that could be stirred up are there
_BATCH: Final = 64  # datagrams taken from the second port before other tasks get a turn
_LARGEST: Final = 2048  # bytes read of a datagram; what is longer is no request
_PAUSE: Final = 0.1  # s, when the socket itself reports an error

_log = logging.getLogger(__name__)


class Rates:
    """Whom to answer. Time in s, monotonic; memory bounded."""

    def __init__(self) -> None:
        self._all = Budget(RATE, BURST)
        self._of_address: OrderedDict[str, Budget] = OrderedDict()

    def take(self, host: str, now: float) -> str:
        """ "": answer; else the reason why not."""
        network = network_of(host)
        budget = self._of_address.pop(network, None) or Budget(ADDRESS_RATE, ADDRESS_BURST)
        self._of_address[network] = budget
        if len(self._of_address) > _ADDRESSES_KEPT:
            self._of_address.popitem(last=False)
        if not budget.take(now):
            return "stun_rate_of_address"
        return "" if self._all.take(now) else "stun_rate"


@dataclass(frozen=True, slots=True)
class Places:
    """Where answers may come from. `hosts`: this host's own addresses that clients know, of both families."""

    port: int  # the engine's
    second_port: int | None
    hosts: tuple[str, ...]

    def other_host(self, host: str) -> str | None:
        version = ip_address(host).version
        return next((each for each in self.hosts if each != host and ip_address(each).version == version), None)

    def origin(self, version: int) -> Endpoint | None:
        """Where the engine's answers come from, if that is certain."""
        hosts = [host for host in self.hosts if ip_address(host).version == version]
        return (hosts[0], self.port) if len(hosts) == 1 else None


@dataclass(frozen=True, slots=True)
class Reply:
    """One datagram, from the main port or the second one. `host`: the address it must leave from; None: any."""

    datagram: bytes
    destination: Endpoint
    second: bool
    host: str | None


def reply_to(request: Request, source: Endpoint, places: Places, own_host: str, *, second: bool) -> Reply:
    """What to answer to a request that came from `source` to our address `own_host`, at the main port or the second.

    Only the main port changes anything: from the second one, nobody needs it.
    """
    refused = list(request.unknown)
    other = places.other_host(own_host) if places.second_port is not None else None
    changes = request.change_port or request.change_address
    if changes and (second or places.second_port is None or not request.change_port):
        refused.append(CHANGE_REQUEST)
    elif request.change_address and other is None:
        refused.append(CHANGE_REQUEST)
    if request.response_port is not None and request.response_port < _LOWEST_RESPONSE_PORT:
        refused.append(RESPONSE_PORT)
    if refused:
        error: Message = ErrorResponse(request.transaction_id, unknown=tuple(refused))
        return Reply(encode(error, MAX_GAIN * request.size), source, second, own_host if second else None)
    by_second = second or request.change_port
    host = other if request.change_address else own_host if second else None
    origin: Endpoint | None = (host or own_host, places.second_port or 0)
    if not by_second:
        origin = places.origin(ip_address(source[0]).version)
    # RFC 5780 §7.4: not without a second address.
    elsewhere = (other, places.second_port) if other is not None and places.second_port is not None else None
    response = Response(request.transaction_id, source, origin, elsewhere)
    destination = source if request.response_port is None else (source[0], request.response_port)
    return Reply(encode(response, MAX_GAIN * request.size), destination, by_second, host)


class StunService:
    """All methods are for the event loop; `run` serves the second port."""

    def __init__(
        self,
        send: Callable[[bytes, Endpoint], None],
        sockets: Sequence[socket.socket],
        port: int,
        hosts: Sequence[str],
        drops: Counter[str],
    ) -> None:
        """`send` sends from the main UDP port. `sockets`: of `open_second_port`, this service's from now on. `hosts`:
        as in `Places`. `drops` counts what is not answered, by reason."""
        second_port = int(sockets[0].getsockname()[1]) if sockets else None
        self.places = Places(port, second_port, tuple(hosts))
        self._send = send
        self._sockets = tuple(sockets)
        self._drops = drops
        self._rates = Rates()
        self._buffer = bytearray(_LARGEST)

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    async def run(self) -> None:
        """Serve the second port until cancelled."""
        async with anyio.create_task_group() as tasks:
            for each in self._sockets:
                tasks.start_soon(self._serve, each)

    def received(self, datagram: bytes, source: Endpoint) -> None:
        """A datagram came to the main port."""
        request = self._request(datagram, source)
        if request is not None:
            self._reply(reply_to(request, source, self.places, self._own_host(source), second=False))

    def answer(self, message: bytes, source: Endpoint) -> bytes | None:
        """As `overlay.carrier.stun.Answer`: a request by TCP."""
        request = self._request(message, source)
        if request is None:
            return None
        refused = list(request.unknown)
        refused += [CHANGE_REQUEST] * (request.change_port or request.change_address)
        refused += [RESPONSE_PORT] * (request.response_port is not None)
        if refused:
            return encode(ErrorResponse(request.transaction_id, unknown=tuple(refused)))
        return encode(Response(request.transaction_id, source))

    # inside ----------------------------------------------------------------------------------------------------------

    def _request(self, datagram: bytes, source: Endpoint) -> Request | None:
        """A request that is to be answered."""
        try:
            message = decode(datagram)
        except RemoteProtocolError as error:
            self._drops[error.reason] += 1
            return None
        if not isinstance(message, Request):
            self._drops["stun_unasked"] += 1  # nothing here asks
            return None
        reason = self._rates.take(source[0], anyio.current_time())
        if reason:
            self._drops[reason] += 1
            return None
        return message

    async def _serve(self, listening: socket.socket) -> None:
        while True:
            await anyio.wait_readable(listening)
            for _ in range(_BATCH):
                try:
                    size, ancillary, _, address = listening.recvmsg_into([self._buffer], local_address.ANCILLARY_SIZE)
                except BlockingIOError:
                    break
                except OSError:
                    self._drops["stun_receive_error"] += 1
                    await anyio.sleep(_PAUSE)
                    break
                source = canonical_endpoint(address[0], address[1])
                request = self._request(bytes(self._buffer[:size]), source)
                if request is not None:
                    own = local_address.local_address(ancillary)
                    own_host = str(ip_address(own)) if own else self._own_host(source)
                    self._reply(reply_to(request, source, self.places, own_host, second=True))

    def _reply(self, reply: Reply) -> None:
        if not reply.second:
            self._send(reply.datagram, reply.destination)
            return
        family = socket.AF_INET6 if ":" in reply.destination[0] else socket.AF_INET
        for each in self._sockets:
            if each.family == family:
                control = local_address.answer_from(local_address.packed(reply.host)) if reply.host else []
                try:
                    each.sendmsg([reply.datagram], control, 0, reply.destination)
                except OSError as error:
                    self._drops["stun_send_failed"] += 1
                    _log.debug("no answer to %s: %s", format_endpoint(reply.destination), error)
                return
        self._drops["stun_send_failed"] += 1

    def _own_host(self, client: Endpoint) -> str:
        """The address that the kernel answers this client from."""
        family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
        own = [host for host in self.places.hosts if (":" in host) == (":" in client[0])]
        if len(own) == 1:
            return own[0]
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(client)
                return canonical_endpoint(probe.getsockname()[0], 1)[0]
        except OSError:
            return "::" if family == socket.AF_INET6 else "0.0.0.0"


def open_second_port(listen: Sequence[Endpoint], port: int | None) -> list[socket.socket]:
    """UDP sockets on the hosts that are listened on. `port` 0: none; None: the default, or none if that is taken.

    Raises `UserError` ("stun-port") for a port that was asked for and cannot be had.
    """
    if port == 0:
        return []
    hosts = dict.fromkeys(host for host, _ in listen) or {"0.0.0.0": None, "::": None}
    sockets: list[socket.socket] = []
    with ExitStack() as stack:
        for host in hosts:
            try:
                opened = _open(host, DEFAULT_PORT if port is None else port)
            except OSError as error:
                if host == "::" and not listen:
                    continue  # a host without IPv6
                if port is not None:
                    raise UserError(
                        "stun-port",
                        f"UDP port {port} for STUN could not be opened on {host}: {error.strerror or error}.",
                        "Choose another one with --stun-port, or 0 for none.",
                    ) from error
                _log.info("no second port for STUN (%s: %s)", format_endpoint((host, DEFAULT_PORT)), error.strerror)
                return []
            stack.callback(opened.close)
            sockets.append(opened)
        stack.pop_all()
    return sockets


def _open(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        local_address.ask_for_local_address(opened)
        opened.bind((host, port))
    except BaseException:
        opened.close()
        raise
    return opened
