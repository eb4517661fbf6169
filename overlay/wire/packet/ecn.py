"""The traffic class across the tunnel: congestion marks (RFC 6040) and the DSCP (RFC 2983). Pure functions over bytes.

    DSCP 6 bits | ECN 2 bits      IPv4: the second byte; IPv6: bits 4 to 11

On the way in, the outer header gets the inner one's ECN field (normal mode, RFC 6040 §4.1), so that a router in between
may mark where it would drop; on the way out, `decapsulate` brings a mark into the inner header. The DSCP stays with the
inner packet (the pipe model, RFC 2983 §3); whether the outer header gets a copy is the caller's, by the mask that it
takes of `traffic_class`. The outer header is not authenticated, nor could it be: whoever is on the path may mark.
Nothing here knows records or sockets.
"""

from typing import Final

from overlay.wire.packet.ip import Octets

NOT_ECT: Final = 0  # RFC 3168 §5: not ECN-capable: routers drop
ECT_1: Final = 1
ECT_0: Final = 2
CE: Final = 3  # congestion experienced

ECN_MASK: Final = 0x03
CLASS_MASK: Final = 0xFF

_DROP: Final = -1
_DECAPSULATED: Final = (
    # RFC 6040 §4.2, figure 4. Inner: Not-ECT, ECT(1), ECT(0), CE.
    (NOT_ECT, ECT_1, ECT_0, CE),  # outer Not-ECT
    (NOT_ECT, ECT_1, ECT_1, CE),  # outer ECT(1)
    (NOT_ECT, ECT_1, ECT_0, CE),  # outer ECT(0)
    (_DROP, CE, CE, CE),  # outer CE; the sender of a Not-ECT packet knows no other sign of congestion than its loss
)


def traffic_class(packet: Octets) -> int:
    """DSCP and ECN of an IP packet of at least 2 bytes: 0 … 255. Another version than 4 or 6 counts as 6."""
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] & 15) << 4 | packet[1] >> 4


def changes_inner(outer: int) -> bool:
    """May this outer ECN field change an inner header? Only ECT(1) and CE do: for all others there is no work."""
    return outer & 1 != 0


def joined(one: int, other: int) -> int:
    """The ECN field of what two fragments with these were put together to (RFC 3168 §5.3): CE if either has it.

    Fields that differ otherwise stand for no mark: what the inner header says is right then. (Not-ECT beside CE may not
    become CE in a reassembled packet. Here it may: the inner packet says itself whether its transport understands.)
    """
    if one == other:
        return one
    return CE if CE in (one, other) else NOT_ECT


def decapsulate(packet: memoryview, outer: int) -> bool:
    """Bring an outer ECN field (0 … 3) into an inner packet, in place. False: the packet must be dropped.

    The packet need not be checked yet: what is no IP packet is left as it is.
    """
    if len(packet) < 20:
        return True
    version = packet[0] >> 4
    second = packet[1]
    if version == 4:
        inner = second & ECN_MASK
        after = _DECAPSULATED[outer][inner]
        if after == _DROP:
            return False
        if after != inner:
            packet[1] = second ^ inner ^ after
            # RFC 1624 equation 4, in remainders by 0xffff; -0 cannot come out, as for a checksum made anew.
            checksum = ((packet[10] << 8 | packet[11]) - after + inner) % 0xFFFF
            packet[10], packet[11] = checksum >> 8, checksum & 0xFF
    elif version == 6:
        inner = second >> 4 & ECN_MASK
        after = _DECAPSULATED[outer][inner]
        if after == _DROP:
            return False
        packet[1] = second ^ (inner ^ after) << 4
    return True
