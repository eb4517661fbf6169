"""HTTP CONNECT on the shared port (RFC 9110 §9.3.6): for those who have a token, to nodes of this network by name.

Who shows no token that is known here gets what any stranger gets, and learns nothing of all this. Others are told what
is wrong: 407 the token has expired, 403 it is not for this place, 502 and 504 the node is offline or does not answer,
503 too many at once. Only overlay addresses of nodes are connected to, never the server's own, and never the ports
where nodes wait for users of what they publish: these believe what the server lets through.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from overlay.carrier.forward import forward_streams
from overlay.carrier.http import answer, say
from overlay.carrier.limits import Room, network_of
from overlay.carrier.port import Guest
from overlay.carrier.stream import TcpStream, connect
from overlay.engine.api import SERVER_NUMBER
from overlay.server.schema import TokenRecord
from overlay.server.tokens import Tokens
from overlay.server.tunnels import Visitor
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.http1 import HEAD_END, RequestHead, parse_request

CONNECT_TIMEOUT: Final = 10.0  # s; three SYNs
MOST: Final = 1024  # connections at once
MOST_PER_NETWORK: Final = 256  # of one address (of IPv6, /64)
MOST_PER_TOKEN: Final = 256
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_ASK: Final = ('Proxy-Authenticate: Bearer realm="proxy"', 'Proxy-Authenticate: Basic realm="proxy"')


@dataclass(frozen=True, slots=True)
class Nodes:
    """What must be known of the network's nodes."""

    names: Callable[[], Mapping[str, int]]
    domains: Sequence[str]
    address_of: Callable[[int], str | None]  # overlay address; None: offline
    is_end: Callable[[int, int], bool]  # whether a node waits for users at this port


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ProxyDoor:
    """`drops` counts by reason who was not let through."""

    def __init__(self, tokens: Tokens, nodes: Nodes, wall: Callable[[], float], drops: Counter[str]) -> None:
        self._tokens = tokens
        self._nodes = nodes
        self._wall = wall
        self._drops = drops
        self._room = Room(MOST, MOST_PER_NETWORK)
        self._of_token: Counter[int] = Counter()
        self._running: dict[anyio.CancelScope, tuple[int, int]] = {}  # → by which token, to which node
        tokens.when_removed(lambda token: self._end(lambda by, to: by == token))

    def knows(self, request: RequestHead) -> bool:
        """Whether it shows a token that is, or was, one of ours."""
        return self._token(request) is not None

    async def serve(self, guest: Guest, visitor: Visitor) -> bool:
        """Until it ends; closing stays the caller's. → False: it is nobody known here, and was told nothing."""
        head, _, behind = guest.begun.partition(HEAD_END)
        request = parse_request(head + HEAD_END)
        token = self._token(request)
        if request.method != b"CONNECT" or token is None:
            return False
        network = network_of(visitor.source[0])
        try:
            node, endpoint = self._endpoint(request, token)
            if self._room.full_for(network) or self._of_token[token.id] >= MOST_PER_TOKEN:
                raise _Refused(503, "proxy_full")
            visit = self._room.enter(network)
            self._of_token[token.id] += 1
            try:
                with self._going_on(token, node) as scope:
                    inside = await self._open(endpoint)
                    await self._forward(guest, inside, behind)
                if scope.cancelled_caught:
                    self._drops["proxy_ended"] += 1
                    guest.stream.cut()
            finally:
                visit.leave()
                self._of_token[token.id] -= 1
        except _Refused as refused:
            self._drops[refused.reason] += 1
            await say(guest.stream, answer(refused.status, extra=_ASK if refused.status == 407 else ()))
        return True

    def forget_node(self, node: int) -> None:
        """It was removed: nothing goes through to it any more."""
        self._end(lambda by, to: to == node)

    # inside ----------------------------------------------------------------------------------------------------------

    def _end(self, ends: Callable[[int, int], bool]) -> None:
        for scope, (token, node) in tuple(self._running.items()):
            if ends(token, node):
                scope.cancel()

    @contextmanager
    def _going_on(self, token: TokenRecord, node: int) -> Iterator[anyio.CancelScope]:
        """As long as the token is good."""
        with anyio.move_on_after(token.expires - self._wall()) as scope:
            self._running[scope] = token.id, node
            try:
                yield scope
            finally:
                del self._running[scope]

    async def _forward(self, guest: Guest, inside: TcpStream, behind: bytes) -> None:
        try:
            await guest.stream.send(ESTABLISHED)
            if behind:
                await inside.send(behind)
            await forward_streams(guest.stream, inside)
        finally:
            inside.close()

    def _token(self, request: RequestHead) -> TokenRecord | None:
        shown = [value for name, value in request.fields if name.lower() == b"proxy-authorization"]
        if len(shown) != 1:
            return None
        scheme, _, value = shown[0].decode("latin-1").strip().partition(" ")
        value = value.strip()
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
            except (binascii.Error, ValueError):
                return None
        elif scheme.lower() != "bearer":
            return None
        return self._tokens.find(value)

    def _endpoint(self, request: RequestHead, token: TokenRecord) -> tuple[int, Endpoint]:
        """Where it is to lead, and whose that is. Raises `_Refused`."""
        if token.expires <= self._wall():
            raise _Refused(407, "proxy_expired")
        host, _, port_text = request.target.decode("ascii").rpartition(":")
        if not port_text.isdigit() or request.framing != 0:
            raise _Refused(400, "bad_http")
        number, port = self._number(host.lower().rstrip(".")), int(port_text)
        allowed = number is not None and number != SERVER_NUMBER and (not token.nodes or number in token.nodes)
        if number is None or not allowed or not 0 < port < 65536 or self._nodes.is_end(number, port):
            raise _Refused(403, "proxy_refused")
        address = self._nodes.address_of(number)
        if address is None:
            raise _Refused(502, "proxy_offline")
        return number, (address, port)

    def _number(self, host: str) -> int | None:
        names = self._nodes.names()
        for domain in self._nodes.domains:
            if host.endswith(f".{domain}"):
                return names.get(host.removesuffix(f".{domain}"))
        return names.get(host)

    async def _open(self, endpoint: Endpoint) -> TcpStream:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                return await connect(endpoint)
        except TimeoutError as error:
            raise _Refused(504, "proxy_failed") from error
        except OSError as error:
            raise _Refused(502, "proxy_failed") from error
