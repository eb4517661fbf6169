"""Peers on their way to a private exposure through the server, since they or its node have no overlay address: without
root, nobody has one.

Who was let in has a ticket, and shows it on the shared port as nodes show the tokens of their calls; then the server
has the exposing node call, and joins the two. What goes through is sealed between the peer and the node
(`overlay.carrier.secured`).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.port import TOKEN_SIZE, Caller, Stream
from overlay.server.access.gate import Gate
from overlay.server.access.meter import forward_metered
from overlay.server.callers import Callers
from overlay.server.tunnels import TunnelError
from overlay.wire.control.messages import TunnelCarrier

MOST: Final = 1024  # connections to one exposure at once
MOST_PER_NODE: Final = 256  # of one peer
CARRIER: Final[TunnelCarrier] = "tls"
"""By which exposing nodes call: what is sealed twice shows nobody who looks on that it is."""


@dataclass(eq=False)
class _Ticket:
    number: int  # of the exposure
    node: int  # whose it is: the peer
    until: float = 0.0
    scopes: set[anyio.CancelScope] = field(default_factory=set)  # of what goes through by it


class PrivateWays:
    """All methods are for the event loop. `drops` counts by reason who did not get through."""

    def __init__(
        self,
        callers: Callers,
        node_of: Callable[[int], int | None],
        gates: Mapping[int, Gate],
        random_bytes: Callable[[int], bytes],
        tasks: TaskGroup,
        drops: Counter[str],
    ) -> None:
        """`node_of`: whose an exposure is; None: it is none any more. `gates`: of exposures, by number."""
        self._callers = callers
        self._node_of = node_of
        self._gates = gates
        self._random_bytes = random_bytes
        self._tasks = tasks
        self._drops = drops
        self._tickets: dict[bytes, _Ticket] = {}

    def connections(self, number: int) -> int:
        """To this exposure, at this moment."""
        return sum(len(each.scopes) for each in self._tickets.values() if each.number == number)

    def let_in(self, number: int, node: int, seconds: float) -> bytes:
        """→ the ticket of this peer for this exposure, which is good for so long from now."""
        for text, ticket in tuple(self._tickets.items()):
            if ticket.until < anyio.current_time() and not ticket.scopes:
                del self._tickets[text]
        mine = (text for text, each in self._tickets.items() if (each.number, each.node) == (number, node))
        found = next(mine, b"") or self._random_bytes(TOKEN_SIZE)
        ticket = self._tickets.setdefault(found, _Ticket(number, node))
        ticket.until = anyio.current_time() + seconds
        return found

    def put_out(self, number: int, node: int | None = None) -> None:
        """No longer, and what goes through ends; None: nobody."""
        for text, ticket in tuple(self._tickets.items()):
            if ticket.number == number and node in (None, ticket.node):
                del self._tickets[text]
                for scope in tuple(ticket.scopes):
                    scope.cancel()

    def take(self, caller: Caller) -> bool:
        """Somebody has shown a token; if it is one of these tickets, closing his stream is ours from now on."""
        ticket = self._tickets.get(caller.token)
        if ticket is None:
            return False
        gate = self._gates.get(ticket.number)
        reason = ""
        if gate is None or ticket.until < anyio.current_time():
            reason = "unknown_token"
        elif gate.used_up:
            reason = "quota_used_up"
        elif len(ticket.scopes) >= MOST_PER_NODE or self.connections(ticket.number) >= MOST:
            reason = "too_many_users"
        if gate is None or reason:
            self._drops[reason] += 1
            caller.stream.cut()
            caller.stream.close()
            return True
        scope = anyio.CancelScope()
        ticket.scopes.add(scope)
        self._tasks.start_soon(self._lead, caller.stream, ticket, gate, scope)
        return True

    async def _lead(self, stream: Stream, ticket: _Ticket, gate: Gate, scope: anyio.CancelScope) -> None:
        whole = False
        try:
            with scope:
                node = self._node_of(ticket.number)
                if node is None:
                    raise TunnelError(502, "target_offline")
                inside = await self._callers.open(node, ticket.number, CARRIER)
                await forward_metered(stream, inside, gate.meter)
                whole = True
        except TunnelError as error:
            self._drops[error.reason] += 1
        finally:
            ticket.scopes.discard(scope)
            if not whole:
                stream.cut()
            stream.close()
