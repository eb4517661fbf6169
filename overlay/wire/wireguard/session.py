"""Everything between us and one peer: key pairs, the handshake under way, timers (paper §6). Made by `Device.add_peer`.

Knows no addresses, paths or packets. The engine seals and opens with the key pairs and tells what it did
(`data_sent`, `data_received`); after every call it drains `events` and looks at `next_timeout`.

`now` should come from a clock that counts while the machine sleeps (CLOCK_BOOTTIME): keys age in a suspended machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.wireguard import constants, handshake, tai64n
from overlay.wire.wireguard.cookie import CookieJar
from overlay.wire.wireguard.events import (
    DropStaged,
    HandshakeCompleted,
    KeypairAdded,
    KeypairRemoved,
    SendHandshake,
    SendKeepalive,
    SessionEvent,
)
from overlay.wire.wireguard.indextable import IndexTable
from overlay.wire.wireguard.keypair import Keypair, KeypairSlots
from overlay.wire.wireguard.messages import CookieReply, Response
from overlay.wire.wireguard.primitives import KEY_SIZE, clamp, dh
from overlay.wire.wireguard.timers import NEVER, Timers

__all__ = [
    "DropStaged",
    "HandshakeCompleted",
    "KeypairAdded",
    "KeypairRemoved",
    "Local",
    "SendHandshake",
    "SendKeepalive",
    "Session",
    "SessionEvent",
]


@dataclass(frozen=True, slots=True)
class Local:
    """Our own side, shared by all sessions of a device. `jitter` gives numbers in [0, 1)."""

    private_key: bytes = field(repr=False)
    public_key: bytes
    random_bytes: Callable[[int], bytes] = field(repr=False)
    tai64n: Callable[[], bytes] = field(repr=False)
    jitter: Callable[[], float] = field(repr=False)
    indices: IndexTable["Session"] = field(repr=False)


class Session:
    """One peer. `last_handshake` is the `now` of the last completed handshake."""

    def __init__(self, local: Local, public_key: bytes) -> None:
        self.public_key = public_key
        self.last_handshake: float | None = None
        self._local = local
        self._preshared_key = handshake.NO_PRESHARED_KEY
        self._persistent_keepalive = 0.0
        self._static_static: bytes | None = None
        self._cookies = CookieJar(public_key)
        self._pending: handshake.PendingInitiation | None = None
        self._keypairs = KeypairSlots()
        self._timers = Timers()
        self._events: list[SessionEvent] = []
        self._attempts = 0
        self._last_sent_handshake = -inf
        self._last_timestamp = tai64n.ZERO
        self._last_initiation = -inf
        self._need_another_keepalive = False
        self._last_minute_done = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Session {self.public_key.hex()[:8]}>"

    # Settings -------------------------------------------------------------------------------------------------------

    def set_preshared_key(self, preshared_key: bytes | None) -> None:
        """For the handshakes from now on; None is the same as 32 zero bytes. Raises `LocalProtocolError`."""
        if preshared_key is not None and len(preshared_key) != KEY_SIZE:
            raise LocalProtocolError(f"preshared key of {len(preshared_key)} bytes instead of {KEY_SIZE}")
        self._preshared_key = preshared_key or handshake.NO_PRESHARED_KEY

    def set_persistent_keepalive(self, interval: float, now: float) -> None:
        """Send something at least every `interval` seconds, so that NATs and firewalls keep the way open; 0: off.

        Switching it on sends one at the next `handle_timeout`, which is due at once.
        """
        if not 0.0 <= interval < inf:
            raise LocalProtocolError(f"a keepalive interval of {interval} s")
        if interval == self._persistent_keepalive:
            return
        switched_on = self._persistent_keepalive == 0.0
        self._persistent_keepalive = interval
        if interval == 0.0:
            self._timers.persistent_keepalive = NEVER
        else:
            self._timers.persistent_keepalive = now if switched_on else now + interval

    # What the engine asks and tells ---------------------------------------------------------------------------------

    def sending_keypair(self, now: float) -> Keypair | None:
        """The key pair to seal with. None: stage the packet and call `request_handshake`."""
        keypair = self._keypairs.current
        if keypair is None or now >= keypair.expires or keypair.send_counter >= constants.REJECT_AFTER_MESSAGES:
            return None
        return keypair

    def request_handshake(self, now: float) -> None:
        """Data wants to go: initiate, unless a handshake message of ours is younger than 5 s."""
        self._start_handshake(now)

    def renew(self, now: float) -> None:
        """The peer has lost its keys, as somebody trustworthy says: make new ones, if there are any to be lost.

        Otherwise the 15 s of the new-handshake timer would pass first. The present key goes on meanwhile, in case that
        the peer has made this handshake already. Not in the paper: stock WireGuard has nobody to say so.
        """
        if self.sending_keypair(now) is not None:
            self._last_sent_handshake = -inf  # the pause is between messages to one peer, and this is another one now
            self._start_handshake(now)

    def data_sent(self, keypair: Keypair, now: float, *, empty: bool) -> None:
        """A packet (or a batch) went out under `keypair`; `empty`: it was a keepalive."""
        timers = self._timers
        if self._need_another_keepalive and empty:
            # Data came while the keepalive was due: it gets one of its own, unless something else is sent before.
            self._need_another_keepalive = False
            timers.send_keepalive = now + constants.KEEPALIVE_TIMEOUT
            self._arm_persistent_keepalive(now)
        else:
            self._authenticated_sent(now)
        if not empty and timers.new_handshake == NEVER:
            timers.new_handshake = now + constants.NEW_HANDSHAKE_TIME + self._jitter()
        if keypair.send_counter > constants.REKEY_AFTER_MESSAGES or (
            keypair.initiator and now >= keypair.created + constants.REKEY_AFTER_TIME
        ):
            self._start_handshake(now)

    def data_received(self, keypair: Keypair, now: float, *, empty: bool) -> None:
        """A packet (or a batch) under `keypair` was authenticated and is no replay; `empty`: it was a keepalive."""
        slots = self._keypairs
        if keypair is slots.next:
            slots.confirm_next()
            self._handshake_complete(now)
        elif keypair is not slots.current and keypair is not slots.previous:
            return  # retired between the packet and this call
        self._authenticated_received(now)
        timers = self._timers
        if not empty:
            if timers.send_keepalive == NEVER:
                timers.send_keepalive = now + constants.KEEPALIVE_TIMEOUT
            else:
                self._need_another_keepalive = True
        current = slots.current
        if (
            current is not None
            and current.initiator
            and not self._last_minute_done
            and now >= current.created + constants.LAST_MINUTE_TIME
        ):
            self._last_minute_done = True
            self._start_handshake(now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called; None: never."""
        return self._timers.next()

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`. Early calls are harmless."""
        timers = self._timers
        if now >= timers.reject_keypair:
            self._retire(self._keypairs.remove_expired(now))
            self._arm_reject_keypair()
        if now >= timers.zero_key_material:
            timers.zero_key_material = NEVER
            self._forget_keys()
            self._events.append(DropStaged())
        if now >= timers.retransmit_handshake:
            timers.retransmit_handshake = NEVER
            self._retry_handshake(now)
        if now >= timers.new_handshake:
            timers.new_handshake = NEVER
            self._start_handshake(now)
        if now >= timers.send_keepalive:
            timers.send_keepalive = NEVER
            self._send_keepalive(now)
        if now >= timers.persistent_keepalive:
            timers.persistent_keepalive = now + self._persistent_keepalive
            self._send_keepalive(now)

    def events(self) -> list[SessionEvent]:
        """Drain what is to be done, in order."""
        events, self._events = self._events, []
        return events

    # What the device passes on --------------------------------------------------------------------------------------

    def consume_initiation(self, opened: handshake.OpenedInitiation, now: float) -> bytes:
        """Returns the response, a whole datagram. On an error nothing has changed.

        Raises `RemoteProtocolError`: `low_order_point`, `bad_tag`, `replayed_initiation`, `initiation_flood`.
        """
        local = self._local
        consumed = handshake.consume_initiation(opened, static_static=self._shared_secret())
        if consumed.timestamp <= self._last_timestamp:
            raise RemoteProtocolError("replayed_initiation")
        if now < self._last_initiation + constants.INITIATION_INTERVAL:
            raise RemoteProtocolError("initiation_flood")

        # From here on nothing can fail: both of the peer's points have been multiplied once already.
        index = local.indices.allocate(self)
        response, keys = handshake.create_response(
            consumed,
            ephemeral_private=clamp(local.random_bytes(KEY_SIZE)),
            sender_index=index,
            preshared_key=self._preshared_key,
        )
        self._last_timestamp = consumed.timestamp
        self._last_initiation = now
        self._last_sent_handshake = now
        self._authenticated_received(now)
        self._authenticated_sent(now)
        # An initiation of ours that crossed this one stays pending. Whichever response arrives, both ends then hold
        # both keys; if both forgot their own (as some do), both would wait for the next retry.
        self._add_keypair(index, consumed.remote_index, keys, now, initiator=False)
        return self._cookies.add_macs(response.pack(), now)

    def consume_response(self, message: Response, now: float) -> None:
        """The answer to our initiation. On an error nothing has changed.

        Raises `RemoteProtocolError`: `unknown_index`, `low_order_point`, `bad_tag`.
        """
        pending = self._pending
        if pending is None or pending.local_index != message.receiver_index:
            raise RemoteProtocolError("unknown_index")
        keys = handshake.consume_response(
            message, pending, static_private=self._local.private_key, preshared_key=self._preshared_key
        )
        self._pending = None  # its index goes on as the key pair's
        self._authenticated_received(now)
        keypair = self._add_keypair(pending.local_index, message.sender_index, keys, now, initiator=True)
        self._events.append(SendKeepalive(keypair))
        self._handshake_complete(now)

    def consume_cookie_reply(self, reply: CookieReply, now: float) -> None:
        """Keep the cookie for our next message. Raises `RemoteProtocolError`: `unexpected_cookie`, `bad_tag`."""
        if not self._cookies.consume(reply, now):
            raise RemoteProtocolError("unexpected_cookie")

    def close(self) -> None:
        """The peer is removed: forget all secrets, stop all timers. The last events can still be drained."""
        self._closed = True
        self._forget_keys()
        self._timers.cancel_all()
        self._preshared_key = handshake.NO_PRESHARED_KEY
        self._static_static = None
        self._cookies = CookieJar(self.public_key)

    # Handshakes -----------------------------------------------------------------------------------------------------

    def _start_handshake(self, now: float) -> None:
        self._attempts = 0
        self._initiate(now)

    def _retry_handshake(self, now: float) -> None:
        if self._attempts <= constants.MAX_HANDSHAKE_ATTEMPTS:
            self._attempts += 1
            self._initiate(now)
            return
        self._timers.send_keepalive = NEVER
        self._need_another_keepalive = False
        if self._timers.zero_key_material == NEVER:
            # What is left of the half-done handshake must not stay for ever either.
            self._timers.zero_key_material = now + constants.ZERO_KEY_MATERIAL_TIME
        self._events.append(DropStaged())

    def _initiate(self, now: float) -> None:
        if self._closed:
            return
        local, timers = self._local, self._timers
        earliest = self._last_sent_handshake + constants.REKEY_TIMEOUT
        if now < earliest:
            # The message of ours may have been a response that got lost; nobody else would then bring this up again.
            if timers.retransmit_handshake == NEVER and self.sending_keypair(now) is None:
                timers.retransmit_handshake = earliest + self._jitter()
            return
        try:
            static_static = self._shared_secret()
        except RemoteProtocolError:
            self._events.append(DropStaged())  # a public key that nobody can have: this peer will never answer
            return
        self._forget_pending()
        message, self._pending = handshake.create_initiation(
            static_public=local.public_key,
            remote_static=self.public_key,
            static_static=static_static,
            ephemeral_private=clamp(local.random_bytes(KEY_SIZE)),
            sender_index=local.indices.allocate(self),
            timestamp=local.tai64n(),
        )
        self._events.append(SendHandshake(self._cookies.add_macs(message.pack(), now)))
        self._last_sent_handshake = now
        timers.retransmit_handshake = now + constants.REKEY_TIMEOUT + self._jitter()
        self._authenticated_sent(now)

    def _shared_secret(self) -> bytes:
        # Made at first use: a large network has many peers that one never talks to.
        if self._static_static is None:
            self._static_static = dh(self._local.private_key, self.public_key)
        return self._static_static

    def _handshake_complete(self, now: float) -> None:
        self._timers.retransmit_handshake = NEVER
        self._attempts = 0
        self._last_minute_done = False
        self.last_handshake = now
        self._events.append(HandshakeCompleted())

    # Keys -----------------------------------------------------------------------------------------------------------

    def _add_keypair(
        self, local_index: int, remote_index: int, keys: handshake.TransportKeys, now: float, *, initiator: bool
    ) -> Keypair:
        keypair = Keypair(
            local_index=local_index,
            remote_index=remote_index,
            send_key=keys.send,
            receive_key=keys.receive,
            initiator=initiator,
            created=now,
        )
        self._retire(self._keypairs.add(keypair))
        self._events.append(KeypairAdded(keypair))
        self._timers.zero_key_material = now + constants.ZERO_KEY_MATERIAL_TIME
        self._arm_reject_keypair()
        return keypair

    def _retire(self, keypairs: list[Keypair]) -> None:
        for keypair in keypairs:
            self._local.indices.release(keypair.local_index)
            unheard_of = KeypairAdded(keypair) in self._events
            # Nobody may be asked to use a key that is wiped by the time the events are drained.
            self._events = [
                event
                for event in self._events
                if not (isinstance(event, KeypairAdded | SendKeepalive) and event.keypair is keypair)
            ]
            if not unheard_of:
                self._events.append(KeypairRemoved(keypair.local_index))
            keypair.wipe()

    def _forget_keys(self) -> None:
        self._forget_pending()
        self._retire(self._keypairs.clear())
        self._arm_reject_keypair()

    def _forget_pending(self) -> None:
        if self._pending is not None:
            self._local.indices.release(self._pending.local_index)
            self._pending = None

    # Timers ---------------------------------------------------------------------------------------------------------

    def _authenticated_sent(self, now: float) -> None:
        self._timers.send_keepalive = NEVER
        self._need_another_keepalive = False
        self._arm_persistent_keepalive(now)

    def _authenticated_received(self, now: float) -> None:
        self._timers.new_handshake = NEVER
        self._arm_persistent_keepalive(now)

    def _arm_persistent_keepalive(self, now: float) -> None:
        if self._persistent_keepalive:
            self._timers.persistent_keepalive = now + self._persistent_keepalive

    def _arm_reject_keypair(self) -> None:
        self._timers.reject_keypair = min((keypair.expires for keypair in self._keypairs.all()), default=NEVER)

    def _send_keepalive(self, now: float) -> None:
        keypair = self.sending_keypair(now)
        if keypair is None:
            self._start_handshake(now)
        else:
            self._events.append(SendKeepalive(keypair))

    def _jitter(self) -> float:
        return self._local.jitter() * constants.REKEY_TIMEOUT_JITTER
