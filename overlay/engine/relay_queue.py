"""What the relay cannot send on at once: a fair queue behind each socket, and each client's rate.

In the common case nothing waits: a run goes out from the buffer that it came in, with one system call. It is copied and
kept when the socket takes no more, when more comes in a turn of the loop than is sent in one, when its sender is over
its rate, or when others or its sender wait already. Then senders take turns by bytes, so that who sends much gets in
its own way only.

The kernel's queues, in and out, are one for all, first come, first served, and what it drops there it does not tell. So
a relay has its sockets hold little of what goes out, and takes in twice as much as it sends: what is too much is then
dropped here, where it is known whose it is. Our own traffic (the outbox) is sent by turns with all that is relayed: a
run of either.
"""

from dataclasses import dataclass, field
from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.link import MAX_AGE, MAX_HELD, Link
from overlay.engine.outbox import Outbox
from overlay.engine.run import MAX_RUN
from overlay.engine.udp import UdpSocket
from overlay.path.budget import Budget
from overlay.path.fair_queue import FairQueue
from overlay.wire.disco import DISCO_TYPE
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RELAY_HEADER_SIZE, pack_header_into, rewrite

SEND_BUFFER: Final = 256 << 10
"""Bytes asked for, of which the kernel makes twice as many: eight of the largest runs, 4 ms at 1 Gb/s. It calls the
socket writable when half of that is gone, so that the line does not fall idle before the next run."""

CLIENT_LIMIT: Final = 512 << 10
"""Bytes that one client may have waiting for a line or a rate: as many as the kernel holds."""

BURST_LIMIT: Final = 4 << 20
"""Bytes that one client may have waiting while it is we who are late, not the line: we empty the socket's receive
buffer faster than we send, and a burst that it held must not be lost for that. Sent within milliseconds."""

SLOW_TIME: Final = 1.0
"""s that a line counts as slow after its socket was full."""

TOTAL_LIMIT: Final = 16 << 20
"""Bytes that wait behind one socket. Two thousand clients that all flood get 8 KB each."""

RATE_BURST_TIME: Final = 0.01
"""s of its rate that a client may send at once: the loop's timers are a few ms late."""

RATE_QUEUE_TIME: Final = 0.2
"""s of its rate that a client may have waiting: what TCP needs to fill a line of that round trip, and no more delay."""

RETRY_TIME: Final = 0.002
"""s after which it is tried again where the kernel had no memory: nothing tells when it has."""

RUNS_TAKEN_PER_TURN: Final = 16
RUNS_SENT_PER_TURN: Final = 8
"""Runs that a relay takes from a socket, and sends on, before the others get their turn of the loop."""


@dataclass(slots=True)
class Client:
    """A node that may send through us."""

    number: int
    public_key: bytes
    ticket: int = field(repr=False)
    address: Endpoint | None = None
    heard: float = float("-inf")  # last ping from `address`; of a link, which ends by itself, inf
    link: Endpoint | None = None  # its newest link, in use or not
    standby: tuple[Endpoint, float] | None = None  # while `address` is a link: the UDP binding, and when it was heard
    other: tuple[Endpoint, float] | None = None  # bound as well, by the other address family, and when that was proven
    challenge: tuple[Endpoint, bytes] | None = None  # (address, txid) that has to answer before it is bound
    budget: Budget | None = None  # of bytes, if clients have a rate


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A run, with the header that its receiver takes."""

    receiver: Client
    data: bytes
    segment: int
    traffic_class: int
    since: float


class _Exit:
    """One socket or link, as relayed runs see it. A link's holds less, and nothing for long."""

    __slots__ = ("full", "full_at", "link", "queue", "retry_at", "sent")

    def __init__(self, link: bool) -> None:
        self.link = link
        self.full_at = float("-inf")  # when it was so last
        self.sent = 0  # runs sent at once in this turn of the loop
        self.queue: FairQueue[_Waiting] = FairQueue(
            MAX_RUN, MAX_HELD if link else CLIENT_LIMIT, MAX_HELD if link else TOTAL_LIMIT
        )
        self.full = False  # the kernel took no more; wait until the socket is writable, or
        self.retry_at: float | None = None  # until then


class RelayQueues:
    """The relay's way to the sockets. Times in s."""

    def __init__(self, outbox: Outbox, counted: Drops, rate: float = 0.0) -> None:
        """`rate`: bytes per second that each client may send through us, UDP payload; 0: as many as it likes."""
        self.sent_bytes = 0
        self.blocked = False
        """Some UDP socket has runs waiting until it is writable."""
        self.armed: float | None = None  # for `Timers`
        self._outbox = outbox
        self._drops = counted
        self._rate = rate
        self._limit = min(CLIENT_LIMIT, max(2 * MAX_RUN, int(rate * RATE_QUEUE_TIME))) if rate else CLIENT_LIMIT
        self._exits: dict[UdpSocket | Link, _Exit] = {}
        for sock in outbox.sockets.all():
            sock.forwards(SEND_BUFFER)
            self._exits[sock] = _Exit(link=False)
        # Of thousands of links, those that something was sent to in this turn or waits for.
        self._lively: dict[UdpSocket | Link, _Exit] = self._exits.copy()

    @property
    def held(self) -> int:
        """Bytes that wait, with what it costs to hold them."""
        return sum(way.queue.held for way in self._exits.values())

    def add_link(self, link: Link) -> None:
        self._exits[link] = _Exit(link=True)

    def remove_link(self, link: Link) -> None:
        """What waits for it goes nowhere."""
        way = self._exits.pop(link, None)
        self._lively.pop(link, None)
        for waiting in way.queue.clear() if way is not None else ():
            self._count(drops.LINK_GONE, waiting)

    def new_budget(self) -> Budget | None:
        """What a client may send, if there is a rate."""
        return Budget(self._rate, max(MAX_RUN, self._rate * RATE_BURST_TIME)) if self._rate else None

    def send_alone(self, sender: Client, receiver: Client, datagram: memoryview) -> bool:
        """Send a relayed datagram without a traffic class on from where it lies, if nothing waits and there is no rate.
        False: ask `send`, with the same datagram and header."""
        address, outbox = receiver.address, self._outbox
        sock = None if address is None else outbox.sockets.to(address)
        if sock is None or address is None or outbox.busy or sender.budget is not None:
            return False
        way = self._exits[sock]
        if way.full or len(way.queue):
            return False
        if way.link and outbox.waiting(sock):
            return False
        send = sock.plain_sender(nobody_waits=True)
        if send is None:
            return False
        came = bytes(datagram[:RELAY_HEADER_SIZE])
        pack_header_into(datagram, 0, sender.number, receiver.ticket)
        try:
            send(datagram, address)
        except OSError:
            datagram[:RELAY_HEADER_SIZE] = came
            return False
        self.sent_bytes += len(datagram)
        return True

    def send(
        self,
        sender: Client,
        receiver: Client,
        header: bytes,
        run: memoryview,
        segment: int,
        now: float,
        traffic_class: int = 0,
    ) -> str:
        """Send a run on to where `receiver` is bound, or keep it for later. Puts `header` over that of each datagram.
        `traffic_class`: that it came with, and goes on with.

        Returns "" or the reason of the drop.
        """
        address = receiver.address
        if address is None:
            return drops.RELAY_CLIENT_AWAY
        sock = self._outbox.sockets.to(address)
        if sock is None:
            return drops.SEND_NO_FAMILY
        way, size, budget = self._exits[sock], len(run), sender.budget
        if way.link:
            self._lively[sock] = way
        if self._outbox.blocked and self._outbox.waiting(sock):
            self._set_full(sock, way, drops.SEND_BLOCKED, now)
        contended = way.full or way.queue.ready or way.sent >= RUNS_SENT_PER_TURN
        over_rate = budget is not None and budget.available_at(now, size) > now
        if not contended and not over_rate and sender.number not in way.queue:
            way.sent += 1
            rewrite(run, segment, header)
            outcome = self._send_now(sock, run, segment, address, traffic_class)
            if outcome == drops.SEND_BLOCKED or outcome == drops.SEND_NO_BUFFERS:
                self._set_full(sock, way, outcome, now)
            else:
                if budget is not None:
                    budget.take(now, size)
                return outcome
        slow = budget is not None or now < way.full_at + SLOW_TIME
        if not way.queue.room(sender.number, size, self._limit if slow else BURST_LIMIT):
            # Where the socket takes more, it is the rate that had so much wait.
            held_by_rate = over_rate or (budget is not None and not way.full)
            return drops.RELAY_RATE if held_by_rate else drops.RELAY_QUEUE_FULL
        rewrite(run, segment, header)
        way.queue.push(sender.number, _Waiting(receiver, bytes(run), segment, traffic_class, now), size, now, budget)
        return ""

    def remove(self, sender: Client) -> None:
        """The client is none any more: what it has waiting goes nowhere."""
        for way in self._exits.values():
            for waiting in way.queue.remove(sender.number):
                self._count(drops.RELAY_UNBOUND, waiting)

    # --- what waits ---------------------------------------------------------------------------------------------------

    def waiting(self, sock: UdpSocket | Link) -> bool:
        """Call `flush` when the socket is writable."""
        way = self._exits[sock]
        return way.full and way.retry_at is None

    def flush(self, sock: UdpSocket | Link, now: float) -> None:
        """The socket may take more: send what waits, ours and others' by turns, up to a turn's share."""
        way = self._exits[sock]
        way.full, way.retry_at = False, None
        self._look_whether_blocked()
        for _ in range(RUNS_SENT_PER_TURN):
            if not self._outbox.flush(sock, 1):
                self._set_full(sock, way, drops.SEND_BLOCKED, now)
            elif not self._flush_one(sock, way, now):
                break
            if way.full:
                return
        if not way.full:
            self._outbox.share(sock, shared=way.queue.ready)
            if not way.queue.ready:
                self._outbox.flush(sock)

    def _flush_one(self, sock: UdpSocket | Link, way: _Exit, now: float) -> bool:
        """Send or drop one run. False: nothing waits for its turn, or the socket takes no more."""
        waiting = way.queue.head(now)
        if waiting is None:
            return False
        address = waiting.receiver.address
        if address is None or self._outbox.sockets.to(address) is not sock:
            way.queue.pop(now, sent=False)
            self._count(drops.RELAY_CLIENT_AWAY, waiting)
            return True
        if way.link and now > waiting.since + MAX_AGE and not way.queue.is_last:
            way.queue.pop(now, sent=False)
            self._count(drops.LINK_LATE, waiting)
            return True
        outcome = self._send_now(sock, waiting.data, waiting.segment, address, waiting.traffic_class)
        if outcome == drops.SEND_BLOCKED or outcome == drops.SEND_NO_BUFFERS:
            self._set_full(sock, way, outcome, now)
            return False
        way.queue.pop(now)
        if outcome:
            self._count(outcome, waiting)
        return True

    def end_turn(self, now: float) -> float | None:
        """The loop's turn ends. Returns when to call `handle_timeout`; None: no need."""
        earliest: float | None = None
        for sock, way in list(self._lively.items()):
            way.sent = 0
            if way.link and not way.full and not len(way.queue):
                del self._lively[sock]
            if way.full:
                deadline = way.retry_at
            elif way.queue.ready:
                deadline = now
            else:
                deadline = way.queue.next_timeout()
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        return earliest

    def handle_timeout(self, now: float) -> None:
        """Some flow has tokens again, or a socket is to be tried again. Early calls are harmless."""
        for sock, way in list(self._lively.items()):
            if not way.full or (way.retry_at is not None and way.retry_at <= now):
                self.flush(sock, now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _send_now(
        self, sock: UdpSocket | Link, run: bytes | memoryview, segment: int, address: Endpoint, traffic_class: int
    ) -> str:
        cut = segment if len(run) > segment else 0
        outcome = sock.send((run,), cut, address, traffic_class)
        if outcome == drops.SEND_TOO_LONG:
            # The sender does not know of the way behind us yet, nor can we cut what we cannot read: IP may. But not
            # probes: those are to find out what passes in one piece.
            for at in range(0, len(run), segment):
                if run[at + RELAY_HEADER_SIZE] != DISCO_TYPE:
                    outcome = sock.send_fragmented((run[at : at + segment],), 0, address, traffic_class)
        if not outcome:
            self.sent_bytes += len(run)
        return outcome

    def _set_full(self, sock: UdpSocket | Link, way: _Exit, outcome: str, now: float) -> None:
        way.full, way.full_at = True, now
        way.retry_at = now + RETRY_TIME if outcome == drops.SEND_NO_BUFFERS else None
        self._look_whether_blocked()
        self._outbox.share(sock, shared=True)

    def _look_whether_blocked(self) -> None:
        ways = [self._exits[sock] for sock in self._outbox.sockets.all()]
        self.blocked = any(way.full and way.retry_at is None for way in ways)

    def _count(self, reason: str, waiting: _Waiting) -> None:
        self._drops.count(reason, -(-len(waiting.data) // waiting.segment))
