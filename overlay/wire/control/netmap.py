"""The network map: signing, checking, and the deltas between two versions. Pure functions.

The server signs what it sends, so that a map can be kept on disk or come by way of another machine and still be
believed. The signature is Ed25519 (RFC 8032) of `MAP_CONTEXT + body`: the context keeps a signature of ours from
meaning anything elsewhere. `verify` returns maps that are right by construction: keys have their length, numbers are
unique, names are such, addresses and endpoints parse, records have their form. Nodes stand in ascending order of
number, records in that of name, type and value.

What is signed is packed (zlib, RFC 1950): the map is the largest part of what a server of many nodes sends, and to seal
and send it what takes it longest. It is unpacked after the signature is checked, within a bound.
A map of many nodes comes in parts, in order and with no other update between them; `Replica` puts them together.
"""

import zlib
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Final, TypeVar

import msgspec
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.control.hostnames import check_host_name, is_host_label
from overlay.wire.control.messages import MAP_CONTEXT, MapDelta, MapNode, MapRecord, NetworkMap, SignedMap
from overlay.wire.control.records import check_record
from overlay.wire.endpoint import parse_endpoint

SEED_SIZE: Final = 32  # of a signing key
KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
NODES_PER_PART: Final = 500
"""With 1.6 KB for the largest entry, a fifth of a control message (`overlay.wire.control.channel.MAX_MESSAGE`)."""
MAX_PARTS: Final = 64
MAX_BODY: Final = 4 * 1024 * 1024  # bytes of JSON in one message

_T = TypeVar("_T", NetworkMap, MapDelta, NetworkMap | MapDelta)

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(NetworkMap | MapDelta)


def map_key(seed: bytes) -> bytes:
    """The public half, 32 bytes (`Welcome.map_key`), of the signing key that is made from 32 random bytes."""
    return bytes(SigningKey(seed).verify_key)


def sign(body: NetworkMap | MapDelta, seed: bytes) -> SignedMap:
    """Sign a map or a delta. Raises `LocalProtocolError` if it breaks the rules that `verify` demands."""
    body = _ordered(body)
    try:
        _check(body)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"this map must not be signed: {error}") from error
    packed = zlib.compress(_encoder.encode(body))
    return SignedMap(body=packed, signature=SigningKey(seed).sign(MAP_CONTEXT + packed).signature)


def verify(signed: SignedMap, key: bytes) -> NetworkMap | MapDelta:
    """Check the signature with the public `key`, then the contents.

    Raises `RemoteProtocolError`: `bad_signature`, or `bad_map` for what is signed but not a right map.
    """
    # libsodium's binding must not be asked about lengths that it does not expect.
    if len(key) != KEY_SIZE or len(signed.signature) != SIGNATURE_SIZE:
        raise RemoteProtocolError("bad_signature", "wrong length")
    try:
        VerifyKey(key).verify(MAP_CONTEXT + signed.body, signed.signature)
    except CryptoError as error:
        raise RemoteProtocolError("bad_signature") from error
    try:
        body: NetworkMap | MapDelta = _decoder.decode(_unpack(signed.body))
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError("bad_map", str(error)) from error
    _check(body)
    return _ordered(body)


def _unpack(packed: bytes) -> bytes:
    """Raises `zlib.error`, also for what would be larger than `MAX_BODY`."""
    unpacking = zlib.decompressobj()
    unpacked = unpacking.decompress(packed, MAX_BODY)
    if not unpacking.eof or unpacking.unused_data:
        raise zlib.error("cut short, too large, or more than a map")
    return unpacked


class Replica:
    """One end's copy of the map, as the server's updates make it. Feed it what `verify` returns, in order."""

    def __init__(self, current: NetworkMap | None = None) -> None:
        self.current = current
        self._parts: list[NetworkMap] = []

    def take(self, update: NetworkMap | MapDelta) -> NetworkMap | None:
        """The map after `update`; None while parts of it are still to come: `current` stays what it was until then.

        Raises `RemoteProtocolError`: "wrong_base" as `apply` does, "bad_map" for a part out of place.
        """
        if isinstance(update, NetworkMap) and update.parts > 1:
            whole = self._take_part(update)
            if whole is None:
                return None
            update = whole
        elif self._parts:
            raise RemoteProtocolError("bad_map", "something else between the parts of a map")
        self.current = apply(self.current, update)
        return self.current

    def _take_part(self, part: NetworkMap) -> NetworkMap | None:
        if part.part != len(self._parts):
            raise RemoteProtocolError("bad_map", f"part {part.part} of a map instead of part {len(self._parts)}")
        if self._parts and _head(part) != _head(self._parts[0]):
            raise RemoteProtocolError("bad_map", "parts of different maps")
        self._parts.append(part)
        if len(self._parts) < part.parts:
            return None
        nodes = tuple(node for each in self._parts for node in each.nodes)
        records = self._parts[0].records
        self._parts.clear()
        _check_unique(nodes)
        return msgspec.structs.replace(part, nodes=nodes, records=records, part=0, parts=1)


def _head(part: NetworkMap) -> NetworkMap:
    return msgspec.structs.replace(part, nodes=(), records=(), part=0)


def split(whole: NetworkMap, nodes_per_part: int = NODES_PER_PART) -> list[NetworkMap]:
    """The map as it goes to a node: itself, or its parts in order, the records in the first."""
    nodes = _ordered(whole).nodes
    pieces = [nodes[start : start + nodes_per_part] for start in range(0, len(nodes), nodes_per_part)] or [()]
    return [
        msgspec.structs.replace(
            whole, nodes=piece, records=() if number else whole.records, part=number, parts=len(pieces)
        )
        for number, piece in enumerate(pieces)
    ]


def apply(current: NetworkMap | None, update: NetworkMap | MapDelta) -> NetworkMap:
    """The map after `update`. A whole map replaces whatever was there.

    Raises `RemoteProtocolError("wrong_base")` for a delta that does not start from `current`: the node then asks anew.
    """
    if isinstance(update, NetworkMap):
        if update.parts > 1:
            raise LocalProtocolError("a part of a map is none; `Replica` puts them together")
        return _ordered(update)
    if current is None:
        raise RemoteProtocolError("wrong_base", "a delta before any map")
    if update.network != current.network:
        raise RemoteProtocolError("wrong_base", "a delta of another network")
    if update.base != current.version:
        raise RemoteProtocolError("wrong_base", f"a delta from version {update.base} to a map of {current.version}")
    nodes = {node.number: node for node in current.nodes}
    for number in update.removed:
        if nodes.pop(number, None) is None:
            raise RemoteProtocolError("wrong_base", f"removes node {number}, which is not there")
    nodes.update((node.number, node) for node in update.changed)
    records = set(current.records)
    if not records.issuperset(update.records_removed) or not records.isdisjoint(update.records_added):
        raise RemoteProtocolError("wrong_base", "removes records that are not there, or adds some that are")
    records = records.difference(update.records_removed).union(update.records_added)
    return _ordered(
        msgspec.structs.replace(current, version=update.version, nodes=tuple(nodes.values()), records=tuple(records))
    )


def diff(old: NetworkMap, new: NetworkMap) -> MapDelta:
    """The delta with `apply(old, diff(old, new)) == new` (nodes and records of `new` in order).

    Raises `LocalProtocolError` where a delta cannot tell the difference (network, domain, ranges; a version that does
    not grow): the whole map is to be sent then.
    """
    if (old.network, old.domains, old.networks) != (new.network, new.domains, new.networks):
        raise LocalProtocolError("no delta between maps of different networks, domains or ranges")
    if new.version <= old.version:
        raise LocalProtocolError(f"no delta from version {old.version} to {new.version}")
    before = {node.number: node for node in old.nodes}
    after = {node.number: node for node in new.nodes}
    return MapDelta(
        network=new.network,
        base=old.version,
        version=new.version,
        changed=tuple(after[number] for number in sorted(after) if before.get(number) != after[number]),
        removed=tuple(sorted(before.keys() - after.keys())),
        records_added=_by_name(set(new.records) - set(old.records)),
        records_removed=_by_name(set(old.records) - set(new.records)),
    )


def _ordered(body: _T) -> _T:
    if isinstance(body, NetworkMap):
        nodes = tuple(sorted(body.nodes, key=lambda node: node.number))
        return msgspec.structs.replace(body, nodes=nodes, records=_by_name(body.records))
    return body


def _by_name(records: Iterable[MapRecord]) -> tuple[MapRecord, ...]:
    return tuple(sorted(records, key=_place))


def _place(record: MapRecord) -> tuple[str, str, str, int]:
    return (record.name, record.rtype, record.value, record.node)


def _check(body: NetworkMap | MapDelta) -> None:
    if isinstance(body, NetworkMap):
        if not 0 <= body.part < body.parts <= MAX_PARTS:
            raise RemoteProtocolError("bad_map", f"part {body.part} of {body.parts}")
        _check_nodes(body.nodes)
        _check_records(body.records)
        _check_parses("a domain", check_host_name, body.domains)
        _check_parses("a range", ip_network, body.networks)
        return
    if not 0 <= body.base < body.version:
        raise RemoteProtocolError("bad_map", f"a delta from version {body.base} to {body.version}")
    _check_nodes(body.changed)
    numbers = [*body.removed, *(node.number for node in body.changed)]
    if len(set(numbers)) != len(numbers):
        raise RemoteProtocolError("bad_map", "a delta that names a node twice")
    _check_records(body.records_added)
    _check_records(body.records_removed)


def _check_unique(nodes: tuple[MapNode, ...]) -> None:
    if len({node.number for node in nodes}) != len(nodes) or len({node.key for node in nodes}) != len(nodes):
        raise RemoteProtocolError("bad_map", "two nodes with one number or one key")


def _check_nodes(nodes: tuple[MapNode, ...]) -> None:
    _check_unique(nodes)
    for node in nodes:
        if not 0 < node.number < 2**32:
            raise RemoteProtocolError("bad_map", f"node number {node.number}")
        if not is_host_label(node.name):
            raise RemoteProtocolError("bad_map", f"node {node.number} is called '{node.name[:64]}'")
        if len(node.key) != KEY_SIZE:
            raise RemoteProtocolError("bad_map", f"node {node.number}: a key of {len(node.key)} bytes")
        _check_parses(f"node {node.number}", ip_address, node.addresses)
        _check_parses(f"node {node.number}", parse_endpoint, (*node.lan, *node.observed))


def _check_records(records: tuple[MapRecord, ...]) -> None:
    if len({_place(record)[:3] for record in records}) != len(records):
        raise RemoteProtocolError("bad_map", "two records that are the same")
    try:
        for record in records:
            check_record(record)
    except ValueError as error:
        raise RemoteProtocolError("bad_map", f"a record: {error}") from error


def _check_parses(where: str, parse: Callable[[str], object], texts: Iterable[str]) -> None:
    for text in texts:
        try:
            parse(text)
        except ValueError as error:
            raise RemoteProtocolError("bad_map", f"{where}: {error}") from error
