"""The engine's one loop: epoll over TUN, sockets and the command eventfd; timers; commands. On the engine thread alone.

One turn: commands, for a share of it; what is readable, up to a share per descriptor; timers; then everybody whom
something happened to is attended to, once. Datagrams come before timers, lest a late wake-up looks like a silent path.
"""

import functools
import itertools
import logging
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from overlay.engine import api
from overlay.engine.attendance import Attendance
from overlay.engine.drops import Drops
from overlay.engine.exchange import DiscoExchange
from overlay.engine.faults import Faults
from overlay.engine.home_relay import HomeRelay
from overlay.engine.inbound import Inbound
from overlay.engine.link import Link
from overlay.engine.links import Links
from overlay.engine.lone import Lone
from overlay.engine.outbound import Outbound
from overlay.engine.outbox import Outbox
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.punches import Punches
from overlay.engine.relay_role import RelayRole
from overlay.engine.routes import Routes
from overlay.engine.sender import Sender
from overlay.engine.slack import sharpen_timers
from overlay.engine.taps import Taps
from overlay.engine.timers import Timers
from overlay.engine.tun import Tun
from overlay.engine.udp import UdpSocket, UdpSockets
from overlay.engine.unreachable import Unreachable
from overlay.errors import UserError
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet import ecn
from overlay.wire.record.buffers import MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.primitives import clamp
from overlay.wire.wireguard.tai64n import Timestamper

logger = logging.getLogger(__name__)

MAX_SLEEP: Final = 60.0
"""s that epoll sleeps at most; bounds what a clock that counts differently from epoll's (suspend) can cost."""

OVERSLEPT: Final = 5.0
"""s that epoll slept longer than it was asked to, from which on the machine must have been asleep, or this process
stopped: epoll's clock does not count that, ours does."""

IDLE: Final = 0.0001
"""s that the loop slept for, above which a turn is somebody's round trip rather than part of a stream: what came first
is dealt with to its end before anything else."""

COMMANDS_SHARE: Final = 0.0005
"""s of a turn that commands take, and one command more: packets wait no longer for a whole network map."""

COMMANDS_AT_ONCE: Final = 8
"""Commands that are done in one turn however long they take: what belongs together, such as a peer and its relay."""


MAX_READY: Final = 64
"""Descriptors that a turn deals with; the kernel tells of others first the next time."""

clock: Final = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""s, monotonic, counting while the machine sleeps: keys age in a suspended machine, too."""


class Loop:
    """Everything that the engine thread owns. Build it anywhere, `run` it on one thread."""

    def __init__(
        self,
        config: api.EngineConfig,
        tun: Tun | None,
        sockets: UdpSockets,
        wakeup: int,
        commands: "deque[api.Command]",
        on_event: Callable[[api.Event], None],
    ) -> None:
        """`wakeup`: an eventfd that is written to after `commands` was appended to."""
        self._config = config
        self._tun = tun
        self._sockets = sockets
        self._wakeup = wakeup
        self._commands = commands
        self._stopping = False
        self._timestamper = Timestamper(time.time_ns, config.timestamp_floor)
        private_key = clamp(config.private_key)
        self._device = Device(private_key, random_bytes=os.urandom, tai64n=self._timestamper, jitter=random.random)
        self._drops = Drops()
        self._faults = Faults(self._drops)
        self._timers = Timers()
        self._outbox = Outbox(sockets, self._drops)
        self._peers = Peers(self._device, self._drops, os.urandom, tun.mtu if tun is not None else lambda: 0)
        role = None
        if config.relay_clients:
            role = RelayRole(config.number, self._outbox, self._drops, os.urandom, config.relay_rate)
        self._relayed = None if role is None else role.queues
        self._routes = Routes(role)
        class_mask = ecn.CLASS_MASK if config.copy_dscp else ecn.ECN_MASK
        self._sender = Sender(self._peers, self._outbox, self._routes, self._drops, class_mask)
        self._disco = DiscoExchange(
            private_key, config.number, self._peers, self._outbox, self._routes, self._drops, os.urandom, on_event
        )
        unreachable = Unreachable(tun, self._drops)
        self._attendance = Attendance(
            self._peers,
            self._sender,
            self._disco,
            self._routes,
            self._timers,
            unreachable,
            self._drops,
            on_event,
        )
        self._inbound = Inbound(
            self._device,
            tun,
            self._peers,
            self._outbox,
            self._routes,
            self._disco,
            self._attendance,
            self._drops,
            self._faults,
            config.number,
            on_event,
        )
        self._outbound: Outbound | None = None
        self._lone: Lone | None = None
        if tun is not None:
            outbound = self._outbound = Outbound(
                tun,
                self._peers,
                self._sender,
                self._outbox,
                unreachable,
                self._drops,
                self._faults,
                class_mask,
                commands,
            )
            self._lone = Lone(
                tun,
                self._peers,
                self._sender,
                self._outbox,
                self._routes,
                self._inbound,
                outbound,
                self._drops,
                self._faults,
                class_mask,
                commands,
            )
        self._taps = Taps(tun, sockets, self._peers, role)
        self._outbox.on_added = self._taps.added
        self._epoll = select.epoll()
        self._by_fd = {sock.fileno(): sock for sock in sockets.all()}
        self._links = Links(
            self._peers,
            self._outbox,
            self._routes,
            self._inbound,
            self._disco,
            self._timers,
            self._drops,
            self._epoll,
            on_event,
            clock,
        )
        self._punches = Punches(
            self._peers,
            self._disco.calls,
            self._outbox,
            self._drops,
            os.urandom,
            self._epoll,
            self._disco.sealed_ping,
            self._disco.is_from,
            lambda datagram, source, now: self._inbound.run(datagram, len(datagram), source, now),
        )
        self._disco.calls.on_called = self._punches.called
        self._punches.on_passed = self._taps.passed
        self._peers.on_removed = self._links.remove_peer
        self._disco.probe_answered = self._punches.pong_received
        self._was_blocked = False
        self._epoll.register(wakeup, select.EPOLLIN)
        for descriptor in self._by_fd:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._tun_descriptor = -1 if tun is None else tun.fileno()
        if tun is not None:
            self._epoll.register(self._tun_descriptor, select.EPOLLIN)

    def stop(self) -> None:
        """End `run` after this turn. On the engine thread, or followed by a wake-up."""
        self._stopping = True

    def close(self) -> None:
        self._punches.close()
        self._epoll.close()

    def run(self) -> None:
        """Turn until stopped. Raises what makes going on pointless: the TUN device is gone, say."""
        sharpen_timers()
        while not self._stopping:
            self.turn(MAX_SLEEP)

    def turn(self, patience: float) -> None:
        """Wait for something, `patience` seconds at most, and deal with it."""
        deadline, before = self._timers.next(), clock()
        if deadline is not None:
            patience = max(0.0, min(patience, deadline - before))
        ready = self._epoll.poll(patience, MAX_READY)
        now = clock()
        idle = now - before > IDLE
        if idle and now - before > patience + OVERSLEPT:
            with self._faults:
                self._link_changed(now)  # whoever wakes is somewhere else, or its NATs have forgotten it
        if not (idle and len(ready) == 1 and self._alone(*ready[0], now)):
            self._deal(ready, now, idle)
        if idle and self._sockets.lively_links:
            self._links.write()
        self._wake_waiters(now)
        self._attend(now)
        if self._sockets.links and self._links.end_turn(now):
            self._attend(now)  # some of them are gone: others go another way at once
            self._links.end_turn(now)
        self._watch_blocked()

    # --- descriptors --------------------------------------------------------------------------------------------------

    def _alone(self, descriptor: int, mask: int, now: float) -> bool:
        """Deal with what one descriptor has, if the short way is for it."""
        if self._lone is None or mask != select.EPOLLIN or self._commands:
            return False
        try:
            if descriptor == self._tun_descriptor:
                self._lone.packet(now)
                return True
            sock = self._by_fd.get(descriptor)
            if sock is not None:
                self._lone.datagram(sock, now)
                return True
            link = self._links.by_descriptor.get(descriptor)
            if link is None:
                return False
            self._lone.link(link, now)
        except OSError as error:
            raise self._gone(error) from error
        return True

    def _deal(self, ready: list[tuple[int, int]], now: float, idle: bool) -> None:
        if (self._wakeup, select.EPOLLIN) in ready:  # first: packets may come for a peer that was posted before them
            os.eventfd_read(self._wakeup)
            self._take_commands(now)
            if self._outbound is not None and not self._commands:
                self._outbound.commands_taken(now)
        for descriptor, mask in ready:
            sock = self._by_fd.get(descriptor)
            if sock is not None:
                self._socket_ready(sock, mask, now, idle)
            elif descriptor in self._links.by_descriptor:
                self._link_ready(self._links.by_descriptor[descriptor], mask, now, idle)
            elif descriptor == self._tun_descriptor:
                self._tun_ready(now, idle)
            elif descriptor in self._punches.kept_by_fd:
                self._socket_ready(self._punches.kept_by_fd[descriptor], mask, now, idle)
            elif descriptor in self._punches.by_fd:
                with self._faults:
                    self._punches.ready(descriptor, now)

    def _socket_ready(self, sock: UdpSocket, mask: int, now: float, idle: bool) -> None:
        if mask & select.EPOLLOUT:
            if self._relayed is not None:
                self._relayed.flush(sock, now)
            else:
                self._outbox.flush(sock)
        if mask & (select.EPOLLIN | select.EPOLLERR):
            self._inbound.receive(sock, now, idle)
            if idle and not self._commands:  # what was posted before a packet comes before it
                self._tun_ready(now, idle)  # what came may have been answered already: a ping is, and a bare segment

    def _link_ready(self, link: Link, mask: int, now: float, idle: bool) -> None:
        with self._faults:
            self._links.ready(link, mask, now)
        if idle and not self._commands:
            self._links.write()  # what was relayed
            self._tun_ready(now, idle)

    def _tun_ready(self, now: float, idle: bool) -> None:
        if self._outbound is None:
            return
        try:
            self._outbound.read(now, idle)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> UserError:
        name = "" if self._tun is None else self._tun.name
        return UserError(
            "interface-gone",
            f"The network interface '{name}' was removed ({error.strerror or error}).",
            "Start again to make it anew.",
        )

    def _watch_blocked(self) -> None:
        """While a socket's buffer is full, wait for room in it, and leave packets in the TUN's own queue."""
        relayed = self._relayed
        blocked = self._outbox.blocked or (relayed is not None and relayed.blocked)
        if not blocked and not self._was_blocked:
            return
        self._was_blocked = blocked
        for descriptor, sock in (*self._by_fd.items(), *self._punches.kept_by_fd.items()):
            waiting = self._outbox.waiting(sock) or (relayed is not None and relayed.waiting(sock))
            self._epoll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if waiting else 0))
        if self._tun is not None:
            self._epoll.modify(self._tun.fileno(), 0 if self._outbox.blocked else select.EPOLLIN)

    # --- timers -------------------------------------------------------------------------------------------------------

    def _wake_waiters(self, now: float) -> None:
        for waiter in self._timers.due(now):
            with self._faults:
                if isinstance(waiter, Peer):
                    if self._peers.by_number.get(waiter.number) is waiter:  # else it was removed
                        self._attendance.timeout(waiter, now)
                elif waiter is self._routes.home:
                    self._disco.attend_home(now)
                elif isinstance(waiter, Link):
                    self._links.timeout(waiter, now)
                elif waiter is self._relayed:
                    self._relayed.handle_timeout(now)
                elif waiter is self._punches:
                    self._punches.handle_timeout(now)

    def _attend(self, now: float) -> None:
        routes, touched = self._routes, self._peers.touched
        if routes.role is not None and routes.role.moved:
            routes.moved |= routes.role.moved
            routes.role.moved.clear()
        if routes.all_moved or routes.moved:
            numbers = set(self._peers.by_number) if routes.all_moved else routes.moved & self._peers.by_number.keys()
            routes.all_moved = False
            routes.moved = set()
            for number in numbers:
                with self._faults:
                    self._attendance.reroute(self._peers.by_number[number], now)
        while touched:
            with self._faults:
                self._attendance.attend(touched.pop(), now)
        if routes.home is not None:
            self._timers.arm(routes.home, routes.home.next_timeout())
        if self._relayed is not None:
            self._timers.arm(self._relayed, self._relayed.end_turn(now))
        if self._punches.stirred:
            self._punches.stirred = False
            self._timers.arm(self._punches, self._punches.next_timeout(now))

    # --- commands -----------------------------------------------------------------------------------------------------

    def _take_commands(self, now: float) -> None:
        end = time.monotonic() + COMMANDS_SHARE
        for number in itertools.count():
            if number >= COMMANDS_AT_ONCE and time.monotonic() >= end:
                break
            try:
                command = self._commands.popleft()
            except IndexError:
                return
            with self._faults:
                self._do(command, now)
        os.eventfd_write(self._wakeup, 1)  # the others' turn; the rest next time

    def _do(self, command: api.Command, now: float) -> None:
        match command:
            case api.SetPeer(peer):
                self._attendance.reroute(self._peers.set(peer, now), now)
            case api.RemovePeer(number):
                self._peers.remove(number, now)
                self._disco.calls.forget(number)
                self._punches.forget(number, now)
            case api.SetReach():
                self._disco.calls.set_reach(command, now)
            case api.SetMapping(endpoint):
                self._disco.calls.mapped(endpoint, now)
            case api.SendCue(number, call):
                if number in self._peers.by_number:
                    self._disco.calls.send(self._peers.by_number[number], call, now)
            case api.SetRelay(endpoints, number, public_key, ticket):
                self._set_relay(endpoints, number, public_key, ticket, now)
            case api.SetClient(number, public_key, ticket):
                self._set_client(number, public_key, ticket, now)
            case api.RemoveClient(number):
                if self._routes.role is not None:
                    self._links.remove_client(number, now)
                    self._routes.role.remove_client(number)
                    self._routes.moved.add(number)
            case api.AddLink():
                self._links.add(command, now)
            case api.RemoveLink(number):
                self._links.remove(number, now)
            case api.SendDatagrams(datagrams, endpoint):
                self._send_datagrams(datagrams, endpoint)
            case api.ExpectForeign(endpoint, expected):
                self._inbound.expect_foreign(endpoint, expected=expected)
            case api.LinkChanged():
                self._link_changed(now)
            case api.Inspect(reply):
                reply(self._snapshot(now))
            case api.InspectPeer(number, tell):
                tell(self._peer_details(number, now))
            case api.PingPeer(number, ping_reply):
                self._ping_peer(number, ping_reply, now)
            case api.StartTap(tap, started):
                self._taps.start(tap)
                started()
            case api.StopTap(tap, stopped):
                self._taps.stop(tap)
                stopped()

    def _set_client(self, number: int, public_key: bytes, ticket: int, now: float) -> None:
        role = self._routes.role
        if role is None:
            return
        before = role.clients.get(number)
        if before is not None and before.public_key != public_key:
            self._links.remove_client(number, now)  # they were proven by the key before
        role.set_client(number, public_key, ticket)
        self._routes.moved.add(number)

    def _send_datagrams(self, datagrams: tuple[bytes, ...], endpoint: Endpoint) -> None:
        """Equal ones side by side go in one call."""
        for size, group in itertools.groupby(datagrams, len):
            equal, most = list(group), max(1, min(MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE // max(1, size)))
            for at in range(0, len(equal), most):
                run = equal[at : at + most]
                outcome = self._outbox.send(run, size if len(run) > 1 else 0, endpoint)
                if outcome:
                    self._drops.count(outcome, len(run))

    def _set_relay(
        self, endpoints: tuple[Endpoint, ...], number: int, public_key: bytes, ticket: int, now: float
    ) -> None:
        routes = self._routes
        if routes.home is None or (routes.home.endpoints, routes.home_number, routes.home_key) != (
            endpoints,
            number,
            public_key,
        ):
            routes.home = HomeRelay(endpoints, os.urandom, now)
            routes.home_number = number
            routes.home_key = public_key
            for link in self._sockets.links.values():
                if link.client is None and link.peer is None:
                    routes.home.add_link(link.endpoint, now)
        else:
            routes.home.ask(now)  # said again after a new connection to the server: it may have started anew
        self._disco.attend_home(now)
        routes.ticket = ticket
        routes.all_moved = True

    def _ping_peer(self, number: int, reply: api.PingReply, now: float) -> None:
        peer = self._peers.by_number.get(number)
        if peer is not None and peer.selector is not None:
            peer.selector.data_sent(now)
            self._attendance.attend(peer, now)  # there may be a way now, where there was none
        if peer is None or not self._disco.echo(peer, reply, now):
            reply(api.PingAnswer(None, None))

    def _link_changed(self, now: float) -> None:
        if self._routes.home is not None:
            self._routes.home.ask(now)
            self._disco.attend_home(now)
        for peer in self._peers:
            peer.forget_sizes()
            if peer.selector is not None:
                peer.selector.link_changed(now)
            self._peers.touched.add(peer)

    def _snapshot(self, now: float) -> api.EngineSnapshot:
        counts = self._drops.counts.copy()
        for receiver in self._peers.receivers.values():
            for reader in (receiver.record, receiver.transport):
                if reader is not None:
                    counts.update(reader.drops)
        features = self._sockets.features.as_dict()
        if self._tun is not None:
            features.update({name: on for name, on in self._tun.features.as_dict().items() if name.startswith("tun_")})
        else:
            features = {name: on for name, on in features.items() if not name.startswith("tun_")}
        home, relayed = self._routes.home, self._relayed
        return api.EngineSnapshot(
            interface=None if self._tun is None else self._tun.name,
            port=self._sockets.port,
            peers=tuple(_peer_snapshot(peer, now) for peer in self._peers),
            relay_rtt=None if home is None else home.rtt,
            drops=dict(counts),
            features=features,
            relayed_bytes=0 if relayed is None else relayed.sent_bytes,
            relay_waiting=0 if relayed is None else relayed.held,
            timestamp=self._timestamper.highest,
        )

    def _peer_details(self, number: int, now: float) -> api.PeerDetails | None:
        peer, calls = self._peers.by_number.get(number), self._disco.calls
        if peer is None or peer.selector is None:
            return None
        next_call = peer.selector.next_call
        return api.PeerDetails(
            peer=_peer_snapshot(peer, now),
            active=peer.selector.active(now),
            own_nat=calls.reach.nat,
            nat=calls.nat(number),
            relay=self._routes.relay(number, now) is not None,
            next_call=None if next_call is None else max(0.0, next_call - now),
            candidates=peer.selector.candidates(now),
        )


def _peer_snapshot(peer: Peer, now: float) -> api.PeerSnapshot:
    last = peer.session.last_handshake
    return api.PeerSnapshot(
        number=peer.number,
        path=peer.path_snapshot(),
        rtt=None if peer.selector is None else peer.selector.rtt,
        last_handshake=None if last is None else now - last,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
    )
