"""What a node is told of the map: whatever it has, in the end it has the one that there is."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from overlay.server import maps
from overlay.server.maps import MapHistory
from overlay.wire.control.codec import decode_server_message
from overlay.wire.control.messages import MapDelta, MapNode, NetworkMap, SignedMap
from overlay.wire.control.netmap import NODES_PER_PART, Replica, diff, map_key, sign, verify

SEED = b"s" * 32


def node(number: int, epoch: int = 0) -> MapNode:
    key = number.to_bytes(32, "big")
    return MapNode(number=number, name=f"n{number}", key=key, addresses=(f"10.77.0.{number % 250}",), epoch=epoch)


def network_map(version: int, *nodes: MapNode) -> NetworkMap:
    return NetworkMap(network="ab", version=version, domain="local.test", networks=("10.77.0.0/16",), nodes=nodes)


class Server:
    """A history, and how often something was signed for it."""

    def __init__(self, count: int) -> None:
        self.signed = 0
        self.history = MapHistory(self.sign, network_map(5, *(node(number) for number in range(1, count + 1))))

    def sign(self, body: NetworkMap | MapDelta) -> SignedMap:
        self.signed += 1
        return sign(body, SEED)

    def change(self, number: int, epoch: int) -> bytes:
        old = self.history.current
        nodes = {each.number: each for each in old.nodes} | {number: node(number, epoch)}
        new = msgspec.structs.replace(old, version=old.version + 1, nodes=tuple(nodes.values()))
        return self.history.advance(diff(old, new), new)


class Node:
    def __init__(self) -> None:
        self.replica = Replica()
        self.mark = b""
        self.kinds: list[str] = []

    def ask(self, server: Server) -> None:
        self.hear(*server.history.since(self.mark))

    def hear(self, *messages: bytes) -> None:
        for message in messages:
            signed = decode_server_message(message)
            assert isinstance(signed, SignedMap)
            update = verify(signed, map_key(SEED))
            self.replica.take(update)
            self.mark = signed.mark
            self.kinds.append("part" if isinstance(update, NetworkMap) else "delta")


def test_a_large_map_comes_in_parts_made_once_and_later_with_the_deltas_since() -> None:
    server = Server(2 * NODES_PER_PART + 1)
    first, second = Node(), Node()
    first.ask(server)
    assert first.kinds == ["part"] * 3 and server.signed == 3
    first.hear(server.change(7, 1))
    second.ask(server)
    assert second.kinds == ["part"] * 3 + ["delta"] and server.signed == 4
    assert first.replica.current == second.replica.current == server.history.current


def test_who_has_the_map_is_told_nothing_and_who_was_away_what_it_missed() -> None:
    server = Server(3)
    away, there = Node(), Node()
    away.ask(server)
    there.ask(server)
    for epoch in range(1, 4):
        there.hear(server.change(2, epoch))
    assert server.history.since(there.mark) == []
    away.ask(server)
    assert away.kinds == ["part", "delta", "delta", "delta"]
    assert away.replica.current == there.replica.current == server.history.current


def test_a_mark_of_another_life_of_the_server_counts_for_nothing() -> None:
    before, after = Server(3), Server(4)  # the same version of the map, after a crash with a full disk
    one = Node()
    one.ask(before)
    assert before.history.current.version == after.history.current.version
    after.change(1, 9)
    one.ask(after)
    assert one.kinds == ["part", "part"]
    assert one.replica.current == after.history.current


def test_what_is_kept_is_bounded() -> None:
    server = Server(1)
    early, late = Node(), Node()
    early.ask(server)
    for epoch in range(1, 500):
        server.change(1, epoch)
    size = sum(map(len, server.history.since(b"")))
    assert size < maps.KEPT_LEAST
    early.ask(server)
    late.ask(server)
    assert early.kinds == ["part", "part"] and late.kinds == ["part"]
    assert early.replica.current == late.replica.current == server.history.current


@given(
    st.lists(st.one_of(st.tuples(st.just("change"), st.integers(1, 4)), st.tuples(st.just("ask"), st.integers(0, 2)))),
    st.sampled_from([1, 700, 10_000]),
)
def test_whoever_asks_has_the_map_then(steps: list[tuple[str, int]], kept: int) -> None:
    server = Server(3)
    server.history.kept_least = kept
    nodes = [Node() for _ in range(3)]
    for at, (what, which) in enumerate(steps):
        if what == "change":
            server.change(which, at)
        else:
            nodes[which].ask(server)
            assert nodes[which].replica.current == server.history.current
