"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard runs it (paper §5.4.2, §5.4.3, §5.4.5), in steps of bytes.

Knows no peers, timers or macs: each function takes all that it needs and returns the next state as a value, so that a
message that fails leaves nothing changed. Names follow the paper: C chaining key, H hash, E ephemeral, S static.
"""

from dataclasses import dataclass, field
from typing import Final

from overlay.wire.wireguard.messages import Initiation, Response
from overlay.wire.wireguard.primitives import (
    KEY_SIZE,
    aead_open,
    aead_seal,
    dh,
    hash_,
    kdf1,
    kdf2,
    kdf3,
    public_key,
)

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
NO_PRESHARED_KEY: Final = bytes(KEY_SIZE)

_INITIAL_CHAIN: Final = hash_(CONSTRUCTION)
_INITIAL_HASH: Final = hash_(_INITIAL_CHAIN, IDENTIFIER)


@dataclass(frozen=True, slots=True)
class PendingInitiation:
    """What the initiator keeps between its message and the response."""

    local_index: int
    ephemeral_private: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenedInitiation:
    """What the responder has after opening the static key: who claims to speak, but not yet that it is so."""

    remote_index: int
    remote_ephemeral: bytes
    remote_static: bytes
    chain: bytes = field(repr=False)
    hash: bytes = field(repr=False)
    timestamp_box: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConsumedInitiation:
    """An authentic initiation. Whether it is fresh is for the caller to judge by `timestamp` (12 bytes TAI64N)."""

    remote_index: int
    remote_ephemeral: bytes
    remote_static: bytes
    timestamp: bytes
    chain: bytes = field(repr=False)
    hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """The outcome for one side, 32 bytes each."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


def create_initiation(
    *,
    static_public: bytes,
    remote_static: bytes,
    static_static: bytes,
    ephemeral_private: bytes,
    sender_index: int,
    timestamp: bytes,
) -> tuple[Initiation, PendingInitiation]:
    """Type 1. `static_static` is DH(own static, remote static). Raises `RemoteProtocolError("low_order_point")`."""
    ephemeral = public_key(ephemeral_private)
    chain = kdf1(_INITIAL_CHAIN, ephemeral)
    transcript = hash_(hash_(_INITIAL_HASH, remote_static), ephemeral)

    chain, key = kdf2(chain, dh(ephemeral_private, remote_static))
    static_box = aead_seal(key, 0, static_public, transcript)
    transcript = hash_(transcript, static_box)

    chain, key = kdf2(chain, static_static)
    timestamp_box = aead_seal(key, 0, timestamp, transcript)
    transcript = hash_(transcript, timestamp_box)

    message = Initiation(sender_index, ephemeral, static_box, timestamp_box)
    return message, PendingInitiation(sender_index, ephemeral_private, chain, transcript)


def open_initiation(message: Initiation, *, static_private: bytes, static_public: bytes) -> OpenedInitiation:
    """First half of consuming type 1: who is it? Raises `RemoteProtocolError`: `low_order_point`, `bad_tag`."""
    chain = kdf1(_INITIAL_CHAIN, message.ephemeral)
    transcript = hash_(hash_(_INITIAL_HASH, static_public), message.ephemeral)
    chain, key = kdf2(chain, dh(static_private, message.ephemeral))
    remote_static = aead_open(key, 0, message.static_box, transcript)
    return OpenedInitiation(
        remote_index=message.sender_index,
        remote_ephemeral=message.ephemeral,
        remote_static=remote_static,
        chain=chain,
        hash=hash_(transcript, message.static_box),
        timestamp_box=message.timestamp_box,
    )


def consume_initiation(opened: OpenedInitiation, *, static_static: bytes) -> ConsumedInitiation:
    """Second half: is it really so? Raises `RemoteProtocolError("bad_tag")`."""
    chain, key = kdf2(opened.chain, static_static)
    timestamp = aead_open(key, 0, opened.timestamp_box, opened.hash)
    return ConsumedInitiation(
        remote_index=opened.remote_index,
        remote_ephemeral=opened.remote_ephemeral,
        remote_static=opened.remote_static,
        timestamp=timestamp,
        chain=chain,
        hash=hash_(opened.hash, opened.timestamp_box),
    )


def create_response(
    consumed: ConsumedInitiation, *, ephemeral_private: bytes, sender_index: int, preshared_key: bytes
) -> tuple[Response, TransportKeys]:
    """Type 2 and the responder's keys. Raises `RemoteProtocolError("low_order_point")`."""
    ephemeral = public_key(ephemeral_private)
    chain = kdf1(consumed.chain, ephemeral)
    transcript = hash_(consumed.hash, ephemeral)
    chain = kdf1(chain, dh(ephemeral_private, consumed.remote_ephemeral))
    chain = kdf1(chain, dh(ephemeral_private, consumed.remote_static))
    chain, tau, key = kdf3(chain, preshared_key)
    empty_box = aead_seal(key, 0, b"", hash_(transcript, tau))

    receive, send = kdf2(chain, b"")
    return Response(sender_index, consumed.remote_index, ephemeral, empty_box), TransportKeys(send, receive)


def consume_response(
    message: Response, pending: PendingInitiation, *, static_private: bytes, preshared_key: bytes
) -> TransportKeys:
    """The initiator's keys. Raises `RemoteProtocolError`: `low_order_point`, `bad_tag` (a wrong preshared key too)."""
    chain = kdf1(pending.chain, message.ephemeral)
    transcript = hash_(pending.hash, message.ephemeral)
    chain = kdf1(chain, dh(pending.ephemeral_private, message.ephemeral))
    chain = kdf1(chain, dh(static_private, message.ephemeral))
    chain, tau, key = kdf3(chain, preshared_key)
    aead_open(key, 0, message.empty_box, hash_(transcript, tau))

    send, receive = kdf2(chain, b"")
    return TransportKeys(send, receive)
