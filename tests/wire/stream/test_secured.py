"""A stream within a Noise channel: what goes in comes out, however it is cut, and nothing else does."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.stream.secured import LONGEST, PROLOGUE, Secured
from overlay.wire.wireguard.primitives import clamp, public_key

OURS, THEIRS = clamp(bytes(range(32))), clamp(bytes(range(32, 64)))


def ends(prologue: bytes = PROLOGUE) -> tuple[Secured, Secured]:
    made = {"random_bytes": Random(1).randbytes, "max_message": LONGEST}
    one = NoiseChannel.initiator(OURS, public_key(THEIRS), prologue=PROLOGUE, **made)  # type: ignore[arg-type]
    other = NoiseChannel.responder(THEIRS, prologue=prologue, **made)  # type: ignore[arg-type]
    other.receive_data(one.data_to_send())
    one.receive_data(other.data_to_send())
    other.receive_data(one.data_to_send())
    return Secured(one), Secured(other)


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(1, 400), min_size=1, max_size=8))
def test_what_goes_in_comes_out_and_the_end_is_last(said: list[bytes], cuts: list[int]) -> None:
    one, other = ends()
    sent = b"".join(one.encode(piece) for piece in said if piece) + one.end()
    heard, at, turn = b"", 0, 0
    while at < len(sent):
        assert not other.ended
        heard += other.decode(sent[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert heard == b"".join(said) and other.ended
    assert other.decode(b"whatever comes now") == b"" and not one.ended
    assert one.decode(other.encode(b"an answer")) == b"an answer"


def test_what_is_long_goes_in_several_messages() -> None:
    one, other = ends()
    data = Random(2).randbytes(3 * LONGEST + 1)
    assert other.decode(one.encode(memoryview(data))) == data


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_what_was_changed_on_the_way_is_not_taken(at: int, change: int) -> None:
    one, other = ends()
    sent = bytearray(one.encode(b"x" * 1000))
    sent[at % len(sent)] ^= change
    try:
        assert other.decode(bytes(sent)) == b""  # a longer message is awaited
    except RemoteProtocolError as error:
        assert error.reason in ("bad_tag", "bad_length")


def test_who_speaks_to_the_server_does_not_speak_to_a_peer() -> None:
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        ends(b"overlay control v1")
