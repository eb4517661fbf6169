"""Who may be in the network, and as whom: a node's first message against the registry.

Nothing in a `Hello` is trusted beyond the key, which the channel proved.
"""

from collections.abc import Callable
from ipaddress import IPv4Network
from typing import get_args

import msgspec

from overlay.engine.api import Cipher
from overlay.errors import Exit, UserError
from overlay.server.allocation import next_host
from overlay.server.invites import redeem_invite
from overlay.server.names import check_name, derive_name
from overlay.server.schema import NodeRecord
from overlay.server.transaction import Transaction
from overlay.wire.control.messages import Hello

MAX_NODES = 2000
"""A whole map travels as one control message of at most 4 MiB, and an entry with all its endpoints, in base64, takes
1.6 KB of it."""
CIPHERS: tuple[str, ...] = get_args(Cipher)
DEFAULT_CIPHER = "chacha20-poly1305"  # every node has it
_TICKET_SIZE = 8  # bytes, u64
_LONGEST_NAME = 253  # characters; a longer one is not even looked at


async def admit(
    transaction: Transaction, key: bytes, hello: Hello, *, wall: float, random_bytes: Callable[[int], bytes]
) -> NodeRecord:
    """The node's record, up to date; a node that the registry does not know is registered if its invite is good.

    Raises `UserError` (exit 4): "not-registered", "invite-…", "name-invalid", "name-taken", "network-full".
    """
    record = await transaction.node_with_key(key)
    if record is None:
        return await _register(transaction, key, hello, wall, random_bytes)
    changed = msgspec.structs.replace(record, ciphers=known_ciphers(hello.ciphers), last_seen=wall)
    wished = hello.name[:_LONGEST_NAME].lower()
    # Only a new wish counts: an administrator may have renamed the node since the old one.
    if hello.name_chosen and wished != record.wished:
        name = check_name(hello.name[:_LONGEST_NAME], await transaction.names() - {record.name})
        changed = msgspec.structs.replace(changed, name=name, wished=wished)
    await transaction.set_node(changed)
    return changed


async def _register(
    transaction: Transaction, key: bytes, hello: Hello, wall: float, random_bytes: Callable[[int], bytes]
) -> NodeRecord:
    if not hello.invite:
        raise UserError(
            "not-registered",
            "The server does not know this node (any more).",
            "Ask for an invite and join with 'overlay up INVITE'.",
            Exit.REFUSED,
        )
    # The invite first: who has none learns nothing about names.
    invite = await redeem_invite(transaction, hello.invite, wall)
    return await add_node(
        transaction,
        key,
        name=hello.name,
        name_chosen=hello.name_chosen,
        ciphers=known_ciphers(hello.ciphers),
        tags=invite.tags,
        wall=wall,
        random_bytes=random_bytes,
    )


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
    """Register a node under the next number. Raises `UserError` (exit 4): "name-…", "network-full"."""
    network = await transaction.network()
    assert network is not None  # made before the first node, the server itself
    hosts = await transaction.hosts()
    if len(hosts) >= MAX_NODES:
        raise UserError(
            "network-full",
            f"The network has {MAX_NODES} nodes, and that is the most.",
            "Remove nodes that are gone with 'overlay node rm NAME' on the server.",
            Exit.REFUSED,
        )
    names = await transaction.names()
    wish = name[:_LONGEST_NAME]
    host = next_host(IPv4Network(network.ipv4), hosts, network.last_host)
    record = NodeRecord(
        number=network.next_number,
        key=key,
        name=check_name(wish, names) if name_chosen else derive_name(wish, names),
        wished=wish.lower() if name_chosen else "",
        host=host,
        ticket=random_bytes(_TICKET_SIZE),
        ciphers=ciphers,
        tags=tags,
        created=wall,
        last_seen=wall,
    )
    await transaction.add_node(record)
    await transaction.set_network(next_number=record.number + 1, last_host=host)
    return record


def known_ciphers(offered: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a node's ciphers that this release knows, in its order; every node has the default one."""
    known = tuple(dict.fromkeys(cipher for cipher in offered if cipher in CIPHERS))
    return known or (DEFAULT_CIPHER,)
