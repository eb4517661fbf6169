"""Packets for tests, built with struct and a checksum that adds word by word: independent of the code under test."""

import struct
from dataclasses import dataclass

ADDRESSES = {
    4: (bytes([10, 77, 0, 2]), bytes([10, 77, 0, 3])),
    6: (bytes.fromhex("fd00000000000000000000000000000a"), bytes.fromhex("fd00000000000000000000000000000b")),
}
TCP = 6
UDP = 17
ACK = 0x10
PSH = 0x08
FIN = 0x01
CWR = 0x80


def internet_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What the packets of a flow share."""

    version: int = 4
    protocol: int = TCP
    ports: tuple[int, int] = (40000, 443)
    hop_limit: int = 64
    traffic_class: int = 0
    dont_fragment: bool = True
    tcp_options: bytes = b""
    ip_extra: bytes = b""  # IPv4 options, or an IPv6 extension header (whose type is `extension`)
    extension: int = 60
    window: int = 501
    acknowledgement: int = 7

    def packet(self, payload: bytes, *, identification: int = 0, sequence: int = 0, flags: int = ACK) -> bytes:
        """One plain packet with right checksums."""
        source, destination = ADDRESSES[self.version]
        ports = struct.pack(">HH", *self.ports)
        if self.protocol == TCP:
            words = (20 + len(self.tcp_options)) // 4
            rest = struct.pack(">IIBBHHH", sequence, self.acknowledgement, words << 4, flags, self.window, 0, 0)
            segment = ports + rest + self.tcp_options + payload
            field = 16
        elif self.protocol == UDP:
            segment = ports + struct.pack(">HH", 8 + len(payload), 0) + payload
            field = 6
        else:
            return self.ip_header(len(payload), identification) + payload
        pseudo = source + destination + struct.pack(">IBBBB", len(segment), 0, 0, 0, self.protocol)
        checksum = internet_checksum(pseudo + segment)
        if self.protocol == UDP:
            checksum = checksum or 0xFFFF
        segment = segment[:field] + struct.pack(">H", checksum) + segment[field + 2 :]
        return self.ip_header(len(segment), identification) + segment

    def ip_header(self, length: int, identification: int = 0) -> bytes:
        source, destination = ADDRESSES[self.version]
        extra = self.ip_extra
        if self.version == 6:
            first = 6 << 28 | self.traffic_class << 20 | 0xABCDE
            protocol = self.extension if extra else self.protocol
            extra = bytes([self.protocol]) + extra[1:] if extra else b""
            return (
                struct.pack(">IHBB", first, length + len(extra), protocol, self.hop_limit)
                + source
                + destination
                + extra
            )
        header = struct.pack(
            ">BBHHHBBH4s4s",
            0x40 | (20 + len(extra)) // 4,
            self.traffic_class,
            20 + len(extra) + length,
            identification,
            0x4000 if self.dont_fragment else 0,
            self.hop_limit,
            self.protocol,
            0,
            source,
            destination,
        )
        header += extra
        return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:]

    def transport(self) -> int:
        """Offset of the transport header."""
        return (20 if self.version == 4 else 40) + len(self.ip_extra)

    def stream(
        self, data: bytes, size: int, *, identification: int = 0, sequence: int = 0, last: int = ACK
    ) -> list[bytes]:
        """`data` as a stack would send it, `size` bytes of payload a packet; `last`: TCP flags of the last one."""
        count = -(-len(data) // size)
        return [
            self.packet(
                data[index * size : (index + 1) * size],
                identification=identification + index & 0xFFFF,
                sequence=sequence + index * size & 0xFFFFFFFF,
                flags=last if index == count - 1 else ACK,
            )
            for index in range(count)
        ]

    def superpacket(
        self, data: bytes, size: int, *, identification: int = 0, sequence: int = 0, flags: int = ACK
    ) -> bytes:
        """A frame (virtio-net header and packet) as a TUN device gives it for a send of `data`."""
        whole = bytearray(self.packet(data, identification=identification, sequence=sequence, flags=flags))
        gso_type = 5 if self.protocol == UDP else 1 if self.version == 4 else 4
        return self.partial(whole, gso_type, size)

    def partial(self, packet: bytes | bytearray, gso_type: int = 0, size: int = 0) -> bytes:
        """A frame whose checksum is still to be made: the pseudo-header's sum stands in its place."""
        whole = bytearray(packet)
        transport = self.transport()
        length = len(whole) - transport
        offset, payload = (6, 8) if self.protocol == UDP else (16, 20 + len(self.tcp_options))
        source, destination = ADDRESSES[self.version]
        pseudo = source + destination + struct.pack(">IBBBB", length, 0, 0, 0, self.protocol)
        struct.pack_into(">H", whole, transport + offset, internet_checksum(pseudo) ^ 0xFFFF)
        return struct.pack("<BBHHHH", 1, gso_type, transport + payload, size, transport, offset) + bytes(whole)
