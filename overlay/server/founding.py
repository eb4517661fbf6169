"""The first start makes the network and its first node, the server itself; later starts find them and check them."""

import secrets
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, IPv6Network

import msgspec

from overlay.daemon.state import corrupt
from overlay.engine.api import SERVER_NUMBER
from overlay.errors import UserError
from overlay.node.interface import Machine
from overlay.server.admission import add_node
from overlay.server.allocation import SERVER_HOST
from overlay.server.keys import ServerKeys
from overlay.server.names import check_domains, check_name
from overlay.server.ranges import check_range, choose_ipv4, choose_ula
from overlay.server.registry import Registry
from overlay.server.schema import NetworkRecord, NodeRecord
from overlay.server.settings import ServerSettings
from overlay.server.transaction import Transaction
from overlay.wire.endpoint import parse_endpoint

DEFAULT_DOMAIN = "local.test"
DEFAULT_NAME = "server"
_IDENTITY_SIZE = 16  # bytes


async def found(
    registry: Registry,
    settings: ServerSettings,
    keys: ServerKeys,
    *,
    ciphers: tuple[str, ...],
    machine: Callable[[], Awaitable[Machine]],
    wall: float,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    randbelow: Callable[[int], int] = secrets.randbelow,
) -> tuple[NetworkRecord, list[NodeRecord]]:
    """The network and its nodes, the server among them.

    Raises `UserError`: "range-invalid", "range-overlaps", "range-settled", "domain-invalid", "name-invalid",
    "name-taken", "state-corrupt" (registry and keys belong to different servers), and what the registry raises.
    """
    async with registry.transaction() as transaction:
        record = await transaction.network()
        if record is not None:
            if record.server_key != keys.public_key:
                raise corrupt(registry.path, "it belongs to a server with another key than the one beside it")
            await _update(transaction, record, settings, keys, ciphers)
    if record is None:
        taken = await machine()  # outside of a transaction: those hold no waiting
        ipv4 = check_range(settings.range, taken) if settings.range else choose_ipv4(taken, randbelow)
        async with registry.transaction() as transaction:
            await transaction.add_network(
                NetworkRecord(
                    identity=random_bytes(_IDENTITY_SIZE).hex(),
                    server_key=keys.public_key,
                    domain=" ".join(check_domains(settings.domains or (DEFAULT_DOMAIN,))),
                    ipv4=str(ipv4),
                    ipv6=str(choose_ula(random_bytes)),
                    next_number=SERVER_NUMBER,
                    last_host=SERVER_HOST - 1,
                    map_version=0,
                )
            )
            await add_node(
                transaction,
                keys.public_key,
                name=settings.name or DEFAULT_NAME,
                name_chosen=True,
                ciphers=ciphers,
                tags=(),
                wall=wall,
                random_bytes=random_bytes,
            )
    async with registry.transaction() as transaction:
        record = await transaction.network()
        nodes = await transaction.nodes()
    if record is None or not nodes or nodes[0].number != SERVER_NUMBER or nodes[0].key != keys.public_key:
        raise corrupt(registry.path, "the server's own entry is missing")
    _check(registry, record, nodes)
    return record, nodes


def _check(registry: Registry, record: NetworkRecord, nodes: list[NodeRecord]) -> None:
    """What every network map is made of must be right: a map that nodes refuse would stop the network."""
    try:
        ipv4, _ = IPv4Network(record.ipv4), IPv6Network(record.ipv6)
        for node in nodes:
            if not 0 < node.host < ipv4.num_addresses - 1:
                raise ValueError(f"node '{node.name}' has an address outside {ipv4}")
            for endpoint in (*node.lan, *node.observed):
                parse_endpoint(endpoint)
    except ValueError as error:
        raise corrupt(registry.path, str(error)) from error


async def _update(
    transaction: Transaction,
    record: NetworkRecord,
    settings: ServerSettings,
    keys: ServerKeys,
    ciphers: tuple[str, ...],
) -> None:
    """Take over what this start says differently from the earlier ones."""
    if settings.range and settings.range != record.ipv4:
        raise UserError(
            "range-settled",
            f"The network's range is {record.ipv4} since its first start and cannot become {settings.range}.",
            "Leave --range out, or make a new network with another --state folder.",
        )
    if settings.domains:
        await transaction.set_network(domain=" ".join(check_domains(settings.domains)))
    server = await transaction.node_with_key(keys.public_key)
    if server is None:
        return  # the caller says so
    changed = msgspec.structs.replace(server, ciphers=ciphers)
    if settings.name and settings.name.lower() != server.wished:
        name = check_name(settings.name, await transaction.names() - {server.name})
        changed = msgspec.structs.replace(changed, name=name, wished=settings.name.lower())
    await transaction.set_nodes([changed])
