"""The relay: who its clients are, where they are, and the forwarding of what it cannot read.

`(source address, ticket) → client` holds for an address that a disco ping of the client's own came from. A binding in
use moves to another address only after that one answered a ping of ours: a ping can be recorded and sent again from
elsewhere, and would otherwise take a client's traffic away. Nothing is queued: a run is forwarded at once, in place,
with one system call, or dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.udp import UdpSocket, UdpSockets
from overlay.wire.disco import DISCO_TYPE, TXID_SIZE
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RELAY_HEADER_SIZE, RelayHeader, pack_header, tickets_equal

BINDING_LIFE: Final = 90.0
"""s after the last ping: clients ping each 25 s, so that three were lost. Then the NAT may have given the port away."""


@dataclass(slots=True)
class Client:
    """A node that may send through us."""

    number: int
    public_key: bytes
    ticket: int = field(repr=False)
    address: Endpoint | None = None
    heard: float = float("-inf")  # last ping from `address`
    challenge: tuple[Endpoint, bytes] | None = None  # (address, txid) that has to answer before it is bound


class RelayRole:
    """All clients of this relay."""

    def __init__(self, number: int, sockets: UdpSockets, counted: Drops, random_bytes: Callable[[int], bytes]) -> None:
        self.clients: dict[int, Client] = {}
        self.relayed_bytes = 0
        self._number = number
        self._sockets = sockets
        self._drops = counted
        self._random_bytes = random_bytes
        self._bound: dict[Endpoint, Client] = {}

    def set_client(self, number: int, public_key: bytes, ticket: int) -> None:
        """A new client, or new values for one; it stays bound if its key is the same."""
        client = self.clients.get(number)
        if client is not None and client.public_key == public_key:
            client.ticket = ticket
            return
        self.remove_client(number)
        self.clients[number] = Client(number, public_key, ticket)

    def remove_client(self, number: int) -> None:
        client = self.clients.pop(number, None)
        if client is not None and client.address is not None:
            self._bound.pop(client.address, None)

    def route(self, number: int, now: float) -> tuple[Endpoint, bytes] | None:
        """Where our own traffic to a client goes, and the header before each message; None: it is not bound."""
        client = self.clients.get(number)
        if client is None or client.address is None or now > client.heard + BINDING_LIFE:
            return None
        return client.address, pack_header(self._number, client.ticket)

    # --- bindings -----------------------------------------------------------------------------------------------------

    def ping_received(self, number: int, source: Endpoint, now: float) -> bytes | None:
        """An authentic ping of client `number` came. Returns the transaction id to ping `source` with, if it must first
        prove that the client is there; None: nothing to ask."""
        client = self.clients[number]
        if client.address == source:
            client.heard = now
            client.challenge = None
            return None
        if client.address is None or now > client.heard + BINDING_LIFE:
            self._bind(client, source, now)
            return None
        if client.challenge is None or client.challenge[0] != source:
            client.challenge = (source, self._random_bytes(TXID_SIZE))
        return client.challenge[1]

    def pong_received(self, number: int, source: Endpoint, txid: bytes, now: float) -> bool:
        """An authentic pong of a client. False, and nothing changed, if no challenge of ours asked for it."""
        client = self.clients.get(number)
        if client is None or client.challenge != (source, txid):
            return False
        self._bind(client, source, now)
        return True

    def _bind(self, client: Client, source: Endpoint, now: float) -> None:
        if client.address is not None:
            self._bound.pop(client.address, None)
        before = self._bound.get(source)
        if before is not None:
            before.address = None  # a NAT gave one client's port to another
        client.address = source
        client.heard = now
        client.challenge = None
        self._bound[source] = client

    # --- forwarding ---------------------------------------------------------------------------------------------------

    def sender(self, header: RelayHeader, source: Endpoint) -> Client | str:
        """Who sent a relayed run, or the reason to drop it."""
        client = self._bound.get(source)
        if client is None:
            return drops.RELAY_UNBOUND
        if not tickets_equal(client.ticket, header.ticket):
            return drops.RELAY_BAD_TICKET
        return client

    def forward(self, sender: Client, number: int, run: memoryview, segment: int, now: float) -> str:
        """Send a run (datagrams of one header, `segment` bytes each) on to client `number`. Rewrites it in place.

        Returns "" or the reason of the drop.
        """
        client = self.clients.get(number)
        if client is None:
            return drops.RELAY_NO_CLIENT
        if client is sender:
            return drops.RELAY_REFLECTED
        address = client.address
        if address is None or now > client.heard + BINDING_LIFE:
            return drops.RELAY_CLIENT_AWAY
        sock = self._sockets.to(address)
        if sock is None:
            return drops.SEND_NO_FAMILY
        header = pack_header(sender.number, client.ticket)
        size = len(run)
        for at in range(0, size, segment):
            run[at : at + RELAY_HEADER_SIZE] = header
        cut = segment if size > segment else 0
        outcome = sock.send((run,), cut, address)
        if outcome == drops.SEND_TOO_LONG:
            # The sender does not know of the way behind us yet, nor can we cut what we cannot read: IP may.
            outcome = self._send_fragmented(sock, run, segment, address)
        if outcome:
            return drops.RELAY_SOCKET_FULL if outcome in (drops.SEND_BLOCKED, drops.SEND_NO_BUFFERS) else outcome
        self.relayed_bytes += size
        return ""

    @staticmethod
    def _send_fragmented(sock: UdpSocket, run: memoryview, segment: int, address: Endpoint) -> str:
        """All but probes: those are to find out what passes in one piece."""
        outcome = drops.SEND_TOO_LONG
        for at in range(0, len(run), segment):
            if run[at + RELAY_HEADER_SIZE] != DISCO_TYPE:
                outcome = sock.send_fragmented((run[at : at + segment],), 0, address)
        return outcome
