"""What a peer with good keys and bad intent may put into a record: each lie, and the name that its drop must have.

A lie is wrong in one thing and right in all others, so that no other check can be what found it. Knows how the kernel's
packets look, and none of the code under test.
"""

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from tests.wire.packet.packets import ADDRESSES, TCP, UDP, Flow, internet_checksum

TIMESTAMPS: Final = b"\x01\x01\x08\x0a" + bytes(range(8))
OPTIONS4: Final = b"\x94\x04\0\0"  # router alert
OPTIONS6: Final = b"\0\0\x01\x04\0\0\0\0"  # padding

FLOWS: Final[dict[str, Flow]] = {
    "tcp4": Flow(),
    "tcp4, options": Flow(tcp_options=TIMESTAMPS),
    "tcp4, IP options": Flow(ip_extra=OPTIONS4, dont_fragment=False),
    "tcp6": Flow(version=6),
    "tcp6, options": Flow(version=6, tcp_options=TIMESTAMPS),
    "tcp6, destination options": Flow(version=6, ip_extra=OPTIONS6),
    "tcp6, hop-by-hop": Flow(version=6, ip_extra=OPTIONS6, extension=0, tcp_options=TIMESTAMPS),
    "udp4": Flow(protocol=UDP),
    "udp4, may be fragmented": Flow(protocol=UDP, dont_fragment=False, traffic_class=0x28),
    "udp4, IP options": Flow(protocol=UDP, ip_extra=OPTIONS4),
    "udp6": Flow(version=6, protocol=UDP),
    "udp6, destination options": Flow(version=6, protocol=UDP, ip_extra=OPTIONS6),
}
"""Flows of every shape that a superpacket may have."""

HEADER: Final = struct.Struct("<BBHHHH")
NAMES: Final = ("flags", "gso_type", "header_length", "gso_size", "checksum_start", "checksum_offset")
VNET_SIZE: Final = HEADER.size
SEGMENT: Final = 200  # bytes


class Lie(NamedTuple):
    name: str
    frame: bytes  # virtio-net header and packet
    reason: str


def changed(frame: bytes, **fields: int) -> bytes:
    """The frame with other offload fields."""
    values = dict(zip(NAMES, HEADER.unpack_from(frame), strict=True)) | fields
    return HEADER.pack(*values.values()) + frame[VNET_SIZE:]


def patched(frame: bytes, at: int, new: bytes) -> bytes:
    """The frame with other bytes at `at` of its packet; IPv4's header checksum is made right again."""
    whole = bytearray(frame)
    whole[VNET_SIZE + at : VNET_SIZE + at + len(new)] = new
    header_length = (whole[VNET_SIZE] & 15) * 4
    if whole[VNET_SIZE] >> 4 == 4 and header_length >= 20:
        whole[VNET_SIZE + 10 : VNET_SIZE + 12] = bytes(2)
        header = bytes(whole[VNET_SIZE : VNET_SIZE + header_length])
        struct.pack_into(">H", whole, VNET_SIZE + 10, internet_checksum(header))
    return bytes(whole)


def of_offload_fields(marker: bytes) -> Iterator[Lie]:
    """Every field out of range, for every flow. `marker` is in all payloads."""
    for name, flow in FLOWS.items():
        frame = flow.superpacket(marker.ljust(5 * SEGMENT, b"x"), SEGMENT)
        size, transport = len(frame) - VNET_SIZE, flow.transport()
        true_type, udp = frame[1], flow.protocol == UDP
        types = {true_type} if udp else {true_type, true_type | 0x80}
        wrong: dict[str, list[int]] = {
            "flags": [0, 2, *range(4, 256)],
            "gso_type": [kind for kind in range(1, 255) if kind not in types],  # 255 is that of a loss report
            "gso_size": [0, 1, 7],
            "checksum_start": [0, 1, transport - 1, transport + 1, size - 1, size, size + 1, 65534, 65535],
            "checksum_offset": [0, 5, 7, 15, 17, 16 if udp else 6, 65534, 65535],
        }
        for field, values in wrong.items():
            for value in values:
                yield Lie(f"{name}: {field} {value}", changed(frame, **{field: value}), "bad_offload")


def of_headers(marker: bytes) -> Iterator[Lie]:
    """Right offload fields in front of headers that do not bear them out."""
    for name, flow in FLOWS.items():
        frame = flow.superpacket(marker.ljust(5 * SEGMENT, b"x"), SEGMENT)
        size, transport = len(frame) - VNET_SIZE, flow.transport()
        if flow.protocol == UDP:
            for length in (0, 7, 8, size - transport - 1, size - transport + 1, 65535):
                yield Lie(f"{name}: UDP length {length}", patched(frame, transport + 4, _u16(length)), "bad_offload")
        else:
            for words in range(5):
                yield Lie(
                    f"{name}: TCP header of {words} words",
                    patched(frame, transport + 12, bytes([words << 4])),
                    "bad_offload",
                )
        protocol_at = 9 if flow.version == 4 else 40 if flow.ip_extra else 6
        for protocol in (1, 4, 41, 47, 50, 58, 59, 132, 253, TCP if flow.protocol == UDP else UDP):
            yield Lie(f"{name}: protocol {protocol}", patched(frame, protocol_at, bytes([protocol])), "bad_offload")
        if flow.version == 4:
            for field in (0x2000, 0x2001, 0x0001, 0x1FFF):
                yield Lie(f"{name}: fragment {field:#06x}", patched(frame, 6, _u16(field)), "bad_offload")
        for lie in _of_lengths(flow, frame):
            yield lie._replace(name=f"{name}: {lie.name}")


def _of_lengths(flow: Flow, frame: bytes) -> Iterator[Lie]:
    size = len(frame) - VNET_SIZE
    for version in (0, 1, 5, 7, 15):
        yield Lie(f"version {version}", patched(frame, 0, bytes([version << 4 | 5])), "bad_ip_version")
    yield Lie("a byte behind the packet", frame + b"x", "bad_ip_length")
    yield Lie("a byte missing", frame[:-1], "bad_ip_length")
    if flow.version == 4:
        for words in range(5):
            yield Lie(f"header of {words} words", patched(frame, 0, bytes([0x40 | words])), "bad_ip_length")
        for length in (0, 19, size - 1, size + 1, 65535):
            yield Lie(f"total length {length}", patched(frame, 2, _u16(length)), "bad_ip_length")
    else:
        for length in (0, 1, size - 41, size - 39, 65535):
            reason = "bad_extension_header" if flow.ip_extra and length < 8 else "bad_ip_length"
            yield Lie(f"payload length {length}", patched(frame, 4, _u16(length)), reason)
        if flow.ip_extra:
            for words in (200, 255):
                yield Lie(f"extension header of {words}", patched(frame, 41, bytes([words])), "bad_extension_header")


def _u16(value: int) -> bytes:
    return struct.pack(">H", value)


def of_plain_packets(marker: bytes) -> Iterator[Lie]:
    """Packets that a kernel must not see: lengths that are not their own, and checksum offload for other protocols."""
    for version in (4, 6):
        flow = Flow(version=version, protocol=253)
        frame = bytes(VNET_SIZE) + flow.packet(marker)
        for lie in _of_lengths(flow, frame):
            yield lie._replace(name=f"plain, IPv{version}: {lie.name}")
        for protocol in (1, 47, 58, 132, 253):
            whole = bytes(VNET_SIZE) + Flow(version=version, protocol=protocol).packet(marker.ljust(200, b"x"))
            start = flow.transport()
            for offset in (2, 6, 8, 16):
                yield Lie(
                    f"IPv{version} protocol {protocol}, checksum at {offset}",
                    changed(whole, flags=1, checksum_start=start, checksum_offset=offset),
                    "bad_offload",
                )
    for size in (20, 39):
        yield Lie(f"IPv6 in {size} bytes", bytes(VNET_SIZE) + b"\x60".ljust(size, b"\0"), "short_packet")


OTHERS: Final = {
    4: ("10.77.0.3", "10.77.0.4", "10.77.0.255", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "8.8.8.8"),
    6: ("fd00::b", "fd00::c", "::", "::1", "fe80::1", "ff02::1", "::ffff:10.77.0.2", "2001:db8::1"),
}
"""Not the peer's: the victim's own, another peer's, and such as no packet from outside may come from."""


def of_sources(marker: bytes) -> Iterator[Lie]:
    """Every flow from an address that is not the peer's; all else is right, checksums too."""
    for name, flow in FLOWS.items():
        for address in OTHERS[flow.version]:
            for kind, frame in (
                ("superpacket", flow.superpacket(marker.ljust(5 * SEGMENT, b"x"), SEGMENT)),
                ("checksum offload", flow.partial(flow.packet(marker))),
                ("plain", bytes(VNET_SIZE) + flow.packet(marker)),
            ):
                yield Lie(f"{name}, {kind}, from {address}", with_source(frame, address, flow), "wrong_source")


def with_source(frame: bytes, address: str, flow: Flow) -> bytes:
    """The frame from another source, with the checksum that it then has."""
    before, after = ADDRESSES[flow.version][0], ip_address(address).packed
    at = flow.transport() + (6 if flow.protocol == UDP else 16)
    moved = patched(frame, 12 if flow.version == 4 else 8, after)
    field = struct.unpack_from(">H", moved, VNET_SIZE + at)[0]
    # RFC 1624: the sum's complement stands in the field of a complete packet, the sum itself in a partial one.
    partial = frame[0] & 1
    total = (field if partial else 0xFFFF ^ field) + _sum(after) + 0xFFFF - _sum(before)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return patched(moved, at, _u16(total if partial else 0xFFFF ^ total))


def _sum(data: bytes) -> int:
    return internet_checksum(data) ^ 0xFFFF


def honest(marker: bytes) -> Iterator[tuple[str, bytes]]:
    """Frames that must pass, among them such as look odd: name and frame."""
    for name, flow in FLOWS.items():
        frame = flow.superpacket(marker.ljust(5 * SEGMENT, b"x"), SEGMENT)
        size = len(frame) - VNET_SIZE
        yield f"{name}, superpacket", frame
        for header_length in (0, 1, size, 65535):
            yield f"{name}, header length {header_length}", changed(frame, header_length=header_length)
        yield f"{name}, one segment", changed(frame, gso_size=65535)
        yield f"{name}, checksum valid besides", changed(frame, flags=3)
        yield f"{name}, checksum offload", flow.partial(flow.packet(marker))
        yield f"{name}, plain", bytes(VNET_SIZE) + flow.packet(marker)
        yield f"{name}, fields without meaning", HEADER.pack(0, 0, 1, 2, 3, 4) + flow.packet(marker)
        yield f"{name}, no payload", flow.partial(flow.packet(b""))


def plaintext(*frames: bytes) -> bytes:
    """A record's plaintext: each frame behind its length."""
    return b"".join(struct.pack("<I", len(frame) - VNET_SIZE) + frame for frame in frames)


def of_frame_lengths(marker: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Plaintexts of whole records whose frames lie about their length: name, plaintext, reason."""
    frame = bytes(VNET_SIZE) + Flow(protocol=253).packet(marker)
    size = len(frame) - VNET_SIZE
    for length in (0, 1, 19, size + 1, 65535, 65536, 1 << 31, (1 << 32) - 1):
        yield f"length {length}", struct.pack("<I", length) + frame, "bad_frame_length"
    for extra in range(1, 14):
        yield f"{extra} bytes behind the last frame", plaintext(frame) + bytes(extra - 1) + b"\1", "short_frame"
    yield "an empty frame behind", plaintext(frame) + bytes(14), "bad_frame_length"
    for extra in (1, 13):
        yield f"nothing but {extra} bytes", marker[:extra], "short_frame"
