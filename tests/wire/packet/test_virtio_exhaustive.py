"""Every value of every offload field, held against a model that was told the truth about the packet, not read it."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import virtio
from tests.wire.packet.lies import FLOWS, HEADER, VNET_SIZE
from tests.wire.packet.packets import UDP, Flow

DATA = 5000  # bytes of payload
SEGMENT = 1000  # bytes
Fields = tuple[int, int, int, int, int, int]


class Truth:
    """A packet that is as it should be, and what offload fields it bears out."""

    def __init__(self, flow: Flow) -> None:
        frame = flow.superpacket(b"x" * DATA, SEGMENT)
        self.packet = memoryview(frame)[VNET_SIZE:]
        self.fields: Fields = HEADER.unpack_from(frame)
        self.udp = flow.protocol == UDP
        self._header = memoryview(bytearray(VNET_SIZE))

    def expected(self, fields: Fields) -> Fields | None:
        """What the kernel may see for these fields; None: nothing."""
        flags, gso_type, _, gso_size, start, offset = fields
        _, true_type, true_length, _, true_start, true_offset = self.fields
        if flags > 3:
            return None
        if flags in (0, 2):
            return (0, 0, 0, 0, 0, 0) if gso_type == 0 else None
        if (start, offset) != (true_start, true_offset):
            return None
        if gso_type == 0:
            return 1, 0, true_length, 0, start, offset
        if gso_type not in ({5} if self.udp else {true_type, true_type | 0x80}):
            return None
        if gso_size < (-(-DATA // 128) if self.udp else 8):
            return None
        if gso_size >= DATA:
            return 1, 0, true_length, 0, start, offset
        return 1, gso_type, true_length, gso_size, start, offset

    def found(self, fields: Fields) -> Fields | None:
        """What `validate` makes of them."""
        HEADER.pack_into(self._header, 0, *fields)
        try:
            virtio.validate(self._header, self.packet)
        except RemoteProtocolError as error:
            assert error.reason == "bad_offload"
            return None
        made: Fields = HEADER.unpack_from(self._header)
        return made

    def check(self, variations: Iterator[Fields]) -> None:
        for fields in variations:
            assert self.found(fields) == self.expected(fields), fields


@pytest.fixture(params=FLOWS)
def truth(request: pytest.FixtureRequest) -> Truth:
    return Truth(FLOWS[request.param])


@pytest.mark.parametrize("position", range(2, 6))
@pytest.mark.parametrize("name", ["tcp4, IP options", "tcp6, hop-by-hop", "udp4", "udp6, destination options"])
def test_every_value_of_each_long_field(name: str, position: int) -> None:
    truth = Truth(FLOWS[name])
    before, after = truth.fields[:position], truth.fields[position + 1 :]
    truth.check((*before, value, *after) for value in range(65536))  # type: ignore[misc]


def test_every_pair_of_flags_and_type(truth: Truth) -> None:
    rest = truth.fields[2:]
    truth.check((flags, gso_type, *rest) for flags in range(256) for gso_type in range(256))


def test_all_fields_at_their_borders(truth: Truth) -> None:
    _, _, length, _, start, offset = truth.fields
    borders = (
        (0, 1, 2, 3, 4),
        (0, 1, 2, 3, 4, 5, 6, 0x80, 0x81, 0x84, 0x85, 0xFF),
        (0, length, 65535),
        (0, 1, 7, 8, 39, 40, SEGMENT, DATA - 1, DATA, 65535),
        (0, start - 1, start, start + 1, len(truth.packet) - 2, 65535),
        (0, offset - 1, offset, 22 - offset, 65534, 65535),
    )
    truth.check(itertools.product(*borders))


@given(
    st.sampled_from(list(FLOWS.values())).map(Truth),
    st.tuples(*[st.integers(0, 255)] * 2, *[st.integers(0, 65535)] * 4),
)
def test_all_fields_at_random(truth: Truth, fields: Fields) -> None:
    assert truth.found(fields) == truth.expected(fields)
