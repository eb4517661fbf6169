"""Captured packets as documents: what `--json` prints and lines are made of. scapy takes the packets apart.

Whatever a packet holds, a document comes out: what cannot be taken apart is named as such ("malformed").

Imports scapy, which takes the better part of a second: import this late.
"""

import logging
from collections.abc import Mapping
from typing import Any

# scapy warns of the machine that it runs on (no default route, say), which nobody here asked it about.
logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers import dns  # noqa: E402, F401 - so that UDP port 53 is taken apart
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, ipv6nh  # noqa: E402
from scapy.packet import NoPayload, Packet, Padding, Raw  # noqa: E402

from overlay.daemon.capture import Host  # noqa: E402
from overlay_cli.capture.layers import (  # noqa: E402
    TYPES,
    CookieReply,
    Disco,
    HandshakeInitiation,
    HandshakeResponse,
    Message,
    RecordFragment,
    Relay,
    TransportData,
)
from overlay_cli.capture.packets import CapturedPacket  # noqa: E402

Document = dict[str, Any]

_FLAGS = (("F", 0x01), ("S", 0x02), ("R", 0x04), ("P", 0x08), ("U", 0x20), (".", 0x10), ("E", 0x40), ("W", 0x80))
_PROTOCOLS = {1: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 41: "ipv6", 47: "gre", 50: "esp", 58: "icmpv6", 132: "sctp"}
_LONGEST_INFO = 200  # characters


class Names:
    """Who has which overlay address and which number."""

    def __init__(self, by_address: Mapping[str, str], by_number: Mapping[int, str]) -> None:
        self.by_address = by_address
        self.by_number = by_number


NO_NAMES = Names({}, {})


def scapy_packet(packet: CapturedPacket) -> Packet:
    """Taken apart as far as it goes; `Raw` where it does not. For our own messages that is the message alone."""
    data = packet.data if packet.ends is None else packet.message
    layer = Message if packet.ends is not None else IPv6 if data[:1] and data[0] >> 4 == 6 else IP
    if not data:
        return Raw(data)  # a layer without bytes is one with scapy's defaults
    try:
        return layer(data)
    except Exception:  # scapy's dissectors raise whatever a hostile packet brings them to
        return Raw(data)


def document(packet: CapturedPacket, interface: str, names: Names) -> Document:
    """What can be said of it, for JSON: texts, numbers, true and false, None, lists and objects."""
    taken_apart = scapy_packet(packet)
    found: Document = {
        "time": packet.time / 1e9,
        "interface": interface,
        "direction": "out" if packet.outbound else "in",
        "length": packet.size,
    }
    try:
        if packet.ends is None:
            found.update(_inner(packet, taken_apart, names))
        else:
            found.update(_outer(packet, packet.ends, taken_apart, names))
    except Exception as error:  # a field of a hostile packet that scapy shows as nobody expects
        found["malformed"] = type(error).__name__
    return found


def details(packet: CapturedPacket) -> str:
    """Every field that scapy knows, one per line."""
    try:
        shown = scapy_packet(packet).show(dump=True)
    except Exception as error:  # as above
        shown = f"malformed: {type(error).__name__}"
    return "\n".join(clean(each) for each in str(shown).splitlines())


# inner packets -------------------------------------------------------------------------------------------------------


def _inner(packet: CapturedPacket, top: Packet, names: Names) -> Document:
    if not isinstance(top, IP | IPv6):
        return {"malformed": "no IP header"}
    found: Document = {
        "version": 4 if isinstance(top, IP) else 6,
        "source": str(top.src),
        "destination": str(top.dst),
        "source_name": names.by_address.get(str(top.src)),
        "destination_name": names.by_address.get(str(top.dst)),
    }
    upper = top.payload
    number = int(top.proto) if isinstance(top, IP) else int(top.nh)
    while isinstance(top, IPv6) and hasattr(upper, "nh"):  # extension headers
        number = int(upper.nh)
        upper = upper.payload
    name = _PROTOCOLS.get(number, ipv6nh.get(number, number))
    found["protocol"] = str(name).lower().replace(" ", "-")
    if isinstance(top, IP) and (top.frag or int(top.flags) & 1):
        found["fragment_offset"] = int(top.frag) * 8
        found["more_fragments"] = bool(int(top.flags) & 1)
    before = len(packet.data) - _length(upper)  # bytes of the headers before it
    found.update(_upper(upper, packet.size - before))
    if packet.offload.checksum:
        found["checksum"] = "offloaded"
    if packet.offload.segment:
        found["segment"] = packet.offload.segment
    if len(packet.data) < packet.size:
        found["captured"] = len(packet.data)
    return found


def _upper(layer: Packet, length: int) -> Document:
    """`length`: bytes from this layer's header on, as they were before the packet was cut."""
    if isinstance(layer, TCP):
        return {
            "source_port": int(layer.sport),
            "destination_port": int(layer.dport),
            "flags": "".join(letter for letter, bit in _FLAGS if int(layer.flags) & bit) or "none",
            "seq": int(layer.seq),
            "ack": int(layer.ack),
            "window": int(layer.window),
            "options": [_option(*each) for each in layer.options],
            "payload": max(0, length - 4 * int(layer.dataofs)),
        }
    if isinstance(layer, UDP):
        ports = {"source_port": int(layer.sport), "destination_port": int(layer.dport)}
        return {**ports, "payload": max(0, length - 8), **_info(layer.payload)}
    if isinstance(layer, ICMP):
        found = {"icmp_type": int(layer.type), "icmp_code": int(layer.code), "payload": max(0, length - 8)}
        if layer.type in (0, 8):
            return {**found, "info": _echo(layer.type == 8), "id": int(layer.id), "seq": int(layer.seq)}
        return {**found, "info": clean(layer.sprintf("%ICMP.type% %ICMP.code%"))}
    if isinstance(layer, ICMPv6EchoRequest | ICMPv6EchoReply):
        echo = {"info": _echo(layer.type == 128), "id": int(layer.id), "seq": int(layer.seq)}
        return {"payload": max(0, length - 8), **echo}
    return {"payload": max(0, length), **_info(layer)}


def _echo(request: bool) -> str:
    return "echo request" if request else "echo reply"


def _option(name: Any, value: Any) -> list[Any]:
    """A TCP option as name and values."""
    values = value if isinstance(value, tuple | list) else () if value in (None, b"") else (value,)
    return [str(name), *(each.hex() if isinstance(each, bytes) else int(each) for each in values)]


def _info(layer: Packet) -> Document:
    """scapy's own words for what it knows further up."""
    if isinstance(layer, NoPayload | Raw | Padding):
        return {}
    return {"info": clean(layer.summary())}


def clean(text: str) -> str:
    """Without what could speak to the terminal: it may hold what the packet holds."""
    return "".join(each if each.isprintable() else "." for each in text[:_LONGEST_INFO])


def _length(layer: Packet) -> int:
    """Bytes of a layer and all that follows, as captured."""
    return len(layer.original) if layer.original else len(bytes(layer))


# our own messages ----------------------------------------------------------------------------------------------------


def _outer(packet: CapturedPacket, ends: tuple[Host, Host], message: Packet, names: Names) -> Document:
    (source, source_port), (destination, destination_port) = ends
    return {
        "version": 6 if ":" in source else 4,
        "source": source,
        "destination": destination,
        "protocol": "overlay",
        "source_port": source_port,
        "destination_port": destination_port,
        "payload": packet.size - (48 if ":" in source else 28),
        **({"captured": len(packet.data)} if len(packet.data) < packet.size else {}),
        "message": _message(message, names),
    }


def _message(layer: Packet, names: Names) -> Document:
    if not isinstance(layer, Message):
        data = bytes(layer)
        kind = data[0] if data else None
        if kind in TYPES:
            return {"type": kind, "name": TYPES[kind], "malformed": "too short, or relayed and may not be"}
        return {"type": kind, "name": "unknown"}
    found: Document = {"type": int(layer.type), "name": TYPES[int(layer.type)]}
    if isinstance(layer, HandshakeInitiation | HandshakeResponse):
        found["sender_index"] = int(layer.sender)
    if isinstance(layer, HandshakeResponse | CookieReply | TransportData | RecordFragment):
        found["receiver_index"] = int(layer.receiver)
    if isinstance(layer, RecordFragment):
        found |= {"fragment": int(layer.index), "fragments": int(layer.count)}
    if isinstance(layer, TransportData | RecordFragment):
        found["counter"] = int(layer.counter)
    if isinstance(layer, Relay):
        found |= {"node": int(layer.node), "node_name": names.by_number.get(int(layer.node))}
        found["carries"] = _message(layer.payload, names)
    if isinstance(layer, Disco):
        found |= {"sender": int(layer.sender), "sender_name": names.by_number.get(int(layer.sender))}
    return found
