"""Transport keys of one handshake, and the three slots that a session keeps them in (paper §6.3).

Knows no timers and no packets; the engine seals and opens with what stands here.
"""

from dataclasses import dataclass

from overlay.errors import LocalProtocolError
from overlay.wire.wireguard.constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from overlay.wire.wireguard.gaps import GapWindow


class Keypair:
    """The keys of one derived session, 32 bytes each, and what belongs to them alone: counter and replay window.

    `local_index` is how the peer addresses us, `remote_index` how we address the peer. `created` is the `now` of the
    derivation, s; from `expires` on the keys neither seal nor open. `send_counter` is the next counter to use.
    """

    __slots__ = (
        "created",
        "expires",
        "initiator",
        "local_index",
        "receive_key",
        "remote_index",
        "replay",
        "send_counter",
        "send_key",
    )

    def __init__(
        self,
        *,
        local_index: int,
        remote_index: int,
        send_key: bytes,
        receive_key: bytes,
        initiator: bool,
        created: float,
    ) -> None:
        self.local_index = local_index
        self.remote_index = remote_index
        self.send_key = send_key
        self.receive_key = receive_key
        self.initiator = initiator
        self.created = created
        # One sum, compared everywhere: `now - created` would round differently from a deadline and miss it by a hair.
        self.expires = created + REJECT_AFTER_TIME
        self.send_counter = 0
        self.replay = GapWindow()

    def next_counter(self, count: int = 1) -> int:
        """Take the next counter, or the next `count` of them, and return the first.

        Raises `LocalProtocolError` when so many are not left; a key without any is no `sending_keypair`.
        """
        counter = self.send_counter
        if counter + count > REJECT_AFTER_MESSAGES:
            raise LocalProtocolError("the counters of this key are used up")
        self.send_counter = counter + count
        return counter

    def expired(self, now: float) -> bool:
        """Too old to seal or open anything."""
        return now >= self.expires

    def wipe(self) -> None:
        """Forget the keys. Python's bytes cannot be overwritten, so this drops the references; who copied a key into
        a cipher object must drop that too, when the session says `KeypairRemoved`."""
        self.send_key = self.receive_key = b""

    def __repr__(self) -> str:
        role = "initiator" if self.initiator else "responder"
        return f"<Keypair {self.local_index:08x}->{self.remote_index:08x} {role} created={self.created}>"


@dataclass(slots=True)
class KeypairSlots:
    """Previous, current and next key pair. Each change returns the key pairs that fell out.

    `current` seals. All three open: packets in flight may still use `previous`, and `next` is a key that we derived as
    the responder and that the initiator has not confirmed yet.
    """

    previous: Keypair | None = None
    current: Keypair | None = None
    next: Keypair | None = None

    def add(self, keypair: Keypair) -> list[Keypair]:
        """Put a fresh key pair into its slot: an initiator's is current at once, a responder's waits as next."""
        if keypair.initiator:
            # An unconfirmed `next` is the newest key that the peer may be sending with: it outlives `current`.
            dropped = [self.previous, self.current] if self.next else [self.previous]
            self.previous = self.next or self.current
            self.current, self.next = keypair, None
        else:
            dropped = [self.previous, self.next]
            self.previous, self.next = None, keypair
        return [old for old in dropped if old is not None]

    def confirm_next(self) -> None:
        """The peer used `next`: it becomes current. Nothing falls out: `add` emptied `previous` when `next` came."""
        self.previous, self.current, self.next = self.current, self.next, None

    def remove_expired(self, now: float) -> list[Keypair]:
        """Take out every key pair that is too old."""
        dropped = [keypair for keypair in self.all() if keypair.expired(now)]
        if self.previous in dropped:
            self.previous = None
        if self.current in dropped:
            self.current = None
        if self.next in dropped:
            self.next = None
        return dropped

    def clear(self) -> list[Keypair]:
        """Take out all."""
        dropped = self.all()
        self.previous = self.current = self.next = None
        return dropped

    def all(self) -> list[Keypair]:
        """The key pairs held, in no order that matters."""
        return [keypair for keypair in (self.previous, self.current, self.next) if keypair is not None]
