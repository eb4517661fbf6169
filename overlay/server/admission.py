"""Who may be in the network, and as whom: a node's first message against the registry.

Nothing in a `Hello` is trusted beyond the key, which the channel proved.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network
from typing import Final, get_args

import msgspec

from overlay.engine.api import Cipher
from overlay.errors import Exit, UserError
from overlay.server.allocation import next_host
from overlay.server.invites import check_invite, secret_hash
from overlay.server.names import check_name, derive_name
from overlay.server.schema import InviteRecord, NetworkRecord, NodeRecord
from overlay.server.transaction import Transaction
from overlay.wire.control.messages import Hello

MAX_NODES: Final = 10_000
"""With all its endpoints an entry of the map takes 1.6 KB on the way to a node: 16 MB, as much as may wait for one node
(`overlay.carrier.limits.Limits.outbox`)."""
CIPHERS: tuple[str, ...] = get_args(Cipher)
DEFAULT_CIPHER = "chacha20-poly1305"  # every node has it
_TICKET_SIZE = 8  # bytes, u64
_LONGEST_NAME = 253  # characters; a longer one is not even looked at


async def admit(
    transaction: Transaction,
    arrivals: Sequence[tuple[bytes, Hello]],
    nodes: Iterable[NodeRecord],
    *,
    wall: float,
    random_bytes: Callable[[int], bytes],
) -> list[NodeRecord | UserError]:
    """For each arrival, in order, its record, up to date and written; one that is new is registered if its invite is
    good. Or why it is not let in (exit 4): "not-registered", "invite-…", "name-invalid", "name-taken", "network-full".

    `nodes` are all that the registry has; no key may arrive twice. However many arrive, the registry is asked and told
    only once.
    """
    network = await transaction.network()
    assert network is not None  # made before the first node, the server itself
    hashes = {secret_hash(hello.invite) for _, hello in arrivals if hello.invite}
    book = _Book(network, nodes, await transaction.invites(hashes))
    outcomes: list[NodeRecord | UserError] = []
    for key, hello in arrivals:
        try:
            outcomes.append(book.admit(key, hello, wall, random_bytes))
        except UserError as error:
            outcomes.append(error)
    await book.write(transaction)
    return outcomes


async def add_node(
    transaction: Transaction,
    key: bytes,
    *,
    name: str,
    name_chosen: bool,
    ciphers: tuple[str, ...],
    tags: tuple[str, ...],
    wall: float,
    random_bytes: Callable[[int], bytes],
) -> NodeRecord:
    """Register a node without an invite, under the next number. Raises `UserError` (exit 4): "name-…",
    "network-full"."""
    network = await transaction.network()
    assert network is not None  # made before the first node, the server itself
    book = _Book(network, await transaction.nodes(), {})
    hello = Hello(name=name, name_chosen=name_chosen, ciphers=ciphers)
    record = book.add(key, hello, tags, wall, random_bytes)
    await book.write(transaction)
    return record


def renewed(record: NodeRecord, hello: Hello, wall: float) -> NodeRecord | None:
    """The record of a node that came back; None if it wishes for another name, which is to be asked for.

    Only a new wish counts: an administrator may have renamed the node since the old one.
    """
    if hello.name_chosen and _wish(hello) != record.wished:
        return None
    return msgspec.structs.replace(record, ciphers=known_ciphers(hello.ciphers), last_seen=wall)


class _Book:
    """What is taken and given while several nodes are admitted, before any of it is written."""

    def __init__(self, network: NetworkRecord, nodes: Iterable[NodeRecord], invites: dict[bytes, InviteRecord]) -> None:
        self._network = network
        self._range = IPv4Network(network.ipv4)
        self._invites = invites
        self._used: Counter[bytes] = Counter()
        self._by_key = {node.key: node for node in nodes}
        self._names = {node.name for node in self._by_key.values()}
        self._hosts = {node.host for node in self._by_key.values()}
        self._added: dict[int, NodeRecord] = {}
        self._changed: dict[int, NodeRecord] = {}

    def admit(self, key: bytes, hello: Hello, wall: float, random_bytes: Callable[[int], bytes]) -> NodeRecord:
        """Raises `UserError`, and has changed nothing then."""
        record = self._by_key.get(key)
        if record is None:
            return self._register(key, hello, wall, random_bytes)
        changed = renewed(record, hello, wall)
        if changed is None:
            name = check_name(hello.name[:_LONGEST_NAME], self._names - {record.name})
            self._names.discard(record.name)
            changed = msgspec.structs.replace(
                record, ciphers=known_ciphers(hello.ciphers), last_seen=wall, name=name, wished=_wish(hello)
            )
        self._changed[record.number] = changed
        self._keep(changed)
        return changed

    def add(
        self, key: bytes, hello: Hello, tags: tuple[str, ...], wall: float, random_bytes: Callable[[int], bytes]
    ) -> NodeRecord:
        """Raises `UserError`, and has changed nothing then."""
        if len(self._by_key) >= MAX_NODES:
            raise UserError(
                "network-full",
                f"The network has {MAX_NODES} nodes, and that is the most.",
                "Remove nodes that are gone with 'overlay node rm NAME' on the server.",
                Exit.REFUSED,
            )
        host = next_host(self._range, self._hosts, self._network.last_host)
        wished = hello.name[:_LONGEST_NAME]
        record = NodeRecord(
            number=self._network.next_number,
            key=key,
            name=check_name(wished, self._names) if hello.name_chosen else derive_name(wished, self._names),
            wished=_wish(hello) if hello.name_chosen else "",
            host=host,
            ticket=random_bytes(_TICKET_SIZE),
            ciphers=known_ciphers(hello.ciphers),
            tags=tags,
            created=wall,
            last_seen=wall,
        )
        self._network = msgspec.structs.replace(self._network, next_number=record.number + 1, last_host=host)
        self._added[record.number] = record
        self._keep(record)
        return record

    async def write(self, transaction: Transaction) -> None:
        # In the order of arrival: a name may have been given up by one and taken by the next.
        await transaction.set_nodes(self._changed.values())
        await transaction.add_nodes(list(self._added.values()))
        for hash_, times in self._used.items():
            await transaction.use_invite(hash_, times)
        if self._added:
            network = self._network
            await transaction.set_network(next_number=network.next_number, last_host=network.last_host)

    def _register(self, key: bytes, hello: Hello, wall: float, random_bytes: Callable[[int], bytes]) -> NodeRecord:
        if not hello.invite:
            raise UserError(
                "not-registered",
                "The server does not know this node (any more).",
                "Ask for an invite and join with 'overlay up INVITE'.",
                Exit.REFUSED,
            )
        # The invite first: who has none learns nothing about names.
        hash_ = secret_hash(hello.invite)
        invite = check_invite(self._invites.get(hash_), self._used[hash_], wall)
        record = self.add(key, hello, invite.tags, wall, random_bytes)
        self._used[hash_] += 1
        return record

    def _keep(self, record: NodeRecord) -> None:
        self._by_key[record.key] = record
        self._names.add(record.name)
        self._hosts.add(record.host)


def _wish(hello: Hello) -> str:
    return hello.name[:_LONGEST_NAME].lower()


def known_ciphers(offered: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a node's ciphers that this release knows, in its order; every node has the default one."""
    known = tuple(dict.fromkeys(cipher for cipher in offered if cipher in CIPHERS))
    return known or (DEFAULT_CIPHER,)
