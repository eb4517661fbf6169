"""The messages between node and server, inside the Noise channel: JSON, tagged by `type`.

Both sides ignore fields and message types that they do not know, so that either may be newer. Bytes are base64 in JSON
(msgspec does it). Nothing received here is trusted beyond its type: the server checks every value against its registry
and policy, a node checks the signature of every network map.
"""

from typing import Literal

import msgspec

from overlay.wire.control.terms import Terms

CONTROL_VERSION = 1

TunnelCarrier = Literal["udp", "tcp", "tls", "ws", "wss"]
TunnelKind = Literal["single", "udp", "tcp", "tls", "ws", "wss"]
"""How users' connections travel to the node: by the overlay itself, or each by one that the node makes for it."""

ExposureProtocol = Literal["tcp", "udp", "http", "tls"]
"""What users speak: http by a host's name on the shared port or at a port of its own, tls by a host's name, the others
at a port."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Base of all messages; the tag is the class name in lower case."""


# node → server -------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """First message of a node on every control connection."""

    version: int = CONTROL_VERSION
    name: str  # wished for
    name_chosen: bool = False  # a person chose it: refuse when taken; else the server may add a suffix
    invite: bytes = b""  # secret of an invite, for a node that is not registered yet
    ciphers: tuple[str, ...] = ("chacha20-poly1305",)  # what this machine does fast, best first
    endpoints: tuple[str, ...] = ()
    map_version: int = 0
    map_mark: bytes = b""  # the `mark` of what made the map at hand, if it came by this server: deltas go on from there
    epoch: int = 0  # random, another one each time the daemon starts: it has lost its sessions then; 0: not told
    software: str = ""


class Endpoints(Message, frozen=True, kw_only=True, tag="endpoints"):
    """Where the node may be reached: `observed` as the relay sees it; `lan` its own interfaces' endpoints, which nodes
    leave out and tell their peers themselves."""

    lan: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()


class Expose(Message, frozen=True, kw_only=True, tag="expose"):
    """Ask for an exposure, or (with `id`) renew one of this node's. Answered by `Exposed` or `Failed`."""

    seq: int
    protocol: ExposureProtocol
    public: str = ""  # "9000", "203.0.113.1:9000", or "" for one that the server picks
    host: str = ""  # of http and tls, on the server's shared port: "docs.example.com/prefix"; "": the server picks
    target: str  # as the person typed it, for show: "tcp://127.0.0.1:8080"
    port: int  # where the node listens on its overlay address for the single tunnel
    tunnel: TunnelKind = "single"
    id: str = ""
    known_as: tuple[str, ...] = ()  # names that users know it by
    service: str = ""  # what it is, as "ssh" (RFC 6335 section 5.1)
    direct: bool = False  # the public port at the node's overlay address leads to it as well
    terms: Terms = Terms()


class Unexpose(Message, frozen=True, kw_only=True, tag="unexpose"):
    """Give an exposure back. Answered by `Done` or `Failed`."""

    seq: int
    id: str


class Health(Message, frozen=True, kw_only=True, tag="health"):
    """What the node has found when it looked whether the target of an exposure is well; told when it changes, and after
    each welcome."""

    id: str
    problem: str = ""  # why it is not, in words; "": it is


class Connect(Message, frozen=True, kw_only=True, tag="connect"):
    """Ask to be let in at a private exposure, for a while. Answered by `Connected` or `Failed`."""

    seq: int
    name: str
    token: str = ""  # a secret


class Watch(Message, frozen=True, kw_only=True, tag="watch"):
    """Have the requests of an exposure by http told (`Requests`) from now on, or no longer; as long as this connection
    lasts. Answered by `Done` or `Failed`."""

    seq: int
    id: str
    wanted: bool = True


class AddRecord(Message, frozen=True, kw_only=True, tag="addrecord"):
    """Put a record into the network's zone, as the person typed it. Answered by `Recorded` or `Failed`."""

    seq: int
    name: str
    rtype: str
    value: str


class RemoveRecord(Message, frozen=True, kw_only=True, tag="removerecord"):
    """Take this node's records of a name away. Answered by `Done` or `Failed`."""

    seq: int
    name: str
    rtype: str = ""  # all of them


class Ping(Message, frozen=True, kw_only=True, tag="ping"):
    """Either side; answered by `Pong` with the same `seq`."""

    seq: int


class Leave(Message, frozen=True, kw_only=True, tag="leave"):
    """The node goes away on purpose: it is offline at once."""


class Attach(Message, frozen=True, kw_only=True, tag="attach"):
    """First message on a data link, instead of `Hello`; answered by `Attached` or `Refused`.

    After the answer the stream carries the relay's frames, without Noise. Who the node is, the channel has proven.
    """

    version: int = CONTROL_VERSION


# server → node -------------------------------------------------------------------------------------------------------


class Exposure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    protocol: ExposureProtocol
    public: str  # "203.0.113.1:9000"; "docs.example.com/prefix"
    target: str
    port: int
    tunnel: TunnelKind = "single"
    url: str = ""  # of http: where a browser finds it
    known_as: tuple[str, ...] = ()  # this and the next two: as in `Expose`, those that the server takes
    service: str = ""
    direct: bool = False
    terms: Terms = Terms()  # as the server keeps them


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """Answer to `Hello`: who the node is in the network."""

    version: int = CONTROL_VERSION
    number: int
    name: str
    addresses: tuple[str, ...]  # overlay addresses, IPv4 first
    networks: tuple[str, ...]  # the network's ranges, IPv4 first
    domain: str
    more_domains: tuple[str, ...] = ()  # as in `NetworkMap`
    ticket: int  # u64, for the relay
    relays: tuple[str, ...]  # UDP endpoints of the home relay
    stun: tuple[str, ...] = ()  # more UDP endpoints that answer STUN; the relays do, and their TCP ports
    relay_number: int = 1
    map_key: bytes  # Ed25519, signs network maps
    heartbeat: float = 15.0  # s between the node's pings; three missed: the connection is dead
    exposures: tuple[Exposure, ...] = ()


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """The server does not let the node in, or lets it go; the connection ends. Fields as in `UserError`."""

    code: str
    message: str
    hint: str = ""
    final: bool = True  # False: worth trying again later


class Attached(Message, frozen=True, kw_only=True, tag="attached"):
    """Answer to `Attach`, and the last message on this connection."""


class SignedMap(Message, frozen=True, kw_only=True, tag="map"):
    """A `NetworkMap` or `MapDelta` in `body`, as JSON packed by zlib; signed by Ed25519: `MAP_CONTEXT + body`."""

    body: bytes
    signature: bytes

    @property
    def mark(self) -> bytes:
        """16 bytes that no other map or delta has: a version alone may come twice, after a crash."""
        return self.signature[:16]


class Exposed(Message, frozen=True, kw_only=True, tag="exposed"):
    seq: int
    exposure: Exposure


class MapRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record that somebody put into the zone, in the form that `overlay.wire.control.records` has for them."""

    name: str
    rtype: str  # "A", "AAAA", "CNAME", "TXT", "SRV"
    value: str
    node: int  # whose it is


class Recorded(Message, frozen=True, kw_only=True, tag="recorded"):
    seq: int
    record: MapRecord


class Exposures(Message, frozen=True, kw_only=True, tag="exposures"):
    """All exposures of this node as the server now has them (one was removed by an administrator, say)."""

    exposures: tuple[Exposure, ...]


class Withdrawn(Message, frozen=True, kw_only=True, tag="withdrawn"):
    """The server has ended an exposure of this node."""

    id: str
    why: str  # the rest of a sentence: "its time is over"


class RequestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a user by http, as the log has it."""

    number: int  # counts up within one exposure, while the server runs
    at: float  # Unix time, s
    method: str
    path: str  # with the query, cut
    status: int
    took_ms: float
    sent: int  # bytes of the answer's body
    source: str  # the user's address


class Supply(Message, frozen=True, kw_only=True, tag="supply"):
    """Connect so many times by this carrier and show a token each: users will need them."""

    carrier: TunnelCarrier
    tokens: tuple[bytes, ...]  # 16 bytes each; secrets, which count once
    pin: bytes = b""  # of the certificate that is shown there: SHA-256 of its public key


class Requests(Message, frozen=True, kw_only=True, tag="requests"):
    """What users have asked for since the last message; where there were too many, numbers are missing."""

    id: str
    entries: tuple[RequestEntry, ...]


MemberState = Literal["up", "resting", "unwell", "silent", "offline"]
"""Users are led to it; or why not: it has failed one just now, its node says that the target is not well, its node does
not answer, or is not connected."""


class GroupMember(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the exposures that share a place."""

    node: str  # its name
    state: MemberState
    problem: str = ""  # of the target


class Members(Message, frozen=True, kw_only=True, tag="members"):
    """How it is with the group that an exposure of this node is in; told when it changes."""

    id: str
    members: tuple[GroupMember, ...]


class Connected(Message, frozen=True, kw_only=True, tag="connected"):
    seq: int
    node: str  # its name
    address: str  # overlay address
    port: int
    datagrams: bool = False  # it is UDP's port
    seconds: float  # for how long new connections are let in


class Admit(Message, frozen=True, kw_only=True, tag="admit"):
    """Let a peer in at a private exposure of this node; what has begun goes on after that time, but ends at 0."""

    id: str
    address: str  # the peer's overlay address
    seconds: float  # from now; 0: no longer


class Done(Message, frozen=True, kw_only=True, tag="done"):
    seq: int


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """Answer to a request; fields as in `UserError`."""

    seq: int
    code: str
    message: str
    hint: str = ""
    exit_code: int = 1


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    seq: int


NodeMessage = (
    Hello
    | Endpoints
    | Expose
    | Unexpose
    | Health
    | Connect
    | Watch
    | AddRecord
    | RemoveRecord
    | Ping
    | Pong
    | Leave
    | Attach
)
ServerMessage = (
    Welcome
    | Refused
    | SignedMap
    | Exposed
    | Exposures
    | Withdrawn
    | Supply
    | Requests
    | Members
    | Connected
    | Admit
    | Recorded
    | Done
    | Failed
    | Ping
    | Pong
    | Attached
)


# the network map -----------------------------------------------------------------------------------------------------

MAP_CONTEXT = b"overlay network map v1\0"


class MapNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What every node must know of one node. There are thousands, and none holds itself in a circle: Python's collector
    need not look at them."""

    number: int
    name: str
    key: bytes  # X25519 public, 32 bytes: the identity
    addresses: tuple[str, ...]
    ciphers: tuple[str, ...] = ("chacha20-poly1305",)
    lan: tuple[str, ...] = ()  # endpoints
    observed: tuple[str, ...] = ()
    online: bool = False
    epoch: int = 0  # as in `Hello`
    tags: tuple[str, ...] = ()


class NetworkMap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="full"):
    network: str  # random identity of the network, hex
    version: int
    domain: str
    networks: tuple[str, ...]
    nodes: tuple[MapNode, ...]
    more_domains: tuple[str, ...] = ()  # each node has its name in these as well
    records: tuple[MapRecord, ...] = ()
    part: int = 0  # of a map that is too large for one message: the nodes of the one map stand in `parts` of them
    parts: int = 1

    @property
    def domains(self) -> tuple[str, ...]:
        """The first one is that of reverse names."""
        return (self.domain, *self.more_domains)


class MapDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="delta"):
    """Turns the map of version `base` into that of `version`. A node that has another version asks anew."""

    network: str
    base: int
    version: int
    changed: tuple[MapNode, ...] = ()
    removed: tuple[int, ...] = ()
    records_added: tuple[MapRecord, ...] = ()
    records_removed: tuple[MapRecord, ...] = ()
