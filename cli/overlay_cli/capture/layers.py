"""scapy layers for our messages on the wire (docs/wire-format.md). Nothing is opened: boxes stay bytes.

Imports scapy, which takes the better part of a second: import this late. The layers are bound to no port: whoever has a
UDP payload of ours decodes it with `Message(payload)`, and messages of everybody else's stay what they are.
"""

from typing import Any

from scapy.fields import (
    ByteEnumField,
    ByteField,
    LEIntField,
    LELongField,
    LEShortField,
    XLE3BytesField,
    XLEIntField,
    XLELongField,
    XStrField,
    XStrFixedLenField,
)
from scapy.packet import Packet, Raw

TYPES = {
    1: "handshake initiation",
    2: "handshake response",
    3: "cookie reply",
    4: "transport data",
    5: "record fragment",
    6: "relay",
    7: "disco",
}


class Message(Packet):
    """Any of them: `Message(payload)` gives the layer of its type, `Raw` where there is none."""

    name = "overlay message"

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_: Any, **__: Any) -> type[Packet]:
        if not _pkt:
            return Raw if cls is Message else cls
        if cls is not Message:
            return cls
        return _LAYERS.get(_pkt[0], Raw)

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


class HandshakeInitiation(Message):
    name = "overlay handshake initiation"
    fields_desc = [
        ByteEnumField("type", 1, TYPES),
        XLE3BytesField("reserved", 0),
        XLEIntField("sender", 0),
        XStrFixedLenField("ephemeral", b"", 32),
        XStrFixedLenField("static", b"", 48),
        XStrFixedLenField("timestamp", b"", 28),
        XStrFixedLenField("mac1", b"", 16),
        XStrFixedLenField("mac2", b"", 16),
    ]


class HandshakeResponse(Message):
    name = "overlay handshake response"
    fields_desc = [
        ByteEnumField("type", 2, TYPES),
        XLE3BytesField("reserved", 0),
        XLEIntField("sender", 0),
        XLEIntField("receiver", 0),
        XStrFixedLenField("ephemeral", b"", 32),
        XStrFixedLenField("empty", b"", 16),
        XStrFixedLenField("mac1", b"", 16),
        XStrFixedLenField("mac2", b"", 16),
    ]


class CookieReply(Message):
    name = "overlay cookie reply"
    fields_desc = [
        ByteEnumField("type", 3, TYPES),
        XLE3BytesField("reserved", 0),
        XLEIntField("receiver", 0),
        XStrFixedLenField("nonce", b"", 24),
        XStrFixedLenField("cookie", b"", 32),
    ]


class TransportData(Message):
    name = "overlay transport data"
    fields_desc = [
        ByteEnumField("type", 4, TYPES),
        XLE3BytesField("reserved", 0),
        XLEIntField("receiver", 0),
        LELongField("counter", 0),
        XStrField("box", b""),
    ]


class RecordFragment(Message):
    name = "overlay record fragment"
    fields_desc = [
        ByteEnumField("type", 5, TYPES),
        ByteField("index", 0),
        ByteField("count", 1),
        ByteField("reserved", 0),
        XLEIntField("receiver", 0),
        LELongField("counter", 0),
        XStrField("box", b""),
    ]


class Relay(Message):
    """The ticket is blank in what is captured."""

    name = "overlay relay"
    fields_desc = [
        ByteEnumField("type", 6, TYPES),
        ByteField("flags", 0),
        LEShortField("reserved", 0),
        LEIntField("node", 0),
        XLELongField("ticket", 0),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return s, b""

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        # A relay carries types 1 to 5: a nest of relays is nobody's message, and must not be unpacked without end.
        return _LAYERS[payload[0]] if payload and 1 <= payload[0] <= 5 else Raw


class Disco(Message):
    name = "overlay disco"
    fields_desc = [
        ByteEnumField("type", 7, TYPES),
        ByteField("version", 1),
        LEShortField("reserved", 0),
        LEIntField("sender", 0),
        XStrFixedLenField("nonce", b"", 24),
        XStrField("box", b""),
    ]


_LAYERS: dict[int, type[Packet]] = {
    1: HandshakeInitiation,
    2: HandshakeResponse,
    3: CookieReply,
    4: TransportData,
    5: RecordFragment,
    6: Relay,
    7: Disco,
}
