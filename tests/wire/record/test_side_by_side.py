"""Records side by side: a superpacket's pieces, sealed as one run, opened as one run, are that superpacket again."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.packet import virtio
from overlay.wire.packet.join import join_frames, join_unchecked
from overlay.wire.packet.superpacket import split
from overlay.wire.record.buffers import MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE, run_shape
from overlay.wire.record.columns import columns, of_one_receiver, records_in_row
from overlay.wire.record.cut import Cutting, cutting_of
from overlay.wire.record.fragments import FRAGMENT_HEADER, FRAGMENT_HEADER_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, MAX_PADDING, frames, single_frames
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.writer import RecordWriter
from tests.wire.packet.packets import ACK, PSH, TCP, UDP, Flow
from tests.wire.packet.test_join import without_identification
from tests.wire.record.batches import RECEIVER, batches, datagrams, reader, writer
from tests.wire.record.test_cut import NUMBERS, payload, record

PREFIX = b"relay header 16B"
flows = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    dont_fragment=st.booleans(),
    tcp_options=st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(range(8))]),
)
prefixes = st.sampled_from([b"", PREFIX])
rooms = st.integers(1400, 5600)
ciphers = st.sampled_from(["aes-256-gcm", "chacha20-poly1305"])


def superpacket(flow: Flow, length: int, size: int, flags: int = ACK) -> bytes:
    """As a kernel makes it, of at most 64 segments."""
    length = min(length, 64 * size)
    made = bytearray(flow.superpacket(payload(length), size, flags=flags, **NUMBERS))
    virtio.validate(memoryview(made)[:10], memoryview(made)[10:])  # the header length is exact then
    return bytes(made)


def sealed(
    writer: RecordWriter, cutting: Cutting, datagram_size: int, prefix: bytes, first: int = 0
) -> list[bytes] | None:
    """The datagrams of a cut superpacket; None: its pieces cannot go side by side."""
    shape = run_shape(cutting.size, datagram_size, len(prefix) + FRAGMENT_HEADER_SIZE)
    if shape is None or shape.padding > cutting.last - cutting.head:
        return None
    layout = writer.buffers.layout(shape.datagram_size, len(prefix))
    pieces = list_of_pieces = cutting.pieces(shape.padding)
    sent: list[bytes] = []
    left = cutting.count
    while left:
        number = min(left, shape.records)
        left -= number
        taken = (next(list_of_pieces) for _ in range(number))
        size = writer.seal_run(taken, first, number, cutting.size + shape.padding, layout, prefix)
        first += number
        (batch,) = layout.batches(size)
        run = datagrams([batch])
        assert len(run) <= MAX_BATCH_SEGMENTS
        assert sum(map(len, run)) <= MAX_BATCH_SIZE
        assert {len(each) for each in run[:-1]} <= {shape.datagram_size}
        sent += run
    assert next(pieces, None) is None
    return sent


def apart(batch: memoryview, segment: int, stride: int) -> tuple[memoryview, memoryview, int]:
    """A run as the kernel takes it apart."""
    pieces = [batch[at : at + segment] for at in range(0, len(batch), segment)]
    headers, box = b"".join(each[:stride] for each in pieces), b"".join(each[stride:] for each in pieces)
    return memoryview(headers), memoryview(box), segment - stride


def receive_apart(theirs: RecordReader, arrived: list[bytes], prefix: bytes, *, multi: bool = True) -> list[bytes]:
    """All records of the datagrams, by the quick way for each run that the kernel would take apart."""
    stride = len(prefix) + FRAGMENT_HEADER_SIZE
    found: list[bytes] = []
    for batch, segment in batches(arrived):
        last = (len(batch) - 1) % segment + 1
        opened = None
        if segment > stride and last > stride:
            headers, box, room = apart(batch, segment, stride)
            opened = theirs.receive_apart(headers, len(prefix), box, room, 0.0, multi=multi)
        if opened is None:
            opened = theirs.receive(batch, segment, len(prefix), 0.0, multi=multi)
        found += [bytes(plain) for plain in opened]
    return found


def joined(plains: list[bytes]) -> list[bytes]:
    """What the kernel gets of them."""
    views = [memoryview(bytearray(plain)) for plain in plains]
    single = single_frames(views)
    assert single is not None
    return [bytes(frame) for frame in join_unchecked(single, pytest.fail)]


@given(
    ciphers, flows, prefixes, st.integers(1, 40_000), st.integers(300, 1400), rooms, st.sampled_from([ACK, ACK | PSH])
)
def test_what_was_cut_and_sealed_as_a_run_is_the_superpacket_again(
    cipher: str, flow: Flow, prefix: bytes, length: int, size: int, room: int, flags: int
) -> None:
    whole = superpacket(flow, length, size, flags)
    cutting = cutting_of(record(whole), room)
    if cutting is None:
        assert len(whole) + 4 <= max(room, FRAME_HEADER_SIZE + 72 + size)
        return
    theirs = reader(cipher)
    sent = sealed(writer(cipher), cutting, 1444, prefix)
    if sent is None:
        return
    opened = receive_apart(theirs, sent, prefix)
    assert len(opened) == cutting.count == theirs.completed
    assert theirs.taken == len(sent)
    assert joined(opened) == [whole]
    assert not theirs.drops


@given(flows, prefixes, st.integers(5000, 40_000), st.integers(500, 1400), rooms, st.booleans(), st.data())
def test_of_a_run_to_which_something_happened_the_quick_way_takes_what_the_close_look_takes(
    flow: Flow, prefix: bytes, length: int, size: int, room: int, multi: bool, data: Any
) -> None:
    cutting = cutting_of(record(superpacket(flow, length, size)), room)
    if cutting is None:
        return
    sent = sealed(writer(), cutting, 1444, prefix)
    if sent is None:
        return
    chance = data.draw(st.randoms(use_true_random=False))
    arrived = list(sent)
    forged = False
    for action in data.draw(
        st.lists(st.sampled_from(["lose", "duplicate", "move", "swap", "corrupt", "forge", "other"]), max_size=6)
    ):
        at = chance.randrange(len(arrived))
        if action == "lose" and len(arrived) > 1:
            del arrived[at]
        elif action == "duplicate":
            arrived.insert(chance.randrange(len(arrived) + 1), arrived[at])
        elif action == "move":
            arrived.insert(chance.randrange(len(arrived)), arrived.pop(at))
        elif action == "swap" and at:
            arrived[at - 1], arrived[at] = arrived[at], arrived[at - 1]
        elif action in ("corrupt", "forge"):
            changed = bytearray(arrived[at])
            start = len(prefix) + (FRAGMENT_HEADER_SIZE if action == "corrupt" else 0)
            end = len(changed) if action == "corrupt" else len(prefix) + FRAGMENT_HEADER_SIZE
            changed[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
            arrived[at] = bytes(changed)
            forged |= action == "forge"
        elif action == "other":  # of somebody else's session
            changed = bytearray(arrived[at])
            changed[len(prefix) + 4] ^= 1
            arrived[at] = bytes(changed)
    quick, close = reader(), reader()
    found = receive_apart(quick, arrived, prefix, multi=multi)
    wanted = [
        bytes(plain)
        for batch, segment in batches(arrived)
        for plain in close.receive(batch, segment, len(prefix), 0.0, multi=multi)
    ]
    whole = receive_apart(reader(), sent, prefix)
    assert set(found) | set(wanted) <= set(whole)
    if forged:  # what of a header nobody looks at differs, as the box bears it out; nothing else may come of it
        assert len(found) == len(set(found))
        return
    assert found == wanted
    assert (quick.drops, quick.completed, quick.taken) == (close.drops, close.completed, close.taken)
    # Nothing comes twice, neither now nor when all comes again.
    assert len(found) == len(set(found))
    again = receive_apart(quick, sent, prefix)
    assert not set(found) & set(again)
    if multi and not set(sent) - set(arrived):
        assert sorted(found + again) == sorted(whole)


@given(flows, st.integers(5000, 40_000), st.integers(500, 1400), st.randoms(use_true_random=False))
def test_of_the_pieces_that_arrive_the_kernel_gets_their_packets(
    flow: Flow, length: int, size: int, chance: Any
) -> None:
    whole = superpacket(flow, length, size)
    cutting = cutting_of(record(whole), 0)
    assert cutting is not None
    pieces = [bytes(piece) for piece in cutting.pieces()]
    kept = [piece for piece in pieces if chance.random() < 0.9]
    wanted = [packet for piece in kept for packet in split(memoryview(piece)[4:])]
    found = [packet for frame in joined(kept) for packet in split(memoryview(frame))]
    assert without_identification(found) == without_identification(wanted)


@given(flows, st.integers(2000, 20_000), st.integers(300, 1400), rooms, st.data())
def test_what_is_checked_with_its_neighbour_is_what_would_be_checked_alone(
    flow: Flow, length: int, size: int, room: int, data: Any
) -> None:
    cutting = cutting_of(record(superpacket(flow, length, size)), room)
    if cutting is None:
        return
    made = [bytearray(piece[4:]) for piece in cutting.pieces()]
    for _ in range(data.draw(st.integers(0, 3))):
        frame = data.draw(st.sampled_from(made))
        at = data.draw(st.integers(0, min(len(frame), 80) - 1))
        frame[at] = data.draw(st.sampled_from([frame[at] ^ 1, 0, 255]) | st.integers(0, 255))
    alone, wanted = [], Counter[str]()
    for frame in map(bytearray, made):
        try:
            virtio.validate(memoryview(frame)[:10], memoryview(frame)[10:])
        except RemoteProtocolError as error:
            wanted[error.reason] += 1
        else:
            alone.append(memoryview(frame))
    drops = Counter[str]()
    found = join_unchecked([memoryview(bytearray(frame)) for frame in made], lambda reason: drops.update([reason]))
    assert [bytes(frame) for frame in found] == [bytes(frame) for frame in join_frames(alone)]
    assert drops == wanted


@given(flows, st.integers(2000, 20_000), st.integers(300, 1400), rooms, st.integers(0, MAX_PADDING))
def test_padding_is_zeros_that_change_nothing(flow: Flow, length: int, size: int, room: int, padding: int) -> None:
    whole = superpacket(flow, length, size)
    plain, padded = (cutting_of(record(whole), room) for _ in range(2))
    if plain is None or padded is None or padding > plain.last - plain.head:
        return
    bare = [bytes(piece) for piece in plain.pieces()]
    found = [bytes(piece) for piece in padded.pieces(padding)]
    assert found == [*(piece + bytes(padding) for piece in bare[:-1]), bare[-1]]
    assert [frames(memoryview(piece)) for piece in found] == [[(0, len(piece))] for piece in bare]
    views = single_frames([memoryview(piece) for piece in found])
    assert views is not None
    assert [bytes(view) for view in views] == [piece[4:] for piece in bare]


def test_a_run_that_went_nowhere_can_be_had_back() -> None:
    ours = writer()
    cutting = cutting_of(record(superpacket(Flow(), 20_000, 1328)), 2840)
    assert cutting is not None
    pieces = [bytes(piece) for piece in cutting.pieces()]
    shape = run_shape(cutting.size, 1444, FRAGMENT_HEADER_SIZE)
    assert shape is not None
    layout = ours.buffers.layout(shape.datagram_size, 0)
    padded = [piece + bytes(shape.padding) for piece in pieces[:-1]] + pieces[-1:]
    size = ours.seal_run(map(memoryview, padded), 7, len(padded), len(padded[0]), layout)
    assert ours.unseal_run(7, len(padded[0]), layout, size) == padded


def test_misuse() -> None:
    ours = writer()
    layout = ours.buffers.layout(1444, 0)
    full = memoryview(bytes(layout.payload - 16))
    assert ours.seal_run([full, full[:5]], 3, 2, len(full), layout) == layout.payload + 21
    for plains, first, size in (
        ([full], 4, len(full)),  # used already
        ([full], 9, len(full) - 1),  # does not fill its datagram
        ([full] * 100, 9, len(full)),  # more than a batch
        ([full[:5], full], 9, len(full)),  # a short one before the last
        ([full, memoryview(bytes(len(full) + 1))], 20, len(full)),  # a long one
    ):
        with pytest.raises(LocalProtocolError):
            ours.seal_run(plains, first, len(plains), size, layout)


almost_headers = st.builds(
    lambda kind, index, count, reserved, receiver, counter: FRAGMENT_HEADER.pack(
        kind, index, count, reserved, receiver, counter
    ),
    st.sampled_from([5, 5, 5, 5, 4]),
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.sampled_from([RECEIVER, RECEIVER, RECEIVER, 7]),
    st.integers(0, 3) | st.integers(2**64 - 3, 2**64 - 1),
)
rows = st.integers(0, 5).flatmap(
    lambda first: st.sampled_from([1, 2, 3]).map(
        lambda count: [
            FRAGMENT_HEADER.pack(5, index, count, 0, RECEIVER, first + place)
            for place in range(4)
            for index in range(count)
        ]
    )
)


@given(st.lists(st.lists(almost_headers, max_size=4) | rows, min_size=1, max_size=4), st.sampled_from([0, 16]))
def test_records_in_a_row_are_those_that_one_would_count(parts: list[list[bytes]], offset: int) -> None:
    headers = [header for part in parts for header in part]
    if not headers:
        return
    heads, counters = columns(b"".join(bytes(offset) + header for header in headers), offset, len(headers))
    fields = [FRAGMENT_HEADER.unpack(header) for header in headers]
    assert of_one_receiver(heads) == (len({(each[0], each[4]) for each in fields}) == 1)
    for at in range(len(headers)):
        _, _, count, _, receiver, first = fields[at]
        number = 0
        while count and fields[at + number * count : at + (number + 1) * count] == [
            (5, index, count, 0, receiver, first + number) for index in range(count)
        ]:
            number += 1
        assert records_in_row(heads, counters, at) == ((number, count) if number else (0, 1))
