"""The ECN field of a record that came in pieces."""

import itertools

import pytest

from overlay.wire.packet import ecn
from overlay.wire.packet.ecn import CE, ECT_0, ECT_1, NOT_ECT
from overlay.wire.record.reader import RecordReader
from tests.wire.record.batches import datagrams, reader, writer

SIZE = 1000


def sent(counter: int, size: int = 3500) -> list[bytes]:
    """Four datagrams, the last of them shorter."""
    return datagrams(writer().write(memoryview(bytearray(size)), counter, SIZE))


def take(ours: RecordReader, arrived: list[bytes], field: int) -> list[int]:
    """The fields of the records that a run completes, as the engine reads them."""
    opened = ours.receive(memoryview(b"".join(arrived)), SIZE, 0, 0.0, multi=True, field=field)
    return [ours.marks.get(index, field) for index in range(len(opened))]


@pytest.mark.parametrize("field", [NOT_ECT, ECT_0, ECT_1, CE])
def test_a_record_in_one_run_has_the_runs_field(field: int) -> None:
    ours = reader()
    assert take(ours, sent(0), field) == [field]
    assert not ours.marks


@pytest.mark.parametrize(("first", "second"), list(itertools.product(range(4), repeat=2)))
def test_two_runs(first: int, second: int) -> None:
    ours = reader()
    pieces = sent(0)
    assert take(ours, pieces[:2], first) == []
    assert take(ours, pieces[2:], second) == [ecn.joined(first, second)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("marked", range(4))
def test_one_mark_among_fragments_in_any_order(order: tuple[int, ...], marked: int) -> None:
    ours = reader()
    pieces = sent(0)
    found = [take(ours, [pieces[index]], CE if index == marked else ECT_0) for index in order]
    assert found == [[], [], [], [CE]]


def test_a_record_beside_others_keeps_its_own_field() -> None:
    ours = reader()
    parted, whole = sent(0), sent(1, 3 * 984 - 16)  # the latter in three full datagrams
    assert take(ours, parted[:1], CE) == []
    assert take(ours, [*whole, parted[1]], ECT_0) == [ECT_0]
    assert take(ours, [*sent(2, 3 * 984 - 16), *parted[2:]], ECT_0) == [ECT_0, CE]
    assert take(ours, sent(3), ECT_0) == [ECT_0]


def test_a_mark_on_a_duplicate_or_a_forged_fragment_opens_nothing() -> None:
    ours = reader()
    pieces = sent(0)
    assert take(ours, pieces[:2], ECT_0) == []
    assert take(ours, [pieces[2], bytes(len(pieces[3]))], CE) == []
    assert take(ours, pieces[3:], ECT_0) == [CE]
    assert take(ours, pieces[3:], CE) == []
    assert not ours.marks
