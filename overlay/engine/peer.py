"""One peer as the engine sees it: its session, its keys' readers and writers, where it is reached. Mostly state."""

from dataclasses import dataclass
from typing import Final

from overlay.engine.api import PathSnapshot, PeerConfig
from overlay.engine.channel import Channel
from overlay.engine.staging import Staging
from overlay.engine.transport import TransportReader, TransportWriter
from overlay.path.selector import Selector
from overlay.path.types import Path
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.fragments import DATAGRAM_SIZE, FRAGMENT_HEADER_SIZE
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.reports import LossMeter
from overlay.wire.record.sizing import RecordSizer
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.session import Session

DATAGRAM_SIZES: Final = (DATAGRAM_SIZE, 1232, 1124, 548)
"""Bytes of UDP payload to fall back on when a path refuses one: for an MTU of 1492, of 1280 (IPv6's least), of 1172,
and of 576 (what every IPv4 host takes, RFC 791 §3.2)."""

SIZE_LIFE: Final = 600.0
"""s after which a larger size is tried again (RFC 8899 §5.1.1, PMTU_RAISE_TIMER)."""

HANDSHAKE_REPEATS: Final = (0.4, 1.2)
"""s after which an initiation to one of our own nodes goes out again, as it is, while no response comes. The session's
own retry, with a new one, comes after 5 s: too long for a first packet to a node that its relay did not know yet.
If the first did arrive, the peer drops the repeats as replays. Stock WireGuard peers get none."""

PATH_PATIENCE: Final = 3.0
"""s that packets wait for a way to the peer: as long as a host on a LAN waits for a neighbour (RFC 4861 §10)."""

KEY_PATIENCE: Final = 15.0
"""s that packets wait for an answer to our initiations: three of them, 5 s apart. The session asks on; what is sent
then waits anew."""

_MAX_SIZES: Final = 16


@dataclass(slots=True, eq=False)
class Receiver:
    """What opens the messages to one receiver index of ours."""

    peer: "Peer"
    keypair: Keypair
    expires: float
    record: RecordReader | None  # type 5
    transport: TransportReader | None  # type 4
    # What the peer's machines were told last: in which turn (its `now`, by identity), from where, and whether of data.
    turn: float = 0.0
    source: Endpoint | None = None
    data: bool = False


class Peer:
    """Compared by identity."""

    __slots__ = (
        "_sizes",
        "address",
        "armed",
        "channel",
        "config",
        "datagram_size",
        "handshake",
        "meter",
        "path_since",
        "prefix",
        "readers",
        "record_writers",
        "repeat_at",
        "repeats",
        "rx_bytes",
        "selector",
        "session",
        "sizer",
        "staging",
        "transport_writers",
        "tx_bytes",
    )

    def __init__(self, config: PeerConfig, session: Session, selector: Selector | None, wall_time: float) -> None:
        """`selector` None: a stock WireGuard peer, whose endpoint roams by that protocol's rule."""
        self.config = config
        self.session = session
        self.selector = selector
        self.armed: float | None = None  # for `Timers`
        self.address: Endpoint | None = None
        """Where datagrams go; None: nowhere yet."""
        self.prefix = b""
        """Relay header before each message, on the relay's path."""
        self.datagram_size = DATAGRAM_SIZE
        self.path_since = wall_time
        self.staging = Staging()
        self.handshake: bytes | None = None
        """The initiation that waits for its response: goes out again when the path changes under it."""
        self.repeat_at: float | None = None
        self.repeats = 0
        self.readers: dict[int, RecordReader] = {}  # by local index
        self.record_writers: dict[int, RecordWriter] = {}
        self.transport_writers: dict[int, TransportWriter] = {}
        self.channel: Channel | None = None
        """What the records of this turn are sent with; None: to be looked up anew."""
        self.meter = LossMeter()
        """What to tell the peer of the records that come from it."""
        self.sizer = RecordSizer(self._payload())
        """How large the records to it may be."""
        self.rx_bytes = 0
        self.tx_bytes = 0
        self._sizes: dict[Endpoint, tuple[int, float]] = {}  # found smaller: (size, when)

    def __repr__(self) -> str:
        return f"<Peer {self.number}>"

    @property
    def number(self) -> int:
        return self.config.number

    @property
    def relayed(self) -> bool:
        return bool(self.prefix)

    def set_route(self, address: Endpoint | None, prefix: bytes, now: float) -> bool:
        """Datagrams go there from now on. Returns whether that is a change."""
        changed = address != self.address or prefix != self.prefix
        self.address = address
        self.prefix = prefix
        self._choose_size(now)
        if changed:
            self.sizer.path_changed(self._payload(), now)
            if self.staging:
                self.staging.since = now  # another way is another chance
        self.datagram_size_changed()
        return changed

    def forget_sizes(self) -> None:
        """The way out of this machine changed: what paths could not carry says nothing any more."""
        self._sizes.clear()
        self.datagram_size = DATAGRAM_SIZE
        self.datagram_size_changed()

    def shrink(self, now: float) -> bool:
        """The path refused `datagram_size`: take the next smaller one. False: there is none."""
        smaller = next((size for size in DATAGRAM_SIZES if size < self.datagram_size), None)
        if smaller is None or self.address is None:
            return False
        if len(self._sizes) >= _MAX_SIZES:
            self._sizes.clear()
        self._sizes[self.address] = (smaller, now)
        self.datagram_size = smaller
        self.datagram_size_changed()
        return True

    def datagram_size_changed(self) -> None:
        """`datagram_size` or `prefix` may be others now."""
        self.channel = None
        self.sizer.payload_changed(self._payload())

    def _payload(self) -> int:
        """Bytes of box that a datagram holds."""
        return self.datagram_size - len(self.prefix) - FRAGMENT_HEADER_SIZE

    def _choose_size(self, now: float) -> None:
        self.datagram_size = DATAGRAM_SIZE
        known = self._sizes.get(self.address) if self.address is not None else None
        if known is not None:
            if now < known[1] + SIZE_LIFE:
                self.datagram_size = known[0]
            elif self.address is not None:
                del self._sizes[self.address]

    def handshake_sent(self, datagram: bytes, now: float) -> None:
        """A new initiation went out."""
        self.handshake = datagram
        self.repeats = 0
        self.repeat_at = now + HANDSHAKE_REPEATS[0] if self.selector is not None else None

    def handshake_over(self) -> None:
        """It was answered, or given up."""
        self.handshake = self.repeat_at = None

    def repeat_due(self, now: float) -> bool:
        """Is the initiation to go out again now? Asking counts as doing it."""
        if self.repeat_at is None or now < self.repeat_at:
            return False
        self.repeats += 1
        self.repeat_at = now + HANDSHAKE_REPEATS[self.repeats] if self.repeats < len(HANDSHAKE_REPEATS) else None
        return True

    def gives_up_at(self) -> float | None:
        """When what waits for this peer has waited long enough; None: nothing does."""
        since = self.staging.since
        if since is None:
            return None
        return since + (PATH_PATIENCE if self.address is None else KEY_PATIENCE)

    def next_timeout(self) -> float | None:
        """The earliest deadline of all that belongs to this peer."""
        nearest = self.session.next_timeout()
        if self.staging.since is not None:
            deadline = self.gives_up_at()
            if deadline is not None and (nearest is None or deadline < nearest):
                nearest = deadline
        deadline = self.repeat_at
        if deadline is not None and (nearest is None or deadline < nearest):
            nearest = deadline
        if self.selector is not None:
            deadline = self.selector.next_timeout()
            if deadline is not None and (nearest is None or deadline < nearest):
                nearest = deadline
        deadline = self.meter.next_timeout()
        if deadline is not None and (nearest is None or deadline < nearest):
            nearest = deadline
        for reader in self.readers.values():
            deadline = reader.next_timeout()
            if deadline is not None and (nearest is None or deadline < nearest):
                nearest = deadline
        return nearest

    def path(self) -> Path | None:
        if self.selector is not None:
            return self.selector.path if self.address is not None else None
        return None if self.address is None else Path("udp", self.address)

    def path_snapshot(self) -> PathSnapshot | None:
        path = self.path()
        return None if path is None else PathSnapshot(path.kind, path.endpoint, self.path_since, self.datagram_size)
