from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet import checksum
from tests.wire.packet.packets import internet_checksum


def test_example_of_rfc_1071() -> None:
    assert checksum.sum16(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@given(st.binary(min_size=1, max_size=3000).filter(any))
def test_complement_is_the_checksum_of_rfc_1071(data: bytes) -> None:
    assert checksum.complement(checksum.sum16(data)) == internet_checksum(data)


@given(st.binary(min_size=350, max_size=2000), st.integers(1, 600))
def test_sums_of_pieces_are_those_of_each_piece(data: bytes, size: int) -> None:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert checksum.sums(memoryview(data), size) == [checksum.sum16(piece) for piece in pieces]


@given(st.integers(0, 3000))
def test_all_quarters_but_the_first_keep_words_whole(size: int) -> None:
    first, *others = (int(part) for part in checksum.quarters(size).split("s")[:-1])
    assert first + sum(others) == size
    assert all(part % 2 == 0 for part in others)


def test_udp_sends_a_checksum_of_zero_as_all_ones() -> None:
    assert checksum.complement(0xFFFF) == 0
    assert checksum.complement_udp(0xFFFF) == 0xFFFF
    assert checksum.complement_udp(1) == 0xFFFE


@given(st.binary(min_size=32, max_size=32), st.sampled_from([6, 17]), st.integers(0, 65535))
def test_pseudo_header_is_that_of_rfc_8200(addresses: bytes, protocol: int, length: int) -> None:
    spelled_out = addresses + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])
    assert checksum.pseudo_header(addresses, protocol, length) == checksum.sum16(spelled_out)
