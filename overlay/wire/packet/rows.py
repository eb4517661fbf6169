"""Packets in a row, as a sender cut them from one superpacket, read as a table: all rows must be like the first.

The quick way of `join`: about a microsecond for each packet, and the sum over its payload where it has a checksum. What
does not fit the table is left for `join` to look at by itself, so that this may be strict.

Both kinds of row have the same columns for IPv4 and IPv6, TCP and UDP. In IPv6 there is no identification and no
checksum: what stands in their places is the same in all rows. UDP has nothing in the columns of TCP alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from struct import Struct

from overlay.wire.packet import ip
from overlay.wire.packet.checksum import quarters, sum16
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.segments import TCP_ACK, TCP_PSH, Segments
from overlay.wire.packet.virtio import VIRTIO_HEADER_SIZE

_value = int.from_bytes  # big-endian


@lru_cache(maxsize=64)
def _padded_row(is_tcp: bool, transport: int, payload: int, length: int, stride: int) -> Struct:
    """Version, traffic class, length | identification | … | IPv4 header's checksum | …, addresses, ports |
    sequence number | acknowledgement, data offset, or UDP length | flags | window | checksum | urgent pointer, options
    | payload, in quarters."""
    transport_fields = f"I5sB2sH{payload - transport - 18}s" if is_tcp else "0s2s0s0sH0s"
    padding = stride - length
    return Struct(f">4sH4sH{transport - 8}s{transport_fields}{quarters(length - payload)}{padding}x")


@lru_cache(maxsize=16)
def _frame_row(is_tcp: bool, transport: int, payload: int) -> Struct:
    """Offload fields | the IP header and ports as above | sequence number, or UDP length and checksum
    | acknowledgement, data offset | flags | window, the pseudo-header's sum, urgent pointer, options."""
    transport_fields = f"I5sB{payload - transport - 14}s" if is_tcp else "I0s0s0s"
    return Struct(f">10s4sH4sH{transport - 8}s{transport_fields}")


def seems_followed(run: Segments, packets: memoryview, stride: int) -> bool:
    """Does the second of the padded packets look like one that follows the first? A cheap question."""
    if run.ended or len(packets) < 2 * stride or packets[stride : stride + 4] != packets[:4]:
        return False
    at = stride + run.transport
    return not run.is_tcp or _value(packets[at + 4 : at + 8]) == run.sequence + run.tail & 0xFFFFFFFF


def take_padded(run: Segments, packets: memoryview, stride: int) -> None:
    """Put under `run`, which is the first of the padded packets, those after it that follow and that have, like it,
    right checksums."""
    transport, payload, size, is_tcp = run.transport, run.payload, run.tail, run.is_tcp
    length = payload + size
    version4 = transport == 20
    fields = _padded_row(is_tcp, transport, payload, length, stride)
    before, number, between, ip_sum, ports, sequence, fixed, flags, window, checksum, rest, *_ = fields.unpack_from(
        packets
    )
    if version4 and sum16(packets[:20]) or not (is_tcp or checksum):
        run.judge(right=False)
        return
    # All else being equal, IPv4's checksum is right where this sum is the same.
    ip_total = (number + ip_sum) % 0xFFFF
    next_number = number if run.counts_identification else -1
    # The sum over what is the same in all rows, the pseudo-header with it.
    protocol = ip.TCP if is_tcp else ip.UDP
    same = sum16(packets[12 if version4 else 8 : payload]) + protocol + length - transport - checksum
    if is_tcp:
        same -= sequence + flags
    next_sequence = sequence
    odd = size & 1
    parts: list[Octets] = []
    taken = 0
    for (
        its_before, its_number, its_between, its_ip_sum, its_ports, its_sequence, its_fixed, its_flags, its_window,
        its_checksum, its_rest, a, b, c, d,
    ) in islice(fields.iter_unpack(packets[: len(packets) // stride * stride]), 1 + run.room()):  # fmt: skip
        if (
            its_ports != ports
            or its_before != before
            or its_between != between
            or its_fixed != fixed
            or its_window != window
            or its_rest != rest
        ):
            break
        if version4:
            if (its_number + its_ip_sum) % 0xFFFF != ip_total:
                break
            if next_number >= 0:
                if its_number != next_number:
                    break
                next_number = next_number + 1 & 0xFFFF
        elif its_ip_sum != ip_sum or its_number != number:
            break
        total = _value(a) + _value(b) + _value(c) + _value(d)
        if odd:
            total <<= 8
        if is_tcp:
            if its_sequence != next_sequence or its_flags & ~TCP_PSH != TCP_ACK:
                break
            next_sequence = next_sequence + size & 0xFFFFFFFF
            total += its_sequence + its_flags
        if not its_checksum and not is_tcp or (same + its_checksum + total) % 0xFFFF:
            break
        parts += (a, b, c, d)
        taken += 1
        if its_flags != flags:
            run.pushed = run.ended = True
            break
    run.judge(right=taken > 0)
    if taken > 1:
        run.parts = parts
        run.packets = run.segments = taken
        run.tail = taken * size


def take_frames(run: Segments, frames: Sequence[memoryview], at: int) -> None:
    """Put under `run`, which is that of the frame before, the frames from `at` on that follow, all as long as it and
    with a checksum still to be made."""
    is_tcp, payload, size = run.is_tcp, run.payload, run.tail
    version4 = run.transport == 20
    model = frames[at - 1]
    unpack = _frame_row(is_tcp, run.transport, payload).unpack_from
    offload, before, number, between, ip_sum, ports, sequence, fixed, flags, rest = unpack(model)
    ip_total = (number + ip_sum) % 0xFFFF
    segments = run.segments
    next_number = number + segments & 0xFFFF if run.counts_identification else -1
    step = size if is_tcp else 0
    next_sequence = sequence + step & 0xFFFFFFFF
    length = len(model)
    start = VIRTIO_HEADER_SIZE + payload
    parts = run.parts
    for frame in islice(frames, at, at + run.room()):
        if len(frame) != length:
            break
        (
            its_offload, its_before, its_number, its_between, its_ip_sum, its_ports, its_sequence, its_fixed,
            its_flags, its_rest,
        ) = unpack(frame)  # fmt: skip
        if (
            its_sequence != next_sequence
            or its_ports != ports
            or its_before != before
            or its_between != between
            or its_fixed != fixed
            or its_rest != rest
            or its_offload != offload
            or (its_flags != flags and its_flags != TCP_ACK | TCP_PSH)
        ):
            break
        if version4:
            if (its_number + its_ip_sum) % 0xFFFF != ip_total:
                break
            if next_number >= 0:
                if its_number != next_number:
                    break
                next_number = next_number + segments & 0xFFFF
        elif its_ip_sum != ip_sum or its_number != number:
            break
        parts.append(frame[start:])
        if its_flags != flags:
            run.pushed = run.ended = True
            break
        next_sequence = next_sequence + step & 0xFFFFFFFF
    taken = len(parts)
    run.packets = taken
    run.segments = segments * taken
    run.tail = size * taken
