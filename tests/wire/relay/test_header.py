"""The relay header: layout byte for byte, round trips, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.relay import (
    MAX_TICKET,
    RELAY_HEADER_SIZE,
    RelayHeader,
    blank_tickets,
    pack_header,
    pack_header_into,
    parse_header,
    tickets_equal,
)

numbers = st.integers(1, 2**32 - 1)
tickets = st.integers(0, MAX_TICKET)
MESSAGE = b"\x04\x00\x00\x00 what a relay cannot read"


def test_layout() -> None:
    header = pack_header(0x01020304, 0x1112131415161718)
    assert header == bytes.fromhex("06000000 04030201 1817161514131211")
    assert len(header) == RELAY_HEADER_SIZE == 16


@given(numbers, tickets)
def test_round_trip(number: int, ticket: int) -> None:
    datagram = pack_header(number, ticket) + MESSAGE
    assert parse_header(datagram) == RelayHeader(number, ticket)
    assert parse_header(memoryview(bytearray(datagram))) == (number, ticket)


def test_a_relay_writes_its_header_over_the_one_that_came() -> None:
    buffer = bytearray(b"before" + pack_header(2, 22) + MESSAGE)
    pack_header_into(buffer, 6, 3, 33)
    assert bytes(buffer) == b"before" + pack_header(3, 33) + MESSAGE


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "relay_short_header"),
        (pack_header(2, 22), "relay_short_header"),
        (b"\x05" + pack_header(2, 22)[1:] + MESSAGE, "relay_bad_type"),
        (b"\x06\x01" + pack_header(2, 22)[2:] + MESSAGE, "relay_bad_flags"),
        (b"\x06\x00\x00\x01" + pack_header(2, 22)[4:] + MESSAGE, "relay_bad_flags"),
        (b"\x06\x00\x00\x00\x00\x00\x00\x00" + pack_header(2, 22)[8:] + MESSAGE, "relay_bad_number"),
        (pack_header(2, 22) + b"\x00", "relay_bad_message"),
        (pack_header(2, 22) + b"\x08", "relay_bad_message"),
        (pack_header(2, 22) + pack_header(2, 22) + MESSAGE, "relay_bad_message"),
    ],
)
def test_what_is_refused(datagram: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_header(datagram)
    assert caught.value.reason == reason


@pytest.mark.parametrize("message_type", range(1, 6))
def test_what_may_be_relayed(message_type: int) -> None:
    assert parse_header(pack_header(2, 22) + bytes([message_type])) == (2, 22)


@pytest.mark.parametrize(("number", "ticket"), [(0, 1), (2**32, 1), (-1, 1), (1, -1), (1, MAX_TICKET + 1)])
def test_misuse(number: int, ticket: int) -> None:
    with pytest.raises(LocalProtocolError):
        pack_header(number, ticket)


def test_the_ticket_is_not_shown() -> None:
    assert "987654321" not in repr(parse_header(pack_header(2, 987654321) + MESSAGE))
    with pytest.raises(LocalProtocolError) as caught:
        pack_header(0, 987654321)
    assert "987654321" not in str(caught.value)


@given(tickets, tickets)
def test_tickets_are_compared(one: int, other: int) -> None:
    assert tickets_equal(one, one)
    assert tickets_equal(one, other) == (one == other)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 60))
def test_tickets_are_blanked_and_nothing_else(messages: list[bytes], segment: int) -> None:
    run = b"".join(message.ljust(segment, b"\x06")[:segment] for message in messages[:-1]) + messages[-1][:segment]
    blanked = blank_tickets(run, segment)
    assert len(blanked) == len(run)
    for at in range(0, len(run), segment):
        before, after = run[at : at + segment], blanked[at : at + segment]
        if before[:1] == b"\x06":
            assert after == before[:8] + bytes(len(before[8:16])) + before[16:]
        else:
            assert after == before


def test_tickets_of_a_whole_run_are_blanked() -> None:
    run = (pack_header(2, MAX_TICKET) + b"x" * 20) * 3 + pack_header(2, MAX_TICKET) + b"y"
    assert blank_tickets(run, 36) == (pack_header(2, 0) + b"x" * 20) * 3 + pack_header(2, 0) + b"y"
