"""The registry's tables and the records that come out of them. Knows no query and no policy.

The tables are what `migrations/` makes; a test holds the two together. Times are Unix seconds by the wall clock.
"""

from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from overlay.wire.control.terms import Terms

REVISION = "0007"
"""The newest migration: a registry at this revision needs none."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

network_table = Table(
    "network",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("identity", Text, nullable=False),  # hex
    Column("server_key", LargeBinary, nullable=False),  # X25519 public: which keys this registry belongs to
    Column("domain", Text, nullable=False),  # all of them, by spaces
    Column("ipv4", Text, nullable=False),  # the ranges, CIDR
    Column("ipv6", Text, nullable=False),
    Column("next_number", Integer, nullable=False),  # node numbers are never used twice
    Column("last_host", Integer, nullable=False),  # where the last allocation was: released addresses rest longest
    Column("map_version", Integer, nullable=False),  # no map above it was ever sent
    CheckConstraint("id = 1", name="single"),
)

node_table = Table(
    "node",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
    Column("name", Text, nullable=False),
    Column("wished", Text, nullable=False),  # the name that a person last asked for on the node; "" if none
    Column("host", Integer, nullable=False),  # the address's place in both ranges
    Column("ticket", LargeBinary, nullable=False),  # 8 bytes, big-endian; SQL has no u64
    Column("ciphers", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("lan", JSON, nullable=False),
    Column("observed", JSON, nullable=False),
    Column("created", Double, nullable=False),
    Column("last_seen", Double, nullable=True),
    UniqueConstraint("key"),
    UniqueConstraint("name"),
    UniqueConstraint("host"),
)

invite_table = Table(
    "invite",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("uses", Integer, nullable=False),  # as made
    Column("left", Integer, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    UniqueConstraint("secret_hash"),
)

exposure_table = Table(
    "exposure",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("node", Integer, ForeignKey("node.number", ondelete="CASCADE"), nullable=False),
    Column("protocol", Text, nullable=False),
    Column("host", Text, nullable=False),  # public address, "" is every one of the server; a web host's or private name
    Column("public_port", Integer, nullable=False),  # 0: reached by the host's name on the shared port, or private
    Column("path", Text, nullable=False),  # prefix below that name, "/docs/"; "" at a port
    Column("target", Text, nullable=False),  # for show
    Column("port", Integer, nullable=False),  # on the node's overlay address, for the single tunnel
    Column("tunnel", Text, nullable=False),
    Column("terms", JSON, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("protocol", "host", "public_port", "path", "node", "target"),  # members of a group share a place
    sqlite_autoincrement=True,  # the id of an exposure that was given back never means another one
)

token_table = Table(
    "proxy_token",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("digest", LargeBinary, nullable=False),
    Column("nodes", JSON, nullable=False),  # numbers of those that are reached with it; []: all
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    UniqueConstraint("digest"),
    sqlite_autoincrement=True,
)

usage_table = Table(
    "usage",
    metadata,
    Column("node", Integer, ForeignKey("node.number", ondelete="CASCADE"), nullable=False),
    Column("exposure", Integer, nullable=False),  # 0: all of the node, also what was given back
    Column("month", Text, nullable=False),  # "2026-11", UTC
    Column("bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("node", "exposure"),
)

record_table = Table(
    "record",
    metadata,
    Column("name", Text, nullable=False),
    Column("rtype", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("node", Integer, ForeignKey("node.number", ondelete="CASCADE"), nullable=False),
    Column("created", Double, nullable=False),
    PrimaryKeyConstraint("name", "rtype", "value"),
)

version_table = Table(
    "alembic_version",
    MetaData(),  # alembic's own table, as alembic makes it: not one of the schema's
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Ticket = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    identity: str
    server_key: Key
    domain: str
    ipv4: str
    ipv6: str
    next_number: int
    last_host: int
    map_version: int

    @property
    def domains(self) -> tuple[str, ...]:
        """The first one is that of reverse names."""
        return tuple(self.domain.split(" "))


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered node. `repr` leaves the ticket out."""

    number: int
    key: Key
    name: str
    wished: str
    host: int
    ticket: Ticket
    ciphers: tuple[str, ...]
    tags: tuple[str, ...]
    lan: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    created: float
    last_seen: float | None = None

    def __repr__(self) -> str:
        return f"NodeRecord(number={self.number}, name={self.name!r})"


class InviteRecord(msgspec.Struct, frozen=True, kw_only=True):
    secret_hash: bytes
    uses: int
    left: int
    tags: tuple[str, ...]
    created: float
    expires: float


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A token for HTTP CONNECT."""

    id: int
    digest: bytes
    nodes: tuple[int, ...]
    created: float
    expires: float

    @property
    def name(self) -> str:
        """The id as people see it."""
        return f"t{self.id}"


class ExposureRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    node: int
    protocol: str
    host: str
    public_port: int
    path: str = ""
    target: str
    port: int
    tunnel: str = "single"
    terms: Terms = Terms()
    created: float

    @property
    def name(self) -> str:
        """The id as people see it."""
        return f"x{self.id}"

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Where users reach it: the same one for all members of a group, and for nobody else."""
        return (self.protocol, self.host, self.public_port, self.path)

    @property
    def private(self) -> str:
        """The name by which peers alone reach it; "": it is public."""
        return self.terms.private.name

    @property
    def transport(self) -> Literal["tcp", "udp"]:
        """What kind of port it has."""
        return "udp" if self.protocol == "udp" else "tcp"


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    node: int
    exposure: int
    month: str
    bytes: int


class DnsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record that somebody put into the network's zone: fields as in `MapRecord`."""

    name: str
    rtype: str
    value: str
    node: int
    created: float


def exposure_id(name: str) -> int | None:
    """The inverse of `ExposureRecord.name`; None if `name` is not one."""
    digits = name[1:]
    if not name.startswith("x") or not (digits.isascii() and digits.isdigit()) or len(digits) > 15:
        return None
    return int(digits)


def record_values(record: msgspec.Struct) -> dict[str, Any]:
    """A record as column values: JSON columns take lists, and structs as objects."""
    return {name: _column_value(value) for name, value in msgspec.structs.asdict(record).items()}


def _column_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
