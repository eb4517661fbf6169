"""What the rest of the program says to the engine thread, and what it hears back.

Commands go in through `Engine.post` (a deque and an eventfd); events come out through the callback given to `Engine`,
which is called **on the engine thread** and must only hand over (`loop.call_soon_threadsafe`). All are frozen values:
nothing here is shared state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from overlay.engine.link import Handed as Handed
from overlay.engine.tap import Tap
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.path.types import CandidateState
from overlay.path.types import PathKind as PathKind
from overlay.wire.disco import CallMe, Offer
from overlay.wire.endpoint import Endpoint

Cipher = Literal["aes-256-gcm", "chacha20-poly1305"]
Network = IPv4Network | IPv6Network

SERVER_NUMBER = 1
"""The node number of the server. Numbers below 2**32, never used twice; 0 stands for no node."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What is fixed for an engine's life."""

    private_key: bytes = field(repr=False)  # X25519, 32 bytes, clamped
    number: int  # own node number
    interface: str | None  # TUN name wished for ("overlay%d" lets the kernel number it); None: no TUN
    port: int = 0  # UDP port, for both address families; 0: the kernel picks
    relay_clients: bool = False  # this engine is a relay: it forwards type 6 between clients
    relay_rate: float = 0.0  # bytes per second that each client may send through it (UDP payload); 0: no bound
    copy_dscp: bool = False  # outer headers show the inner packets' DSCP (RFC 2983); their ECN field they always show
    timestamp_floor: int = 0  # TAI64N never goes below this many ns since the epoch (kept in the state folder)


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer, as the network map or a test has it. Setting the same number again updates it; the session stays."""

    number: int
    public_key: bytes
    allowed: tuple[Network, ...]
    transport: Literal["record", "wireguard"] = "record"  # type 5 or type 4
    cipher: Cipher = "chacha20-poly1305"  # for type 5
    endpoints: tuple[Endpoint, ...] = ()  # candidates; for "wireguard": the configured endpoint
    lan_endpoints: tuple[Endpoint, ...] = ()  # those of the candidates that are the peer's own interface addresses
    preshared_key: bytes | None = field(default=None, repr=False)
    persistent_keepalive: float = 0.0  # seconds, 0: off
    epoch: int = 0  # another one: the peer started anew and knows no session of before; 0: not known


@dataclass(frozen=True, slots=True)
class SetPeer:
    peer: PeerConfig


@dataclass(frozen=True, slots=True)
class RemovePeer:
    number: int


@dataclass(frozen=True, slots=True)
class SetRelay:
    """The relay that this node sends through: its endpoints (the first that answers is used), its node,
    our ticket there."""

    endpoints: tuple[Endpoint, ...]
    number: int
    public_key: bytes
    ticket: int = field(repr=False)  # u64


@dataclass(frozen=True, slots=True)
class SetClient:
    """Relay role: a node that may send through us."""

    number: int
    public_key: bytes
    ticket: int = field(repr=False)


@dataclass(frozen=True, slots=True)
class RemoveClient:
    number: int


@dataclass(frozen=True, slots=True)
class AddLink:
    """A stream to the relay, from a client or to a peer, set up: the engine takes it over, and closes its socket in
    every case. `handed`: the carrier's `Detached`. Those to the relay and from a client are authenticated. One to a
    peer is a candidate for the path to it, and closed if the peer does not prove itself there."""

    number: int  # chosen by who posts this; never used twice in an engine's life
    handed: Handed
    client: int | None  # relay role: the node that is proven there; None: it leads to our home relay, or to `peer`
    carrier: str  # its name, for logs
    peer: int | None = None  # the node that should be there; None: the link is none to a peer
    shown: Endpoint | None = None  # its endpoint, for people; needed if there is a `peer`


@dataclass(frozen=True, slots=True)
class RemoveLink:
    """Close a link. No `LinkLost` follows; one that is lost already is no mistake."""

    number: int


@dataclass(frozen=True, slots=True)
class SendDatagrams:
    """Send these from the engine's UDP port: another protocol's (QUIC, STUN). What cannot be sent is dropped and
    counted."""

    datagrams: tuple[bytes, ...]
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class ExpectForeign:
    """From now on, or no more: much of another protocol (QUIC) comes from there. Whoever posts it knows who that is; a
    source address proves nothing, so what comes is still bounded."""

    endpoint: Endpoint
    expected: bool


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """Addresses or routes of the machine changed: prove all paths anew."""


@dataclass(frozen=True, slots=True)
class SetReach:
    """Where we may be reached, best first, and what our NAT does: what peers are told when they are called."""

    nat: NatBehaviour = UNKNOWN_NAT
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class SetMapping:
    """The mapping that our NAT made last, as asked for by `WantMapping`: seen from outside this very moment."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class SendCue:
    """Send a call-me to a peer, through the relay; for way "tcp", which the engine does not deal with itself."""

    number: int
    call: CallMe


@dataclass(frozen=True, slots=True)
class PathSnapshot:
    kind: PathKind
    endpoint: Endpoint | None  # None for relay
    since: float  # Unix time, s
    mtu: int  # largest UDP payload, bytes


@dataclass(frozen=True, slots=True)
class PeerSnapshot:
    number: int
    path: PathSnapshot | None
    rtt: float | None  # s
    last_handshake: float | None  # s ago
    rx_bytes: int  # inner bytes
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class PeerDetails:
    """All that bears on the choice of the path to one peer."""

    peer: PeerSnapshot
    active: bool  # does data flow?
    own_nat: NatBehaviour
    nat: NatBehaviour  # the peer's, as it told us
    relay: bool  # is there one?
    next_call: float | None  # s until the peer is called again; None: it is not
    candidates: tuple[CandidateState, ...]


@dataclass(frozen=True, slots=True)
class InspectPeer:
    """Ask for one peer's details; `reply` is called on the engine thread and must only hand over. None: no such peer,
    or a stock WireGuard peer, which has no choice of paths."""

    number: int
    reply: Callable[[PeerDetails | None], None]


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    interface: str | None
    port: int
    peers: tuple[PeerSnapshot, ...]
    relay_rtt: float | None  # s; None: the relay does not answer
    drops: Mapping[str, int]  # named reasons
    features: Mapping[str, bool]  # kernel features found: "tun_tso", "tun_uso", "udp_gso", "udp_gro", …
    relayed_bytes: int
    relay_waiting: int  # bytes that wait at this relay, with what it costs to hold them
    timestamp: int  # highest TAI64N given out, ns since the epoch: to be kept as the next `timestamp_floor`


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask for a snapshot; `reply` is called on the engine thread and must only hand over."""

    reply: Callable[[EngineSnapshot], None]


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """`path`: the way that the ping took; None: there is none to that peer now, and `rtt` is None as well."""

    path: PathSnapshot | None
    rtt: float | None  # s


PingReply = Callable[[PingAnswer], None]


@dataclass(frozen=True, slots=True)
class PingPeer:
    """Measure one round trip to a peer, on the way that its data goes; counts as data, so that a better way is looked
    for. `reply` is called on the engine thread and must only hand over; not at all if no answer comes."""

    number: int
    reply: PingReply


@dataclass(frozen=True, slots=True)
class StartTap:
    """Feed this tap. `started` is called on the engine thread once it is fed; it must only hand over."""

    tap: Tap
    started: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class StopTap:
    """Feed it no longer. `stopped` is called on the engine thread once nothing more is put; it must only hand over."""

    tap: Tap
    stopped: Callable[[], None] = lambda: None


Command = (
    SetPeer
    | RemovePeer
    | SetRelay
    | SetClient
    | RemoveClient
    | AddLink
    | RemoveLink
    | SendDatagrams
    | ExpectForeign
    | LinkChanged
    | SetReach
    | SetMapping
    | SendCue
    | Inspect
    | InspectPeer
    | PingPeer
    | StartTap
    | StopTap
)


@dataclass(frozen=True, slots=True)
class PathChanged:
    number: int
    path: PathSnapshot | None


@dataclass(frozen=True, slots=True)
class Observed:
    """The relay told us from which endpoint it sees us."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """How the home relay is reached now. `("@link", n)`: by link n; None: not at all. `suspect`: it does not answer, so
    another way should be looked for at once."""

    endpoint: Endpoint | None
    suspect: bool


@dataclass(frozen=True, slots=True)
class CueReceived:
    """A peer's call-me for way "tcp" came. `half_rtt`: half a round trip to it through the relay as we measured it, s;
    0: not known."""

    number: int
    call: CallMe
    half_rtt: float


@dataclass(frozen=True, slots=True)
class WantTcp:
    """Data flows to the peer, and UDP has brought no direct path: TCP is worth a try. Said again with growing
    pauses."""

    number: int
    half_rtt: float


@dataclass(frozen=True, slots=True)
class WantMapping:
    """A peer is called, and our NAT counts: which ports it gives next is to be told from the one that it gave last, and
    what is known of that is old. `SetMapping` is the answer."""


@dataclass(frozen=True, slots=True)
class PeerOffers:
    """A peer said where it may be reached."""

    number: int
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class LinkLost:
    """A link ended by itself, or its peer broke the protocol; the socket is closed. `reason` is a word."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Datagrams of another protocol came to the engine's UDP port, one after the other: QUIC or STUN, by
    `wire.demux.kind_of`. From anybody; so many a second at the most, the others are dropped and counted."""

    datagrams: tuple[bytes, ...]
    source: Endpoint


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    number: int


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine thread ended by an error: the daemon must end too."""

    error: BaseException


Event = (
    PathChanged
    | Observed
    | RelayChanged
    | CueReceived
    | WantTcp
    | WantMapping
    | PeerOffers
    | LinkLost
    | Foreign
    | HandshakeCompleted
    | EngineFailed
)
