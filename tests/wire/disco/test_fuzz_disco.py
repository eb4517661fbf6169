"""Fuzz targets: no bytes make the parsers raise anything but `RemoteProtocolError`."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.disco import MAX_OFFERS, CallMe, DiscoKey, sender
from overlay.wire.disco.messages import decode
from overlay.wire.wireguard.primitives import public_key

_PRIVATE = bytes(31) + b"\x40"
_KEY = DiscoKey(_PRIVATE, public_key(_PRIVATE))
_REASON = re.compile(r"[a-z]+(_[a-z]+)*")


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x07\x01\x00\x00" + tail))
@example(b"")
def test_datagram(data: bytes) -> None:
    for parse in (sender, _KEY.open):
        try:
            parse(data)
        except RemoteProtocolError as error:
            assert _REASON.fullmatch(error.reason)


@given(
    st.binary(max_size=64)
    | st.binary(max_size=64).map(lambda tail: b"\x02" + tail)
    | st.binary(max_size=400).map(lambda tail: b"\x03" + tail)
)
def test_payload_of_a_peer_that_has_the_key(payload: bytes) -> None:
    try:
        message = decode(payload, 48)
    except RemoteProtocolError as error:
        assert _REASON.fullmatch(error.reason)
    else:
        if isinstance(message, CallMe):
            assert len(message.id) == 8 and len(message.offers) <= MAX_OFFERS
        else:
            assert len(message.txid) == 12
