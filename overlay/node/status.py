"""The documents of the local API, as the command line contract has them. Only shapes: others fill them in."""

from typing import Literal

import msgspec

from overlay.daemon.peers import PathStatus
from overlay.node.own_tls import NO_TLS_OPTIONS, Source, TlsOptions
from overlay.node.targets import NO_OPTIONS, TargetOptions
from overlay.path.nat import Dependence
from overlay.wire.control.messages import GroupMember, TunnelKind
from overlay.wire.control.terms import Terms

State = Literal["starting", "connected", "offline", "stopped"]


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    addresses: tuple[str, ...]
    online: bool
    path: PathStatus | None
    rtt_ms: float | None
    last_handshake_s: float | None  # s ago
    rx_bytes: int  # inner bytes
    tx_bytes: int


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    carrier: str
    rtt_ms: float | None
    carrier_why: str = ""  # why this one, and none that is wished for more: "udp: no answer"
    data_carrier: str | None = None  # of relayed packets; None: the relay is not reached


class NatStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The NAT before this machine, in the words of RFC 4787; None: not known."""

    summary: str  # a sentence
    endpoints: tuple[str, ...]  # where the engine's port is seen from outside
    translated: bool | None  # False: there is none
    mapping: Dependence | None
    filtering: Dependence | None
    hairpinning: bool | None
    port_preserved: bool | None
    port_delta: int | None
    lifetime_s: float | None  # a mapping that is not used is kept at least so long


class PortMappingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the router before this machine was asked for, and gave."""

    protocol: Literal["nat-pmp", "pcp", "upnp"] | None  # None: no mapping
    gateway: str | None  # whom to ask
    external: str | None  # endpoint outside that leads to the engine's port, as the router has it
    why: str  # why there is none, or why peers are not told of it; "": they are


class ExposeWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks to have exposed: at a port, or by http under a name; neither: the server picks."""

    target: str
    public: str = ""  # "9000", "203.0.113.1:9000", "9000-9010"
    host: str = ""  # "docs.example.com/prefix"
    tunnel: TunnelKind | Literal["auto"] = "auto"  # auto: single where both ends have a TUN, else tls
    known_as: tuple[str, ...] = ()  # names that users know a port by
    service: str = ""  # what it is; "": what the target's port says
    options: TargetOptions = NO_OPTIONS
    tls: TlsOptions = NO_TLS_OPTIONS
    terms: Terms = Terms()
    inspect: int = 0  # of http: keep the last requests, and so many bytes of each body; 0: no


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a person wrote in a file of exposures: the table `[exposures.NAME]` of `file`."""

    file: str  # absolute
    name: str


class ExposureStatus(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    public: str
    url: str | None  # of http: where a browser finds it
    target: str
    tunnel: TunnelKind
    connections: int  # open now: TCP connections, or UDP flows
    known_as: tuple[str, ...] = ()  # names that users know it by
    service: str = ""  # what it is, as the zone has it
    direct: bool = False  # peers who ask for one of `known_as` come straight here
    range: str = ""  # the id of the whole range of ports that it is one of
    trouble: str = ""  # why the target was not reached the last time; "": it was
    certificate: Source | None = None  # of TLS that ends here: whom it is from now
    terms: Terms = Terms()
    problem: str | None = None  # why the target is not well, by --health
    members: tuple[GroupMember, ...] = ()  # of its group, as the server has told last
    entry: Entry | None = None  # which asked for it; None: a command did
    inspect: int = 0  # bytes of a body that the inspector keeps; 0: it does not look


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    name: str
    addresses: tuple[str, ...]
    domain: str
    domains: tuple[str, ...]  # all that this node has a name in
    interface: str | None
    server: ServerStatus
    peers: tuple[PeerStatus, ...]
    exposures: tuple[ExposureStatus, ...]
    port: int | None  # the engine's UDP port
    nat: NatStatus | None = None  # None: it is not looked for
    port_mapping: PortMappingStatus | None = None  # None: it is switched off, or UDP is
    warnings: tuple[str, ...]  # sentences: what does not work, though the network does
    drops: dict[str, int]  # by reason
    features: dict[str, bool]  # of the kernel
    version: str


class NamesStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The resolver on this machine, and what the system was told of it."""

    endpoint: str | None  # where it answers; None: it does not
    zones: tuple[str, ...]  # domains that it is authoritative for
    upstreams: tuple[str, ...]  # who is asked for other names: DOMAINS=SERVER where it is for these alone
    chosen: tuple[str, ...] = ()  # those of them that a person chose; the others are the system's
    way: str  # how the system was told: "resolved", "resolvconf", "file", "none"
    reason: str  # why so
    done: str  # what the system was told, a sentence
    reapplied: int  # times that others had changed it since
    warning: str
    drops: dict[str, int]  # by reason


class NameAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the resolver answers to a question, and where it has that from."""

    name: str
    type: str
    rcode: str
    answers: tuple[str, ...]  # records as zone files have them
    source: Literal["zone", "exposure", "cache", "forwarded"]  # "exposure": its public name leads to its node
    zone: str | None  # the domain that answered, if the source is a zone
    upstreams: tuple[str, ...]  # who is asked, in this order, if not
    took_ms: float
