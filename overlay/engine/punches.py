"""Attempts to meet a peer by many probes: the sockets of the hard side, and what becomes of a hit. Engine thread.

One attempt runs at a time. The socket that a probe came in by stays open as the way to that endpoint, for as long as
the peer is reached there; all others are closed when the attempt ends.
"""

import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overlay.engine import drops
from overlay.engine.calls import Calls
from overlay.engine.drops import Drops
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.udp import UdpSocket
from overlay.path import punch
from overlay.path.types import TXID_SIZE
from overlay.wire.disco import Offer
from overlay.wire.endpoint import Endpoint

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 64
"""Peers that wait for their attempt; further ones come back with their next call."""

MAX_KEPT: Final = 64
"""Sockets kept as ways to peers; one peer needs one."""

KEPT_UNUSED: Final = 60.0
"""s without a use after which such a socket is closed: its mapping in the NAT is gone as well."""

_LARGEST_PROBE: Final = 2048

Ping = Callable[[int, Endpoint, bytes], bytes | None]
"""(node number, endpoint, transaction id) → a sealed ping; None: not to be sent there."""


@dataclass(slots=True)
class _Kept:
    sock: UdpSocket
    number: int
    used: float


class Punches:
    """`register` and `unregister` have epoll watch a descriptor; `is_from`: is a datagram an authentic
    one of that node? `carry_on` deals with a datagram as with any other."""

    def __init__(
        self,
        peers: Peers,
        calls: Calls,
        outbox: Outbox,
        counted: Drops,
        random_bytes: Callable[[int], bytes],
        epoll: select.epoll,
        ping: Ping,
        is_from: Callable[[int, bytes], bool],
        carry_on: Callable[[memoryview, Endpoint, float], None],
    ) -> None:
        self.armed: float | None = None  # for `Timers`
        self.stirred = False
        """Something happened: ask for `next_timeout`."""
        self.by_fd: dict[int, socket.socket] = {}
        """Sockets of the attempt that runs."""
        self.kept_by_fd: dict[int, UdpSocket] = {}
        """Those that are ways to peers; the loop reads them as it reads the engine's own."""
        self.on_passed: Callable[[bytes, int, Endpoint, bool], None] = lambda datagram, port, endpoint, outbound: None
        """Told of each datagram of the attempt's sockets: our port, the other end, and whether it went out."""
        self._peers = peers
        self._calls = calls
        self._outbox = outbox
        self._drops = counted
        self._random_bytes = random_bytes
        self._epoll = epoll
        self._ping = ping
        self._is_from = is_from
        self._carry_on = carry_on
        self._waiting: dict[int, float] = {}  # node number → when its attempt may begin
        self._failures: dict[int, tuple[int, float]] = {}  # node number → attempts in vain, and when the next may be
        self._attempt: punch.Attempt | None = None
        self._number = 0  # of the peer that the attempt is for
        self._txid = b""
        self._kept: dict[Endpoint, _Kept] = {}

    def called(self, peer: Peer, now: float) -> None:
        """The peer and we have just called each other: if simple asking does not do, there will be an attempt."""
        number = peer.number
        _, after = self._failures.get(number, (0, 0.0))
        if self._target(peer) is None or self._number == number or now < after:
            return
        if number in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting.setdefault(number, now + punch.DELAY)
            self.stirred = True

    def forget(self, number: int, now: float) -> None:
        """The peer is gone."""
        self._waiting.pop(number, None)
        self._failures.pop(number, None)
        if self._number == number:
            self._end(now)
        for endpoint, kept in list(self._kept.items()):
            if kept.number == number:
                self._close(endpoint)

    def next_timeout(self, now: float) -> float | None:
        deadlines = [min(self._waiting.values())] if self._waiting and self._attempt is None else []
        if self._attempt is not None:
            deadlines.append(self._attempt.next_timeout(now))
        if self._kept:
            deadlines.append(min(kept.used for kept in self._kept.values()) + KEPT_UNUSED)
        return min(deadlines, default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        self.stirred = True
        self._look_after_kept(now)
        if self._attempt is None:
            self._begin(now)
        attempt, peer = self._attempt, self._peers.by_number.get(self._number)
        if attempt is None:
            return
        if peer is None or self._is_direct(peer) or attempt.is_over(now):
            self._end(now)
            return
        for endpoint in attempt.probes(now):
            datagram = self._ping(self._number, endpoint, self._txid)
            if datagram is None:
                continue
            if attempt.part == "many-sockets":
                self._ask_from_new_socket(datagram, endpoint)
            else:
                outcome = self._outbox.send((datagram,), 0, endpoint)
                if outcome:
                    self._drops.count(outcome)

    def ready(self, descriptor: int, now: float) -> None:
        """A socket of the attempt has something."""
        sock, attempt = self.by_fd[descriptor], self._attempt
        try:
            data, source = sock.recvfrom(_LARGEST_PROBE)
        except OSError:
            self._drops.count(drops.RECEIVE_ERROR)
            return
        endpoint: Endpoint = (source[0], source[1])
        self.on_passed(data, int(sock.getsockname()[1]), endpoint, False)
        if attempt is None or endpoint != attempt.target or endpoint in self._kept:
            self._drops.count(drops.PUNCH_STRANGER)  # or a second hit: one is enough
            return
        if not self._is_from(self._number, data):
            return  # counted; who forges the source must not have this endpoint bound to a socket of his choice
        self.stirred = True
        self._keep(sock, endpoint, now)
        self._carry_on(memoryview(bytearray(data)), endpoint, now)

    def pong_received(self, peer: Peer, txid: bytes, source: Endpoint, now: float) -> bool:
        """An authentic pong of the peer came. False: no probe of ours asked for it."""
        attempt = self._attempt
        if attempt is None or peer.number != self._number or txid != self._txid or source not in attempt.asked:
            return False
        if peer.selector is not None:
            peer.selector.punched(source, attempt.asked[source], now)
            self._peers.touched.add(peer)
        return True

    def close(self) -> None:
        for sock in self.by_fd.values():
            sock.close()
        self.by_fd.clear()
        for endpoint in list(self._kept):
            self._close(endpoint)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _target(self, peer: Peer) -> tuple[punch.Part, Endpoint] | None:
        """Our part with this peer, and where it was seen; None: asking simply does, or nothing does."""
        side = punch.part(self._calls.reach.nat, self._calls.nat(peer.number))
        endpoint = next((each.endpoint for each in self._calls.offers(peer.number) if _is_outside(each)), None)
        return None if side is None or endpoint is None else (side, endpoint)

    def _is_direct(self, peer: Peer) -> bool:
        path = peer.path()
        return path is not None and path.kind in ("lan", "udp")

    def _begin(self, now: float) -> None:
        for number, start in list(self._waiting.items()):
            if start > now:
                continue
            del self._waiting[number]
            peer = self._peers.by_number.get(number)
            target = self._target(peer) if peer is not None and not self._is_direct(peer) else None
            if target is not None:
                self._attempt = punch.Attempt(*target, now, self._random_bytes, self._peers.node_budget)
                self._number, self._txid = number, self._random_bytes(TXID_SIZE)
                logger.debug("peer %d: an attempt by %s begins", number, target[0])
                return

    def _end(self, now: float) -> None:
        number, peer = self._number, self._peers.by_number.get(self._number)
        self._attempt, self._number, self._txid = None, 0, b""
        for descriptor, sock in self.by_fd.items():
            self._epoll.unregister(descriptor)
            sock.close()
        self.by_fd.clear()
        if peer is not None and not self._is_direct(peer):
            count = self._failures.get(number, (0, 0.0))[0]
            self._failures[number] = (count + 1, now + punch.PAUSES[min(count, len(punch.PAUSES) - 1)])
        else:
            self._failures.pop(number, None)

    def _ask_from_new_socket(self, datagram: bytes, endpoint: Endpoint) -> None:
        sock = None
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.sendto(datagram, endpoint)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        except OSError as error:
            self._drops.count(drops.PUNCH_NO_SOCKET)
            logger.debug("no socket for a probe: %s", error.strerror)
            if sock is not None:
                sock.close()
        else:
            self.by_fd[sock.fileno()] = sock
            self.on_passed(datagram, int(sock.getsockname()[1]), endpoint, True)

    def _keep(self, sock: socket.socket, endpoint: Endpoint, now: float) -> None:
        """This socket is the way to the endpoint from now on."""
        del self.by_fd[sock.fileno()]
        if len(self._kept) >= MAX_KEPT:
            self._close(min(self._kept, key=lambda each: self._kept[each].used))
        kept = UdpSocket(sock, self._outbox.sockets.features)
        self._kept[endpoint] = _Kept(kept, self._number, now)
        self.kept_by_fd[kept.fileno()] = kept
        self._outbox.add_socket(kept, endpoint)
        self._peers.forget_channels()

    def _look_after_kept(self, now: float) -> None:
        for endpoint, kept in list(self._kept.items()):
            peer = self._peers.by_number.get(kept.number)
            if peer is not None and peer.selector is not None and peer.selector.trusts(endpoint, now):
                kept.used = now
            elif now >= kept.used + KEPT_UNUSED:
                self._close(endpoint)

    def _close(self, endpoint: Endpoint) -> None:
        kept = self._kept.pop(endpoint)
        del self.kept_by_fd[kept.sock.fileno()]
        self._epoll.unregister(kept.sock.fileno())
        self._outbox.remove_socket(kept.sock, endpoint)
        self._peers.forget_channels()
        kept.sock.close()


def _is_outside(offer: Offer) -> bool:
    return offer.origin in ("observed", "mapped", "manual")
