"""One peer as the engine sees it: its session, its keys' readers and writers, where it is reached. Mostly state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overlay.engine.api import PathSnapshot, PeerConfig
from overlay.engine.channel import Channel
from overlay.engine.link import DATAGRAM_SIZE as LINK_DATAGRAM_SIZE
from overlay.engine.link import is_link
from overlay.engine.staging import MAX_IN_DOUBT, Staging
from overlay.engine.transport import TransportReader, TransportWriter
from overlay.path.budget import Budget
from overlay.path.pmtu import BASE_PLPMTU, MIN_PLPMTU, PROBE_BURST, PROBE_RATE, PathMtu
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

HANDSHAKE_REPEATS: Final = (0.4, 1.2)
"""s after which an initiation to one of our own nodes goes out again, as it is, while no response comes. The session's
own retry, with a new one, comes after 5 s: too long for a first packet to a node that its relay did not know yet.
If the first did arrive, the peer drops the repeats as replays. Stock WireGuard peers get none."""

PATH_PATIENCE: Final = 3.0
"""s that packets wait for a way to the peer: as long as a host on a LAN waits for a neighbour (RFC 4861 §10)."""

KEY_PATIENCE: Final = 15.0
"""s that packets wait for an answer to our initiations: three of them, 5 s apart. The session asks on; what is sent
then waits anew."""

_IPV6_MORE: Final = 20  # bytes; its header is that much longer than IPv4's
_MAX_PATHS: Final = 16
"""Paths of one peer whose datagram size is remembered."""


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
        "_budget",
        "_mtus",
        "_random_bytes",
        "address",
        "armed",
        "channel",
        "config",
        "datagram_size",
        "handshake",
        "in_doubt",
        "meter",
        "mtu",
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

    def __init__(
        self,
        config: PeerConfig,
        session: Session,
        selector: Selector | None,
        wall_time: float,
        random_bytes: Callable[[int], bytes],
    ) -> None:
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
        """Bytes of UDP payload that a datagram to this peer may have."""
        self.mtu: PathMtu | None = None
        """The search for that size on the present path; None: nowhere yet, or a stock peer, which answers no probe."""
        self.path_since = wall_time
        self.staging = Staging()
        self.in_doubt: Staging | None = None
        """What was sent since the path in use owes an answer; None: it does not."""
        self.handshake: bytes | None = None
        """The initiation that waits for its response: goes out again when the path changes under it."""
        self.repeat_at: float | None = None
        self.repeats = 0
        self.readers: dict[int, RecordReader] = {}  # by local index
        self.record_writers: dict[int, RecordWriter] = {}
        self.transport_writers: dict[int, TransportWriter] = {}
        self.channel: Channel | None = None
        """What records are sent with; None: to be looked up anew."""
        self.meter = LossMeter()
        """What to tell the peer of the records that come from it."""
        self.sizer = RecordSizer(self._payload())
        """How large the records to it may be."""
        self.rx_bytes = 0
        self.tx_bytes = 0
        self._mtus: dict[tuple[Endpoint, bool], PathMtu] = {}  # by address, and whether relayed; oldest first
        self._budget = Budget(PROBE_RATE, PROBE_BURST)
        self._random_bytes = random_bytes

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
        if address == self.address and prefix == self.prefix:
            return False
        longer = _longer_headers(self.address, address)
        self.address = address
        self.prefix = prefix
        self._choose_mtu(longer)
        if self.staging:
            self.staging.since = now  # another way is another chance
        self.datagram_size_changed()
        self.sizer.path_changed(self._payload(), now)
        return True

    def forget_sizes(self) -> None:
        """The way out of this machine changed: what paths could carry is to be found anew."""
        self._mtus.clear()
        self._choose_mtu()

    def shrink(self, now: float) -> bool:
        """Our own kernel refused `datagram_size`: take the next smaller one. False: there is none."""
        if self.mtu is None or self.datagram_size <= MIN_PLPMTU:
            return False
        self.mtu.refused(self.datagram_size, now)
        self.follow_mtu()
        return True

    def probe_answered(self, txid: bytes, now: float) -> bool:
        """An authentic pong of the peer came, maybe after data took another path. False: no probe of ours asked."""
        asked = any(mtu.pong_received(txid, now) for mtu in self._mtus.values())
        self.follow_mtu()
        return asked

    def follow_mtu(self) -> None:
        """Take over what the search found, after each call to `mtu`."""
        if self.mtu is not None and self.mtu.size != self.datagram_size:
            self.datagram_size = self.mtu.size
            self.datagram_size_changed()

    def datagram_size_changed(self) -> None:
        """`datagram_size` or `prefix` are others now."""
        self.channel = None
        self.sizer.payload_changed(self._payload())

    def _payload(self) -> int:
        """Bytes of box that a datagram holds."""
        return self.datagram_size - len(self.prefix) - FRAGMENT_HEADER_SIZE

    def _choose_mtu(self, longer_headers: int = 0) -> None:
        """Go on with what is known of the present path. One that is new begins with no more than the last one took, as
        ways to the same peer often share their narrowest place.

        `longer_headers`: bytes by which IP's header is longer than on the last path.
        """
        initial = DATAGRAM_SIZE
        if self.mtu is not None:
            self.mtu.rest(self.tx_bytes)
            initial = min(initial, max(self.mtu.size - longer_headers, min(self.mtu.size, BASE_PLPMTU)))
        self.mtu = None
        if self.selector is None or self.address is None:
            return
        if is_link(self.address) and not self.relayed:
            self.datagram_size = LINK_DATAGRAM_SIZE  # a stream has no size that does not pass
            return
        key = (self.address, self.relayed)
        known = self._mtus.pop(key, None)
        if known is None:
            if len(self._mtus) >= _MAX_PATHS:
                del self._mtus[next(iter(self._mtus))]
            known = PathMtu(initial, self._budget, self._random_bytes)
        known.rest(self.tx_bytes)
        self.mtu = self._mtus[key] = known
        self.follow_mtu()

    def doubt(self, doubtful: bool) -> list[bytearray]:
        """Is the path in use in doubt now? → what was sent while it was, if it is no more, oldest first."""
        if doubtful == (self.in_doubt is not None):
            return []
        self.channel = None  # it knows of a short way, past `in_doubt`, or has none
        kept = self.in_doubt.take() if self.in_doubt is not None else []
        self.in_doubt = Staging(MAX_IN_DOUBT) if doubtful else None
        return kept

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
        mtu = self.mtu
        if mtu is not None and not mtu.asleep and (nearest is None or mtu.timeout < nearest):
            nearest = mtu.timeout
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
        if path is None:
            return None
        return PathSnapshot(path.kind, path.shown or path.endpoint, self.path_since, self.datagram_size)


def _longer_headers(before: Endpoint | None, now: Endpoint | None) -> int:
    """Bytes by which IP's header is longer on the way now."""
    if before is None or now is None or ":" in before[0] or ":" not in now[0]:
        return 0
    return _IPV6_MORE
