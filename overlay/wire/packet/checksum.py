"""The Internet checksum (RFC 1071) over whole buffers. Pure arithmetic; knows where no field of a packet is.

A big number's remainder by 0xffff is the ones'-complement sum of its 16-bit digits, because 2**16 ≡ 1 (mod 0xffff): one
`int.from_bytes` and one division stand for a loop over words. The division costs twice what the conversion does, so
large pieces are cut in four first and the quarters added: a quarter of the division for a third less time in all.
Sums are remainders too: 0 stands for 0 and 0xffff alike, which is right for every packet, since none is all zeros.
"""

from functools import lru_cache
from struct import Struct

from overlay.wire.packet.ip import Octets

_LARGE = 400
"""Bytes from which quarters are cheaper than the whole."""

_value = int.from_bytes  # big-endian


def sum16(data: Octets) -> int:
    """Sum of big-endian 16-bit words, modulo 0xffff; an odd last byte counts as if a zero followed it."""
    size = len(data)
    if size < _LARGE:
        value = _value(data)
    else:
        quarter = size // 8 * 2
        first, second, third = size - 3 * quarter, size - 2 * quarter, size - quarter
        value = _value(data[:first]) + _value(data[first:second]) + _value(data[second:third]) + _value(data[third:])
    return (value << 8 if size & 1 else value) % 0xFFFF


def sums(data: memoryview, size: int) -> list[int]:
    """`sum16` of each piece of `size` bytes of `data`; the last may be shorter. `data` is not empty."""
    whole = len(data) // size * size
    odd = 8 * (size & 1)
    found = [
        (_value(a) + _value(b) + _value(c) + _value(d) << odd) % 0xFFFF
        for a, b, c, d in _pieces(size).iter_unpack(data[:whole])
    ]
    if whole < len(data):
        found.append(sum16(data[whole:]))
    return found


def quarters(size: int) -> str:
    """A `struct` format that cuts `size` bytes into four pieces, whose values added have the sum of the whole.

    All but the first have an even size, so that the words of each stand at the same place of a number; a sum over an
    odd `size` is still to be shifted by 8 bits.
    """
    quarter = size // 8 * 2
    return f"{size - 3 * quarter}s{quarter}s{quarter}s{quarter}s"


@lru_cache(maxsize=64)
def _pieces(size: int) -> Struct:
    return Struct(quarters(size))


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
