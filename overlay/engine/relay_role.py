"""The relay: who its clients are, where they are, and the forwarding of what it cannot read.

`(source address, ticket) → client` holds for an address that a disco ping of the client's own came from. A binding in
use moves to another address only after that one answered a ping of ours: a ping can be recorded and sent again from
elsewhere, and would otherwise take a client's traffic away. What may go on goes to `relay_queue`.
"""

from collections.abc import Callable
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.outbox import Outbox
from overlay.engine.relay_queue import Client, RelayQueues
from overlay.wire.disco import TXID_SIZE
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RelayHeader, pack_header, tickets_equal

BINDING_LIFE: Final = 90.0
"""s after the last ping: clients ping each 25 s, so that three were lost. Then the NAT may have given the port away."""


class RelayRole:
    """All clients of this relay."""

    def __init__(
        self,
        number: int,
        outbox: Outbox,
        counted: Drops,
        random_bytes: Callable[[int], bytes],
        rate: float = 0.0,
    ) -> None:
        """`rate`: bytes per second that each client may send through us; 0: as many as it likes."""
        self.clients: dict[int, Client] = {}
        self.queues = RelayQueues(outbox, counted, rate)
        self._number = number
        self._random_bytes = random_bytes
        self._bound: dict[Endpoint, Client] = {}

    def set_client(self, number: int, public_key: bytes, ticket: int) -> None:
        """A new client, or new values for one; it stays bound if its key is the same."""
        client = self.clients.get(number)
        if client is not None and client.public_key == public_key:
            client.ticket = ticket
            return
        self.remove_client(number)
        self.clients[number] = Client(number, public_key, ticket, budget=self.queues.new_budget())

    def remove_client(self, number: int) -> None:
        client = self.clients.pop(number, None)
        if client is None:
            return
        if client.address is not None:
            self._bound.pop(client.address, None)
            client.address = None  # what waits for it goes nowhere
        self.queues.remove(client)

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

    def forward(
        self, sender: Client, number: int, run: memoryview, segment: int, now: float, traffic_class: int = 0
    ) -> str:
        """Send a run (datagrams of one header, `segment` bytes each) on to client `number`. May rewrite it in place.

        Returns "" or the reason of the drop.
        """
        client = self.clients.get(number)
        if client is None:
            return drops.RELAY_NO_CLIENT
        if client is sender:
            return drops.RELAY_REFLECTED
        if client.address is None or now > client.heard + BINDING_LIFE:
            return drops.RELAY_CLIENT_AWAY
        header = pack_header(sender.number, client.ticket)
        return self.queues.send(sender, client, header, run, segment, now, traffic_class)
