"""write ∘ read = identity, whatever the path between them does."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.record.frames import MAX_RECORD
from tests.wire.record.batches import batches, datagrams, reader, receive, writer

ciphers = st.sampled_from(["aes-256-gcm", "chacha20-poly1305"])
prefixes = st.sampled_from([b"", b"relay header 16B"])
sizes = st.integers(0, 6000) | st.integers(0, MAX_RECORD) | st.sampled_from([0, 1, MAX_RECORD])
datagram_sizes = st.integers(320, 1500) | st.sampled_from([1444, 9000, 65000])


def plaintext(size: int, seed: int) -> bytes:
    return (bytes([seed & 0xFF]) + bytes(range(256)) * 257)[:size]


@given(
    ciphers,
    prefixes,
    st.lists(st.tuples(sizes, datagram_sizes), max_size=6),
    st.lists(st.integers(0, 300), max_size=20),
)
def test_all_that_went_in_comes_out_in_order(
    cipher: str, prefix: bytes, records: list[tuple[int, int]], cuts: Sequence[int]
) -> None:
    ours, theirs = writer(cipher), reader(cipher)
    plains = [plaintext(size, counter) for counter, (size, _) in enumerate(records)]
    sent = [
        datagram
        for counter, (_, datagram_size) in enumerate(records)
        for datagram in datagrams(ours.write(memoryview(plains[counter]), counter, datagram_size, prefix))
    ]
    assert receive(theirs, sent, offset=len(prefix), cuts=cuts) == plains
    assert not theirs.drops


@given(ciphers, prefixes, st.lists(st.integers(0, 6000), min_size=1, max_size=8), datagram_sizes, st.data())
def test_what_comes_out_of_a_bad_path_went_in_and_comes_once(
    cipher: str, prefix: bytes, lengths: list[int], datagram_size: int, data: Any
) -> None:
    ours, theirs = writer(cipher), reader(cipher)
    plains = [plaintext(length, counter) + bytes([counter]) for counter, length in enumerate(lengths)]
    arrived = [
        datagram
        for counter, plain in enumerate(plains)
        for datagram in datagrams(ours.write(memoryview(plain), counter, datagram_size, prefix))
    ]
    random = data.draw(st.randoms(use_true_random=False))
    touched: set[bytes] = set()
    for _ in range(data.draw(st.integers(0, 12))):
        at = random.randrange(len(arrived)) if arrived else 0
        action = data.draw(st.sampled_from(["lose", "duplicate", "move", "swap", "corrupt", "cut", "garbage"]))
        if action == "garbage" or not arrived:
            arrived.insert(at, random.randbytes(random.randrange(1, datagram_size)))
        elif action == "lose":
            touched.add(arrived.pop(at))
        elif action == "duplicate":
            arrived.insert(random.randrange(len(arrived) + 1), arrived[at])
        elif action == "move":
            arrived.insert(random.randrange(len(arrived)), arrived.pop(at))
        elif action == "swap":
            other = random.randrange(len(arrived))
            arrived[at], arrived[other] = arrived[other], arrived[at]
        elif action == "corrupt":
            touched.add(arrived[at])
            damaged = bytearray(arrived[at])
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            arrived[at] = bytes(damaged)
        else:
            touched.add(arrived[at])
            arrived[at] = arrived[at][: random.randrange(1, len(arrived[at]) + 1)]
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=20))
    opened = receive(theirs, arrived, offset=len(prefix), cuts=cuts)
    assert len(set(opened)) == len(opened)
    assert set(opened) <= set(plains)
    if not touched and len(plains) <= 8:
        # Duplicates, another order and strangers' datagrams cost no record.
        assert set(opened) == set(plains)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_order_of_arrival_is_put_right(lengths: list[int], random: Any) -> None:
    ours, theirs = writer(), reader()
    plains = [plaintext(length, counter) + bytes([counter]) for counter, length in enumerate(lengths)]
    arrived = [
        datagram
        for counter, plain in enumerate(plains)
        for datagram in datagrams(ours.write(memoryview(plain), counter, 500))
    ]
    random.shuffle(arrived)
    opened = [
        bytes(plain)
        for batch, segment in batches(arrived)
        for plain in theirs.receive(batch, segment, 0, 0.0, multi=True)
    ]
    assert sorted(opened) == sorted(plains)
