"""The Internet checksum (RFC 1071) over whole buffers. Pure arithmetic; knows where no field of a packet is.

A big number's remainder by 0xffff is the ones'-complement sum of its 16-bit digits, because 2**16 ≡ 1 (mod 0xffff): one
`int.from_bytes` and one division stand for a loop over words. Sums are remainders too: 0 stands for 0 and 0xffff alike,
which is right for every packet, since none is all zeros.
"""

from overlay.wire.packet.ip import Octets


def sum16(data: Octets) -> int:
    """Sum of big-endian 16-bit words, modulo 0xffff; an odd last byte counts as if a zero followed it."""
    value = int.from_bytes(data, "big")
    return (value << 8 if len(data) & 1 else value) % 0xFFFF


def complement(total: int) -> int:
    """The checksum field of IPv4 and TCP for a sum of any size."""
    return -total % 0xFFFF


def complement_udp(total: int) -> int:
    """The checksum field of UDP: 0 would mean that there is none, and is sent as 0xffff (RFC 768)."""
    return -total % 0xFFFF or 0xFFFF


def is_complete(data: Octets, protocol: int, length: int) -> bool:
    """Is the checksum inside right? `data`: source and destination address, then header and payload of `length` bytes.

    With IPv4 without options and IPv6 without extension headers these lie side by side in the packet, so that one sum
    covers pseudo-header and payload (RFC 9293 §3.1, RFC 8200 §8.1).
    """
    return (sum16(data) + protocol + length) % 0xFFFF == 0


def pseudo_header(addresses: Octets, protocol: int, length: int) -> int:
    """Sum over the pseudo-header: what offload wants in the checksum field. `length`: transport header and payload."""
    return (int.from_bytes(addresses, "big") + protocol + length) % 0xFFFF
