"""The relay: who its clients are, where they are, and the forwarding of what it cannot read.

`(source address, ticket) → client` holds for an address that a disco ping of the client's own came from. A binding in
use moves to another address only after that one answered a ping of ours: a ping can be recorded and sent again from
elsewhere, and would otherwise take a client's traffic away. What may go on goes to `relay_queue`.

A client that reaches us by IPv4 and by IPv6 asks both at once, and each answers; only it knows which it then uses. So
it may have a binding of each family, and send by either. It is answered at the one that was proven last.

A link needs no such proof: whose it is was proven as it was set up. A client may have a link and a UDP binding at a
time; it is answered where its own traffic last came from, as only the client knows which of the two serves it.
"""

from collections.abc import Callable
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.link import is_link
from overlay.engine.outbox import Outbox
from overlay.engine.relay_queue import Client, RelayQueues
from overlay.wire.disco import TXID_SIZE
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RelayHeader, pack_header, parse_header, tickets_equal

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
        self._links: dict[Endpoint, int] = {}  # who is proven to be there
        self.moved: set[int] = set()
        """Clients that are reached elsewhere since this was emptied."""

    def set_client(self, number: int, public_key: bytes, ticket: int) -> None:
        """A new client, or new values for one; it stays bound if its key is the same."""
        client = self.clients.get(number)
        if client is not None and client.public_key == public_key:
            client.ticket = ticket
            return
        self.remove_client(number)
        client = self.clients[number] = Client(number, public_key, ticket, budget=self.queues.new_budget())
        for endpoint, owner in self._links.items():
            if owner == number:
                self._attach(client, endpoint)

    def remove_client(self, number: int) -> None:
        client = self.clients.pop(number, None)
        if client is None:
            return
        for endpoint in [endpoint for endpoint, owner in self._bound.items() if owner is client]:
            del self._bound[endpoint]
        client.address = client.link = client.standby = client.other = None  # what waits for it goes nowhere
        self.queues.remove(client)

    def route(self, number: int, now: float) -> tuple[Endpoint, bytes] | None:
        """Where our own traffic to a client goes, and the header before each message; None: it is not bound."""
        client = self.clients.get(number)
        if client is None or client.address is None or now > client.heard + BINDING_LIFE:
            return None
        return client.address, pack_header(self._number, client.ticket)

    # --- links --------------------------------------------------------------------------------------------------------

    def add_link(self, endpoint: Endpoint, number: int, now: float) -> None:
        """Node `number` is at the other end of that link; it may be no client of ours yet."""
        self._links[endpoint] = number
        client = self.clients.get(number)
        if client is not None:
            self._attach(client, endpoint)
            if client.address is None or now > client.heard + BINDING_LIFE:
                self._use(client, endpoint)

    def remove_link(self, endpoint: Endpoint) -> None:
        """It is gone: its client is reached by UDP again, or by an older link, or not at all."""
        self._links.pop(endpoint, None)
        client = self._bound.pop(endpoint, None)
        if client is None:
            return
        if client.link == endpoint:
            left = [other for other, owner in self._links.items() if owner == client.number]
            client.link = left[-1] if left else None
        if client.address != endpoint:
            return
        client.address, client.heard = client.standby or (None, float("-inf"))
        client.standby = None
        if client.address is None and client.link is not None:
            self._use(client, client.link)
        self.moved.add(client.number)

    def _attach(self, client: Client, endpoint: Endpoint) -> None:
        self._bound[endpoint] = client
        client.link = endpoint
        if client.address is None:
            self._use(client, endpoint)

    def _use(self, client: Client, source: Endpoint) -> None:
        """The client's traffic comes from there, where it is proven to be: answer it there."""
        address = client.address
        if source == address:
            return
        if client.other is not None and client.other[0] == source:
            if address is not None and not is_link(address):
                return
            (client.address, client.heard), client.other, client.standby = client.other, client.standby, None
        elif is_link(source):
            if address is not None and not is_link(address):
                client.standby = (address, client.heard)
            client.address, client.heard = source, float("inf")
        elif client.standby is not None and client.standby[0] == source:
            client.address, client.heard = client.standby
            client.standby = None
        self.moved.add(client.number)

    # --- bindings -----------------------------------------------------------------------------------------------------

    def ping_received(self, number: int, source: Endpoint, now: float) -> bytes | None:
        """An authentic ping of client `number` came. Returns the transaction id to ping `source` with, if it must first
        prove that the client is there; None: nothing to ask."""
        client = self.clients[number]
        if is_link(source):
            if self._bound.get(source) is client:  # clients ping a link that they mean to use
                self._use(client, source)
            return None
        if client.address == source:
            client.heard = now
            client.challenge = None
            return None
        if client.standby is not None and client.standby[0] == source:
            client.standby = (source, now)
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
        linked = client.address is not None and is_link(client.address)
        replaced = client.standby if linked else None if client.address is None else (client.address, client.heard)
        if replaced is not None and (":" in replaced[0][0]) != (":" in source[0]):
            replaced, client.other = client.other, replaced
        if replaced is not None:
            self._bound.pop(replaced[0], None)
        before = self._bound.get(source)
        if before is not None:  # a NAT gave one client's port to another
            if before.address == source:
                before.address = None
                if before.link is not None:
                    self._use(before, before.link)
            elif before.other is not None and before.other[0] == source:
                before.other = None
            else:
                before.standby = None
        client.challenge = None
        self._bound[source] = client
        if linked:
            client.standby = (source, now)
        else:
            client.address, client.heard = source, now

    # --- forwarding ---------------------------------------------------------------------------------------------------

    def sender(self, header: RelayHeader, source: Endpoint) -> Client | str:
        """Who sent a relayed run, or the reason to drop it."""
        client = self._bound.get(source)
        if client is None:
            return drops.RELAY_UNBOUND
        if not tickets_equal(client.ticket, header.ticket):
            return drops.RELAY_BAD_TICKET
        if client.address is not source and client.address != source:
            self._use(client, source)
        return client

    def forward_alone(self, datagram: memoryview, source: Endpoint, now: float) -> bool:
        """Send one datagram of a client on in the fewest steps, if nothing about it is out of the ordinary. False, and
        nothing happened: look closer."""
        sender = self._bound.get(source)
        if sender is None or (sender.address is not source and sender.address != source):
            return False
        header = parse_header(datagram)
        receiver = self.clients.get(header.number)
        return (
            receiver is not None
            and receiver is not sender
            and now <= receiver.heard + BINDING_LIFE
            and tickets_equal(sender.ticket, header.ticket)
            and self.queues.send_alone(sender, receiver, datagram)
        )

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
