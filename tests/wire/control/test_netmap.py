"""Network maps: what is believed, and how one version becomes the next."""

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.control import netmap
from overlay.wire.control.messages import MAP_CONTEXT, MapDelta, MapNode, MapRecord, NetworkMap, SignedMap

from .strategies import maps

SEED = bytes(range(32))
KEY = netmap.map_key(SEED)


def node(number: int, **changes: object) -> MapNode:
    plain = MapNode(number=number, name=f"n{number}", key=bytes([number] * 32), addresses=(f"10.77.0.{number}",))
    return msgspec.structs.replace(plain, **changes)


def network_map(version: int, *nodes: MapNode, **changes: object) -> NetworkMap:
    plain = NetworkMap(network="6f76", version=version, domain="local.test", networks=("10.77.0.0/16",), nodes=nodes)
    return msgspec.structs.replace(plain, **changes)


def sorted_map(whole: NetworkMap) -> NetworkMap:
    return msgspec.structs.replace(
        whole,
        nodes=tuple(sorted(whole.nodes, key=lambda node: node.number)),
        records=tuple(sorted(whole.records, key=lambda record: (record.name, record.rtype, record.value))),
    )


def record(name: str, rtype: str = "TXT", value: str = "x", owner: int = 2) -> MapRecord:
    return MapRecord(name=name, rtype=rtype, value=value, node=owner)


def signed_as_is(body: bytes) -> SignedMap:
    """What only the holder of the key can make, and `sign` never would. Of JSON, packed."""
    return packed_as_is(zlib.compress(body))


def packed_as_is(body: bytes) -> SignedMap:
    return SignedMap(body=body, signature=SigningKey(SEED).sign(MAP_CONTEXT + body).signature)


@given(maps(7))
def test_a_signed_map_is_believed_and_comes_back_in_order(whole: NetworkMap) -> None:
    assert netmap.verify(netmap.sign(whole, SEED), KEY) == sorted_map(whole)


@given(maps(3), maps(5))
def test_diff_then_apply_is_the_identity(old: NetworkMap, new: NetworkMap) -> None:
    delta = netmap.verify(netmap.sign(netmap.diff(old, new), SEED), KEY)
    assert netmap.apply(old, delta) == sorted_map(new)


@given(maps(3))
def test_a_delta_of_nothing_changes_the_version_alone(whole: NetworkMap) -> None:
    delta = netmap.diff(whole, msgspec.structs.replace(whole, version=4))
    assert (delta.changed, delta.removed) == ((), ())


@given(maps(3), st.data())
def test_a_changed_bit_is_refused(whole: NetworkMap, data: st.DataObject) -> None:
    signed = netmap.sign(whole, SEED)
    field = data.draw(st.sampled_from(("body", "signature")))
    value = bytearray(getattr(signed, field))
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError) as caught:
        netmap.verify(msgspec.structs.replace(signed, **{field: bytes(value)}), KEY)
    assert caught.value.reason == "bad_signature"


def test_another_key_or_a_wrong_length_is_refused() -> None:
    signed = netmap.sign(network_map(1), SEED)
    wrong = [
        (signed, netmap.map_key(bytes(32))),
        (signed, KEY[:-1]),
        (signed, b""),
        (msgspec.structs.replace(signed, signature=signed.signature[:-1]), KEY),
        (msgspec.structs.replace(signed, signature=b""), KEY),
    ]
    for what, key in wrong:
        with pytest.raises(RemoteProtocolError, match="bad_signature"):
            netmap.verify(what, key)


def test_a_signature_without_the_context_means_nothing() -> None:
    body = msgspec.json.encode(network_map(1))
    bare = SignedMap(body=body, signature=SigningKey(SEED).sign(body).signature)
    with pytest.raises(RemoteProtocolError, match="bad_signature"):
        netmap.verify(bare, KEY)


WRONG_MAPS = [
    network_map(1, node(1), node(1)),
    network_map(1, node(1), node(2, key=bytes([1] * 32))),
    network_map(1, node(0)),
    network_map(1, msgspec.structs.replace(node(1), number=2**32)),
    network_map(1, node(1, key=b"short")),
    network_map(1, node(1, addresses=("10.77.0.1/16",))),
    network_map(1, node(1, lan=("10.0.0.1",))),
    network_map(1, node(1, observed=("example.org:80",))),
    network_map(1, networks=("10.77.0.0/33",)),
    network_map(1, records=(record("a"), record("a", owner=3))),
    network_map(1, records=(record("a.local.test", "A", "10.0.0.300"),)),
    network_map(1, records=(record("A.local.test"),)),
    MapDelta(network="6f76", base=1, version=2, records_added=(record("a..b"),)),
    MapDelta(network="6f76", base=1, version=2, records_removed=(record("-"),)),
    network_map(1, part=1, parts=1),
    network_map(1, part=-1, parts=2),
    network_map(1, parts=netmap.MAX_PARTS + 1),
    MapDelta(network="6f76", base=2, version=2),
    MapDelta(network="6f76", base=-1, version=2),
    MapDelta(network="6f76", base=1, version=2, removed=(3, 3)),
    MapDelta(network="6f76", base=1, version=2, removed=(3,), changed=(node(3),)),
]


@pytest.mark.parametrize("wrong", WRONG_MAPS)
def test_a_wrong_map_is_neither_signed_nor_believed(wrong: NetworkMap | MapDelta) -> None:
    with pytest.raises(LocalProtocolError):
        netmap.sign(wrong, SEED)
    with pytest.raises(RemoteProtocolError) as caught:
        netmap.verify(signed_as_is(msgspec.json.encode(wrong)), KEY)
    assert caught.value.reason == "bad_map"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        msgspec.json.encode(network_map(1)),  # not packed
        zlib.compress(msgspec.json.encode(network_map(1)))[:-1],
        zlib.compress(msgspec.json.encode(network_map(1))) + b"x",
        zlib.compress(bytes(netmap.MAX_BODY + 1)),
    ],
)
def test_what_is_signed_and_does_not_unpack_is_refused(packed: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        netmap.verify(packed_as_is(packed), KEY)
    assert caught.value.reason == "bad_map"


@given(maps(3), st.integers(1, 3))
def test_a_map_in_parts_is_the_same_map(whole: NetworkMap, nodes_per_part: int) -> None:
    replica = netmap.Replica(network_map(2, node(200)))
    parts = netmap.split(whole, nodes_per_part)
    for part in parts[:-1]:
        assert replica.take(netmap.verify(netmap.sign(part, SEED), KEY)) is None
        assert replica.current == network_map(2, node(200))  # until it is whole
    assert replica.take(netmap.verify(netmap.sign(parts[-1], SEED), KEY)) == sorted_map(whole) == replica.current


def test_parts_out_of_place_are_refused() -> None:
    first, second, third = netmap.split(network_map(3, *(node(number) for number in range(1, 7))), 2)
    twice = msgspec.structs.replace(second, nodes=first.nodes)
    others: list[list[NetworkMap | MapDelta]] = [
        [second],
        [first, third],
        [first, first],
        [first, msgspec.structs.replace(second, version=4)],
        [first, msgspec.structs.replace(second, network="other")],
        [first, msgspec.structs.replace(second, parts=4)],
        [first, network_map(4)],
        [first, MapDelta(network="6f76", base=2, version=3)],
        [first, twice, third],
    ]
    for updates in others:
        replica = netmap.Replica(network_map(2))
        with pytest.raises(RemoteProtocolError) as caught:
            for update in updates:
                replica.take(update)
        assert caught.value.reason == "bad_map"
        assert replica.current == network_map(2)
    with pytest.raises(LocalProtocolError):
        netmap.apply(None, first)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"kind":"other"}', b'{"kind":"full"}', b"[" * 100_000])
def test_signed_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        netmap.verify(signed_as_is(body), KEY)
    assert caught.value.reason == "bad_map"


def test_a_field_of_a_newer_server_is_ignored() -> None:
    body = msgspec.json.encode(network_map(1, node(1))).replace(b'"version"', b'"newer":{"a":[1]},"version"', 1)
    assert netmap.verify(signed_as_is(body), KEY) == network_map(1, node(1))


@pytest.mark.parametrize(
    "delta",
    [
        MapDelta(network="6f76", base=4, version=6),
        MapDelta(network="6f76", base=6, version=7),
        MapDelta(network="other", base=5, version=6),
        MapDelta(network="6f76", base=5, version=6, removed=(9,)),
    ],
)
def test_a_delta_on_a_wrong_base_is_refused(delta: MapDelta) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        netmap.apply(network_map(5, node(1)), delta)
    assert caught.value.reason == "wrong_base"


def test_a_delta_before_any_map_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="wrong_base"):
        netmap.apply(None, MapDelta(network="6f76", base=0, version=1))


def test_a_whole_map_replaces_any_other() -> None:
    newer, restored = network_map(50, node(1)), network_map(3, node(2), node(1), network="another")
    assert netmap.apply(None, newer) == newer
    assert netmap.apply(newer, restored) == sorted_map(restored)


@pytest.mark.parametrize(
    "new", [network_map(5), network_map(4), network_map(6, domain="other.test"), network_map(6, networks=())]
)
def test_where_a_delta_cannot_tell_the_difference_there_is_none(new: NetworkMap) -> None:
    with pytest.raises(LocalProtocolError):
        netmap.diff(network_map(5), new)


def test_records_of_types_to_come_are_let_through() -> None:
    whole = network_map(1, records=(record("a.local.test", "HTTPS", "1 . alpn=h2"),))
    assert netmap.verify(netmap.sign(whole, SEED), KEY) == whole


def test_records_that_do_not_fit_the_base_are_refused() -> None:
    base = network_map(1, records=(record("a"),))
    delta = MapDelta(network="6f76", base=1, version=2)
    for wrong in (
        msgspec.structs.replace(delta, records_removed=(record("b"),)),
        msgspec.structs.replace(delta, records_added=(record("a"),)),
    ):
        with pytest.raises(RemoteProtocolError, match="wrong_base"):
            netmap.apply(base, wrong)
