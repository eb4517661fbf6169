"""Records that people put into the network's zone: who may put what where, kept in the registry, told in the map.

A name belongs to the node that used it first; names of nodes and all below them belong to those nodes. The server's own
node may take any record away.
"""

from collections.abc import Callable, Mapping, Sequence

import anyio

from overlay.engine.api import SERVER_NUMBER
from overlay.errors import Exit, UserError
from overlay.server.registry import Registry
from overlay.server.schema import DnsRecord
from overlay.wire.control.hostnames import ascii_name
from overlay.wire.control.messages import MapRecord
from overlay.wire.control.records import (
    MAX_RECORDS,
    RECORD_TYPES,
    canonical_value,
    check_owner,
    domain_of,
    is_shadowed,
)

MAX_PER_NODE = 64
LONGEST_CHAIN = 8
"""Aliases in a row: as many as resolvers follow."""
_LONGEST_INPUT = 1024  # characters; a longer text is not even looked at


class Records:
    """All records of the network. Requests are served one after another."""

    def __init__(
        self,
        registry: Registry,
        domains: Sequence[str],
        nodes: Callable[[], Mapping[str, int]],
        on_change: Callable[[], None],
        wall: Callable[[], float],
    ) -> None:
        """`domains`: of the network; what has none is meant in the first. `nodes`: names of nodes to numbers, as they
        are now. `on_change`: `all` is different. `wall`: Unix time, s."""
        self._registry = registry
        self._domains = tuple(domains)
        self._nodes = nodes
        self._on_change = on_change
        self._wall = wall
        self._records: list[DnsRecord] = []
        self._lock = anyio.Lock()

    async def start(self) -> None:
        """Take what the registry holds."""
        async with self._registry.transaction() as transaction:
            self._records = await transaction.records()

    def all(self) -> tuple[MapRecord, ...]:
        return tuple(_map_record(record) for record in self._records)

    async def add(self, node: int, name: str, rtype: str, value: str) -> MapRecord:
        """Put a record into the zone; one that is there already stays. → as it is written

        Raises `UserError`: "record-invalid", "record-name-taken", "record-conflict", "record-loop",
        "too-many-records", and what the registry raises.
        """
        rtype = _checked_type(rtype)
        owner = self._owner(name, rtype)
        record = DnsRecord(name=owner, rtype=rtype, value=self._value(rtype, value), node=node, created=self._wall())
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if _map_record(record) not in self.all():
                    self._check_place(record)
                    self._check_count(node)
                    async with self._registry.transaction() as transaction:
                        await transaction.add_record(record)
                    self._records.append(record)
                    self._tell()
        return _map_record(record)

    async def remove(self, node: int, name: str, rtype: str) -> None:
        """Take away what `node` has at a name, of one type or ("") of all; the server's node what anybody has.

        Raises `UserError`: "record-invalid", "record-unknown", "record-not-yours".
        """
        rtype = _checked_type(rtype) if rtype else ""
        owner = self._owner(name, rtype or "TXT")
        with anyio.CancelScope(shield=True):
            async with self._lock:
                there = [each for each in self._records if each.name == owner and rtype in ("", each.rtype)]
                if not there:
                    what = f"{rtype} record" if rtype else "record"
                    raise UserError(
                        "record-unknown",
                        f"Nobody has put a {what} at {owner}.",
                        "See 'overlay dns ls' for those that there are.",
                    )
                gone = [each for each in there if node in (each.node, SERVER_NUMBER)]
                if not gone:
                    raise UserError(
                        "record-not-yours",
                        f"The records of {owner} are those of node '{self._name_of(there[0].node)}'.",
                        "Remove them there, or on the server's host.",
                        Exit.REFUSED,
                    )
                async with self._registry.transaction() as transaction:
                    for each in gone:
                        await transaction.remove_record(each)
                self._records = [each for each in self._records if each not in gone]
                self._tell()

    async def forget_node(self, node: int) -> None:
        """The node was removed, and its records with it."""
        async with self._lock:
            self._records = [each for each in self._records if each.node != node]
            self._tell()

    def _tell(self) -> None:
        self._on_change()

    def _name_of(self, number: int) -> str:
        return next((name for name, each in self._nodes().items() if each == number), f"number {number}")

    # what is typed ---------------------------------------------------------------------------------------------------

    def _owner(self, text: str, rtype: str) -> str:
        """Any name that does not end in the domain is meant within it, but for one with a dot at its end."""
        try:
            name, absolute = ascii_name(text)
            if domain_of(name, self._domains) is None:
                if absolute:
                    raise ValueError(f"the name is not in the domain {' or '.join(self._domains)}")
                name = f"{name}.{self._domains[0]}"
            check_owner(name, rtype)
        except ValueError as error:
            raise _invalid("name", text, error) from error
        return name

    def _value(self, rtype: str, text: str) -> str:
        try:
            if len(text) > _LONGEST_INPUT:
                raise ValueError("it is too long")
            if rtype == "CNAME":
                text = self._target(text)
            elif rtype == "SRV" and len(words := text.split()) == 4:
                text = " ".join((*words[:3], self._target(words[3])))
            return canonical_value(rtype, text)
        except ValueError as error:
            raise _invalid(f"value of {rtype}", text, error) from error

    def _target(self, text: str) -> str:
        """A name of one label is meant in the domain, any other one is whole."""
        name, absolute = ascii_name(text)
        return name if absolute or "." in name else f"{name}.{self._domains[0]}"

    # where it may be -------------------------------------------------------------------------------------------------

    def _check_place(self, record: DnsRecord) -> None:
        if is_shadowed(_map_record(record), self._domains, self._nodes()):
            raise UserError(
                "record-name-taken",
                f"{record.name} is a node's name, or below one.",
                "Choose a name that is no node's; below its own name a node may have any, beside its name TXT and SRV.",
                Exit.REFUSED,
            )
        there = [each for each in self._records if each.name == record.name]
        for each in there:
            if each.node != record.node:
                raise UserError(
                    "record-name-taken",
                    f"{record.name} is in use by node '{self._name_of(each.node)}'.",
                    "Choose another name, or remove that one there or on the server's host.",
                    Exit.REFUSED,
                )
        others = record.rtype == "CNAME" and (there or record.name in self._domains)
        if others or any(each.rtype == "CNAME" for each in there):
            raise UserError(
                "record-conflict",
                f"A CNAME stands alone (RFC 1034 section 3.6.2), and {record.name} would have more.",
                f"Remove what is there first: overlay dns rm {record.name}",
            )
        if record.rtype == "CNAME":
            self._check_chain(record)

    def _check_chain(self, record: DnsRecord) -> None:
        aliases = {each.name: each.value for each in (*self._records, record) if each.rtype == "CNAME"}
        name: str | None = record.name
        for _ in range(LONGEST_CHAIN + 1):
            name = _alias_of(name or "", aliases)
            if name is None:
                return
        raise UserError(
            "record-loop",
            f"The aliases from {record.name} on would go in a circle, or are more than {LONGEST_CHAIN}.",
            "Point it at a name that has an address.",
        )

    def _check_count(self, node: int) -> None:
        own = sum(1 for each in self._records if each.node == node)
        if own >= MAX_PER_NODE or len(self._records) >= MAX_RECORDS:
            raise UserError(
                "too-many-records",
                f"A node may have {MAX_PER_NODE} records, and the network {MAX_RECORDS}.",
                "Remove some with 'overlay dns rm NAME'.",
                Exit.REFUSED,
            )


def _alias_of(name: str, aliases: Mapping[str, str]) -> str | None:
    """Where a name leads, by itself or by a wildcard above it."""
    while name not in aliases:
        parent = name.removeprefix("*.").partition(".")[2]
        if not parent:
            return None
        name = f"*.{parent}"
    return aliases[name]


def _map_record(record: DnsRecord) -> MapRecord:
    return MapRecord(name=record.name, rtype=record.rtype, value=record.value, node=record.node)


def _checked_type(rtype: str) -> str:
    if rtype.upper() not in RECORD_TYPES:
        raise UserError(
            "record-invalid",
            f"'{rtype[:20]}' is no type of record that can be put into the zone.",
            f"There are {', '.join(RECORD_TYPES)}.",
            Exit.USAGE,
        )
    return rtype.upper()


def _invalid(what: str, text: str, error: ValueError) -> UserError:
    return UserError(
        "record-invalid",
        f"'{text[:100]}' cannot be the {what} of a record: {str(error).rstrip('.')}.",
        "See the examples of 'overlay dns add --help'.",
        Exit.USAGE,
    )
