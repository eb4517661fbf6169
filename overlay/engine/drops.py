"""Counters of what was let fall, by named reason. Every datagram or packet that goes no further ends here.

Reasons are words of this program's code (those of `RemoteProtocolError.reason` among them), never bytes of a peer, so
their number is bounded. This module names those that the engine itself has; it knows nothing of what they mean for the
protocol.
"""

from collections import Counter
from typing import Final

INTERNAL_ERROR: Final = "internal_error"
"""An unexpected exception while one datagram or packet was worked on: a bug of ours, logged once with its traceback."""

# TUN → peer
NO_PEER: Final = "no_peer"  # no peer has the destination address
NOT_UNICAST: Final = "not_unicast"  # multicast or broadcast: the network has none
NO_PATH: Final = "no_path"  # the peer has no way to it right now
NOT_IP: Final = "not_ip"  # neither IPv4 nor IPv6, or too short to say
ACK_SUPERSEDED: Final = "ack_superseded"  # a later acknowledgement in the same record says it all
STAGING_FULL: Final = "staging_full"  # waited for a key; the oldest made room
STAGED_GIVEN_UP: Final = "staged_given_up"  # waited for a key that did not come
ICMP_RATE: Final = "icmp_rate"  # an error to a program of this machine, beyond so many a second

# socket out
SEND_BLOCKED: Final = "send_blocked"  # socket buffer full, and so is the queue behind it
SEND_NO_BUFFERS: Final = "send_no_buffers"
SEND_UNREACHABLE: Final = "send_unreachable"  # no route, host unreachable, link down, a local firewall's refusal
SEND_TOO_LONG: Final = "send_too_long"
SEND_NO_FAMILY: Final = "send_no_family"  # IPv6 destination on a machine without IPv6
SEND_REFUSED: Final = "send_refused"  # any other error

# links
LINK_LATE: Final = "link_late"  # waited for a link longer than a router would keep it
LINK_GONE: Final = "link_gone"  # to a link that was lost
LINK_LOST: Final = "link_lost"  # a connection that ended by itself; the reason stands in the log and is counted, too
LINK_BAD_TYPE: Final = "link_bad_type"  # neither relayed nor disco
LINK_STRANGER: Final = "link_stranger"  # in the name of another node than the one that is proven there

# socket in
RECEIVE_ERROR: Final = "receive_error"
UNKNOWN_TYPE: Final = "unknown_type"
UNKNOWN_INDEX: Final = "unknown_index"  # type 4 or 5 for no key of ours
WRONG_TRANSPORT: Final = "wrong_transport"  # type 4 from a record peer, or the other way round
KEY_EXPIRED: Final = "key_expired"
ECN_NOT_ECT_CE: Final = "ecn_not_ect_ce"  # congestion on the path, and a packet that can be told only by its loss
WRONG_SOURCE: Final = "wrong_source"  # inner source address is not one of the peer's
HANDSHAKE_RATE: Final = "handshake_rate"
INNER_ENDPOINT: Final = "inner_endpoint"  # a candidate inside the network itself; never pinged, so never used
FOREIGN_RATE: Final = "foreign_rate"  # packets of another protocol (QUIC), beyond so many a second
STUN_RATE: Final = "stun_rate"  # the same of STUN
DISCO_RATE: Final = "disco_rate"
DISCO_STRANGER: Final = "disco_stranger"  # a sender number that we have no key for
DISCO_UNASKED: Final = "disco_unasked"  # a pong to no ping of ours, or an answer to no call
DISCO_NOT_RELAYED: Final = "disco_not_relayed"  # a call-me that did not come through a relay
CALL_RATE: Final = "call_rate"  # calls beyond so many a second, of one peer or of all
CALL_REPEATED: Final = "call_repeated"  # a call that was taken before
PUNCH_STRANGER: Final = "punch_stranger"  # to a probe's socket, from elsewhere than was asked, or once too often
PUNCH_NO_SOCKET: Final = "punch_no_socket"  # no socket to be had for a probe
OFFER_UNUSABLE: Final = "offer_unusable"  # an endpoint where no node can be
RELAY_NOT_OURS: Final = "relay_not_ours"  # relayed to us by who does not know our ticket

# relay role
RELAY_UNBOUND: Final = "relay_unbound"  # source address not bound to a client by a ping
RELAY_BAD_TICKET: Final = "relay_bad_ticket"
RELAY_NO_CLIENT: Final = "relay_no_client"  # destination number unknown
RELAY_CLIENT_AWAY: Final = "relay_client_away"  # known, but not bound to an address now
RELAY_REFLECTED: Final = "relay_reflected"  # to the sender itself
RELAY_QUEUE_FULL: Final = "relay_queue_full"  # the socket took no more, and the sender has its share waiting
RELAY_RATE: Final = "relay_rate"  # the sender is over its rate, and has its share waiting

# → TUN
TUN_DOWN: Final = "tun_down"
TUN_FULL: Final = "tun_full"
TUN_REFUSED: Final = "tun_refused"
NO_TUN: Final = "no_tun"


class Drops:
    """Counts by reason; the engine thread's alone."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, reason: str, number: int = 1) -> None:
        self.counts[reason] += number

    def merge(self, other: Counter[str]) -> None:
        """Take over the counts of something that ends (a key's reader), and leave it empty."""
        self.counts.update(other)
        other.clear()
