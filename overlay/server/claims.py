"""What a node may have of what the server's public side has: ports and names, asked for or picked. Who came first holds
it, until it is given back.
"""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.server.callers import Tell
from overlay.server.ingress import PublicPort, bind_public
from overlay.server.policy import EVERYTHING, Rights
from overlay.server.schema import ExposureRecord
from overlay.server.web.hosts import parse_host, tls_port
from overlay.wire.control.hostnames import shown_name
from overlay.wire.control.messages import Expose, Message
from overlay.wire.control.terms import shared
from overlay.wire.endpoint import format_endpoint, parse_endpoint

MOST_MEMBERS: Final = 64  # of a group
PICKED_PORTS: Final = range(20000, 30000)
"""Below the kernel's own (net.ipv4.ip_local_port_range), above the known services."""
_PICK_TRIES: Final = 64
_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_PICKED_LETTERS: Final = 6  # of a host that nobody asked for: 30 bits, so that it is not guessed at once
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


async def _nobody(_node: int, _message: Message) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What exposures must know of the rest of the server."""

    public_hosts: tuple[str, ...]  # as users know the server, best first
    own_ports: frozenset[tuple[str, int]]  # (protocol, port) of the server itself
    address_of: Callable[[int], str | None]  # a node's overlay address; None while it is offline
    name_of: Callable[[int], str]
    wall: Callable[[], float]  # Unix time, s
    randbelow: Callable[[int], int]
    tunnel: bool = True  # whether the server has a TUN of its own to carry users
    tell: Tell = _nobody  # to a node
    pin: Callable[[], bytes] = bytes  # of the server's certificate now
    random_bytes: Callable[[int], bytes] = os.urandom
    web_ports: tuple[int, ...] = ()  # the shared ones, for URLs
    web_domain: str = ""  # below which hosts are picked; "": none are
    domains: tuple[str, ...] = ()  # the network's
    tags_of: Callable[[int], tuple[str, ...]] = lambda number: ()  # of a node
    rights: Callable[[int], Rights] = lambda number: EVERYTHING  # of a node
    direct: bool = True  # whether peers may be led past the server
    on_names: Callable[[], None] = lambda: None  # what is said of some exposure has changed
    is_near: Callable[[int, str], bool] = lambda number, source: False
    """Whether an address is of the network, or the one that this node itself comes from."""
    leads_here: Callable[[str], Awaitable[bool]] | None = None
    """Whether a name of the public DNS leads to this server. None: no exposure has names."""


class Claims:
    """`records`: the leases there are, by number; theirs who grants them."""

    def __init__(self, around: Surroundings, records: Mapping[int, ExposureRecord], drops: Counter[str]) -> None:
        self._around = around
        self._records = records
        self._drops = drops

    def wanted(self, node: int, request: Expose) -> ExposureRecord:
        """What a node asks for; its port may still have to be picked. Raises `UserError`: "host-invalid",
        "public-invalid", "group-ambiguous", "group-terms", "group-twice", "group-full"."""
        wanted = self._wanted(node, request)
        if not request.terms.group.name:
            return wanted
        return self._joined(wanted, placed=bool(request.public or request.host))

    def mates(self, wanted: ExposureRecord) -> list[ExposureRecord]:
        """The others of its group, the first first."""
        return [each for each in self._records.values() if each.id != wanted.id and are_mates(each, wanted)]

    def _joined(self, wanted: ExposureRecord, *, placed: bool) -> ExposureRecord:
        """At the place that its group has already, if there is one. Raises `UserError`."""
        name = wanted.terms.group.name
        if not placed:
            places = {
                each.place: each
                for each in self._records.values()
                if each.terms.group.name == name and each.protocol == wanted.protocol
            }
            if len(places) > 1:
                raise UserError(
                    "group-ambiguous",
                    f"There are several groups '{name}'.",
                    "Say which one by --host or --public, as in: "
                    + ", ".join(self.public(each) for each in list(places.values())[:3]),
                )
            for each in places.values():
                wanted = msgspec.structs.replace(wanted, host=each.host, public_port=each.public_port, path=each.path)
        mates = self.mates(wanted)
        if not mates:
            return wanted
        opener = self._around.name_of(mates[0].node)
        if shared(wanted.terms) != shared(mates[0].terms):
            raise UserError(
                "group-terms",
                f"The group '{name}' at {self.public(wanted)} was opened by node '{opener}' with other options.",
                "Give the same ones, as --balance, on all its nodes; --health, --expires and what targets are told are "
                "each node's own.",
            )
        self._check_twice(wanted, mates)
        if len(mates) >= MOST_MEMBERS:
            raise UserError("group-full", f"A group has {MOST_MEMBERS} members at the most.", exit_code=Exit.REFUSED)
        return wanted

    def _wanted(self, node: int, request: Expose) -> ExposureRecord:
        private = request.terms.private.name
        tls = request.protocol == "tls"
        by_name = (
            request.protocol in ("http", "tls")
            and not request.public
            and (request.host or (self._around.web_domain and not request.known_as))
        )
        if private:
            host, port, path = private, 0, ""
        elif by_name:
            host, path = parse_host(request.host) if request.host else (self._pick_host(node), "/")
            port = 0
            if tls and path != "/":
                raise UserError(
                    "host-invalid",
                    "Who comes by TLS shows a name and no path.",
                    f"Expose it with --host {shown_name(host)}.",
                    Exit.USAGE,
                )
        elif tls:
            raise UserError(
                "host-invalid",
                "Users who come by TLS are told apart by the name that they ask for, and there is none.",
                "Name it with --host db.example.com, or expose tcp://… at a port of its own.",
                Exit.USAGE,
            )
        else:
            (host, port), path = parse_public(request.public, self._around.public_hosts), ""
        return ExposureRecord(
            id=0,
            node=node,
            protocol=request.protocol,
            host=host,
            public_port=port,
            path=path,
            target=request.target,
            port=request.port,
            tunnel=request.tunnel,
            terms=request.terms,
            created=self._around.wall(),
        )

    def check(self, wanted: ExposureRecord, names: Iterable[str] = ()) -> None:
        """Whether the node may have it, and have it known by these `names`. Raises `UserError` ("policy-forbids")."""
        rights, node = self._around.rights(wanted.node), self._around.name_of(wanted.node)
        rights.check_protocol(node, wanted.protocol)
        if wanted.path:
            rights.check_host(node, wanted.host)
        elif wanted.public_port:
            rights.check_port(node, wanted.public_port)
        for name in names:
            rights.check_host(node, name)

    def too_many(self, node: int, most: int) -> UserError | None:
        """Why a node that has `most` exposures or more gets no other; None: it does."""
        rights = self._around.rights(node)
        by_policy = rights.exposures is not None
        limit = rights.exposures if rights.exposures is not None else most
        if len([record for record in self._records.values() if record.node == node]) < limit:
            return None
        name = self._around.name_of(node)
        return UserError(
            "too-many-exposures",
            f"The server's policy lets node '{name}' hold {limit} exposures at once."
            if by_policy
            else f"A node may hold {limit} exposures at once.",
            "Give some back with 'overlay expose rm ID'.",
            Exit.REFUSED,
        )

    def _pick_host(self, node: int) -> str:
        held = {record.host for record in self._records.values()}
        name = self._around.name_of(node)
        while True:
            letters = "".join(_LETTERS[self._around.randbelow(len(_LETTERS))] for _ in range(_PICKED_LETTERS))
            host = f"{name}-{letters}.{self._around.web_domain}"
            if host not in held:
                return host

    def check_renewed(self, held: ExposureRecord, renewed: ExposureRecord) -> None:
        """Raises `UserError` ("group-fixed", "private-fixed", "group-twice") for what a lease cannot become."""
        if renewed.terms.group.name != held.terms.group.name:
            raise UserError(
                "group-fixed",
                f"Exposure {held.name} cannot change its group.",
                "Give it back with 'overlay expose rm', and expose the target anew.",
            )
        if renewed.private != held.private:
            raise UserError(
                "private-fixed",
                f"Exposure {held.name} cannot change its private name.",
                "Give it back with 'overlay expose rm', and expose the target anew.",
            )
        self._check_twice(renewed, self.mates(renewed))

    def _check_twice(self, wanted: ExposureRecord, mates: Iterable[ExposureRecord]) -> None:
        if any((each.node, each.target) == (wanted.node, wanted.target) for each in mates):
            raise UserError(
                "group-twice",
                f"This node is in the group '{wanted.terms.group.name}' with the target {wanted.target} already.",
                "See 'overlay expose ls'.",
            )

    def check_place(self, wanted: ExposureRecord) -> None:
        """Raises `UserError` ("host-taken") if somebody else has its name; a port's says so when it is opened."""
        if wanted.path:
            self._check_host(wanted)

    def _check_host(self, wanted: ExposureRecord) -> None:
        host = shown_name(wanted.host)
        if wanted.host in self._around.public_hosts:
            raise UserError("host-taken", f"{host} is the server's own name.", "Choose another host.")
        for record in self._records.values():
            if are_mates(record, wanted):
                continue
            tls = [each.protocol == "tls" for each in (record, wanted)]
            if not record.path or record.host != wanted.host or not (any(tls) or record.path == wanted.path):
                continue
            holder = f"node '{self._around.name_of(record.node)}' (exposure {record.name})"
            if all(tls) or not any(tls):
                sentence = f"{host + wanted.path.rstrip('/')} is held by {holder}."
            elif tls[0]:
                sentence = f"All that comes for {host} by TLS, https too, goes to {holder}."
            else:
                sentence = f"{host} is exposed by http, and with it its https: it is held by {holder}."
            raise UserError(
                "host-taken",
                sentence,
                f"Choose another host{'' if any(tls) else ' or path'}, or have that exposure given back: "
                "'overlay expose rm' on that node.",
            )

    def open_any(self, wanted: ExposureRecord) -> tuple[ExposureRecord, PublicPort]:
        held = {record.public_port for record in self._records.values() if record.transport == wanted.transport}
        rights = self._around.rights(wanted.node)
        allowed = [port for port in PICKED_PORTS if rights.allows_port(port)]
        if not allowed and rights.ports:  # better one that the kernel may pick, too, than none
            allowed = [port for each in rights.ports for port in each if port >= 1024]
        free = [port for port in allowed if port not in held]
        for _ in range(min(_PICK_TRIES, len(free))):
            port = free.pop(self._around.randbelow(len(free)))
            record = msgspec.structs.replace(wanted, public_port=port)
            try:
                return record, self.open(record)
            except UserError as error:
                if error.code != "port-taken":
                    raise
        raise UserError(
            "no-free-port",
            f"The server found no free public port from {PICKED_PORTS.start} to {PICKED_PORTS.stop - 1}.",
            "Name one with --public, or give exposures back.",
        )

    def open(self, wanted: ExposureRecord) -> PublicPort:
        protocol = wanted.transport
        where = f"{protocol} port {wanted.public_port}"
        for record in self._records.values():
            if record.id != wanted.id and _collide(record, wanted) and not are_mates(record, wanted):
                holder = self._around.name_of(record.node)
                raise UserError(
                    "port-taken",
                    f"The public {where} is held by node '{holder}' (exposure {record.name}).",
                    "Choose another port, or have that exposure given back: 'overlay expose rm' on that node.",
                )
        if (protocol, wanted.public_port) in self._around.own_ports:
            raise UserError(
                "port-taken", f"The public {where} is the server's own, which nodes connect to.", "Choose another port."
            )
        return PublicPort(protocol, bind_public(protocol, wanted.host, wanted.public_port), self._drops)

    def public(self, record: ExposureRecord) -> str:
        """Where users reach it: "203.0.113.1:9000", or "docs.example.com/prefix", or "db.example.com:443" by TLS."""
        if record.private:
            return f"private: {record.private}"
        if record.protocol == "tls":
            return format_endpoint((record.host, tls_port(self._around.web_ports)))
        if record.path:
            return record.host + record.path.rstrip("/")
        host = record.host or (self._around.public_hosts[0] if self._around.public_hosts else "0.0.0.0")
        return format_endpoint((host, record.public_port))


def check_tls_end(request: Expose) -> None:
    """Raises `UserError` ("terms-invalid", exit 2): where TLS ends is set for what has TLS alone."""
    ends = {"http": ("", "server"), "tls": ("", "target", "server", "node")}.get(request.protocol, ("",))
    if request.terms.tls_end not in ends or (request.public and request.terms.tls_end):
        raise UserError(
            "terms-invalid",
            f"Of {request.protocol} at a port of its own the server ends no TLS."
            if request.public or len(ends) == 1
            else "Users who come by http have their TLS ended by the server or by the node.",
            "Leave out --tls-end, or expose tls://HOST:PORT --host NAME.",
            Exit.USAGE,
        )


def parse_public(text: str, public_hosts: Iterable[str]) -> tuple[str, int]:
    """What a node wrote as the public side → address to bind ("" for all) and port (0 to have one picked).

    One of the server's public addresses stands for all: behind a NAT the host does not have it itself. Raises
    `UserError` ("public-invalid").
    """
    if not text:
        return "", 0
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return "", int(text)
    host, _, port = text.rpartition(":")
    if host.lower().removesuffix(".") in public_hosts:
        return parse_public(port or "-", ())
    try:
        address, number = parse_endpoint(text[:100])
    except ValueError as error:
        raise UserError("public-invalid", f"{error}.", "Write a port, as in 9000.", Exit.USAGE) from error
    return ("" if address in _WILDCARDS or address in public_hosts else address), number


def are_mates(one: ExposureRecord, other: ExposureRecord) -> bool:
    """Whether they are in one group, and so at one place."""
    name = one.terms.group.name
    return bool(name) and name == other.terms.group.name and one.place == other.place


def _collide(one: ExposureRecord, other: ExposureRecord) -> bool:
    return (
        one.transport == other.transport
        and not one.path
        and not other.path
        and one.public_port == other.public_port
        and (one.host == other.host or not one.host or not other.host)
    )
