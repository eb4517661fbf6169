"""What a session asks of the engine, in the order in which it is to be done. Values only."""

from dataclasses import dataclass, field

from overlay.wire.wireguard.keypair import Keypair


@dataclass(frozen=True, slots=True)
class SendHandshake:
    """Send this initiation to wherever the peer is believed to be."""

    datagram: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Send an empty packet under this key pair, then call `data_sent(…, empty=True)`.

    The first one under an initiator's key is its confirmation: the peer sends nothing under that key before it.
    """

    keypair: Keypair


@dataclass(frozen=True, slots=True)
class KeypairAdded:
    """From now on packets to `keypair.local_index` may come."""

    keypair: Keypair


@dataclass(frozen=True, slots=True)
class KeypairRemoved:
    """The key pair of this index is dead and wiped: drop all that was made from its keys."""

    local_index: int


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """`sending_keypair` has a key: staged packets can go."""


@dataclass(frozen=True, slots=True)
class DropStaged:
    """The peer does not answer: packets that wait for a key should be thrown away."""


SessionEvent = SendHandshake | SendKeepalive | KeypairAdded | KeypairRemoved | HandshakeCompleted | DropStaged
