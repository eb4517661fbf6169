"""The cryptographic building blocks of the handshake, under the paper's names (§5.4). Pure functions of bytes.

Also the blocks of the control channel (Noise IK) and of disco. Not for packets at speed: those are sealed by the
engine's record layer. All arguments are `bytes`, not views: libsodium's binding takes nothing else.
"""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError

from overlay.errors import LocalProtocolError, RemoteProtocolError

KEY_SIZE = 32
HASH_SIZE = 32
MAC_SIZE = 16
TAG_SIZE = 16
XNONCE_SIZE = 24

_ZERO_NONCE_HEAD = bytes(4)


def hash_(*parts: bytes) -> bytes:
    """HASH: BLAKE2s-256 of the concatenation of `parts`, 32 bytes."""
    state = hashlib.blake2s()
    for part in parts:
        state.update(part)
    return state.digest()


def mac(key: bytes, data: bytes) -> bytes:
    """MAC: keyed BLAKE2s with a digest of 16 bytes; `key` up to 32 bytes (16 for a cookie)."""
    return hashlib.blake2s(data, key=key, digest_size=MAC_SIZE).digest()


def hmac_(key: bytes, data: bytes) -> bytes:
    """HMAC-BLAKE2s-256 in the form of RFC 2104 (not keyed BLAKE2s), 32 bytes."""
    return hmac.digest(key, data, hashlib.blake2s)


def kdf1(key: bytes, input_: bytes) -> bytes:
    """KDF₁: HKDF of `input_` under the chaining key `key`, one output of 32 bytes."""
    return hmac_(hmac_(key, input_), b"\x01")


def kdf2(key: bytes, input_: bytes) -> tuple[bytes, bytes]:
    """KDF₂: two outputs of 32 bytes."""
    secret = hmac_(key, input_)
    first = hmac_(secret, b"\x01")
    return first, hmac_(secret, first + b"\x02")


def kdf3(key: bytes, input_: bytes) -> tuple[bytes, bytes, bytes]:
    """KDF₃: three outputs of 32 bytes."""
    secret = hmac_(key, input_)
    first = hmac_(secret, b"\x01")
    second = hmac_(secret, first + b"\x02")
    return first, second, hmac_(secret, second + b"\x03")


def clamp(private_key: bytes) -> bytes:
    """Make 32 random bytes an X25519 private key (RFC 7748 §5), so that it prints the same as in other programs."""
    _require_key(private_key, "private key")
    return bytes((private_key[0] & 248, *private_key[1:31], (private_key[31] & 127) | 64))


def public_key(private_key: bytes) -> bytes:
    """The X25519 public key of a private one, 32 bytes each."""
    _require_key(private_key, "private key")
    return crypto_scalarmult_base(private_key)


def dh(private_key: bytes, public: bytes) -> bytes:
    """X25519. Raises `RemoteProtocolError("low_order_point")` for a shared secret of all zeros (RFC 7748 §6.1)."""
    _require_key(private_key, "private key")
    _require_key(public, "public key")
    try:
        return crypto_scalarmult(private_key, public)
    except SodiumError as error:
        raise RemoteProtocolError("low_order_point") from error


def aead_seal(key: bytes, counter: int, plaintext: bytes, aad: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439) with the nonce 4 zero bytes ‖ `counter` u64 little-endian; adds 16 bytes.

    OpenSSL's, which takes half of libsodium's time for a control message of 64 KiB, and for an empty one too.
    """
    nonce = _ZERO_NONCE_HEAD + counter.to_bytes(8, "little")
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)


def aead_open(key: bytes, counter: int, ciphertext: bytes, aad: bytes) -> bytes:
    """The inverse of `aead_seal`. Raises `RemoteProtocolError("bad_tag")`."""
    if len(ciphertext) < TAG_SIZE:
        raise RemoteProtocolError("bad_tag", "shorter than its tag")
    nonce = _ZERO_NONCE_HEAD + counter.to_bytes(8, "little")
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, aad)
    except InvalidTag as error:
        raise RemoteProtocolError("bad_tag") from error


def xaead_seal(key: bytes, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a random nonce of 24 bytes; adds 16 bytes."""
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, aad, nonce, key)


def xaead_open(key: bytes, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """The inverse of `xaead_seal`. Raises `RemoteProtocolError("bad_tag")`."""
    if len(ciphertext) < TAG_SIZE:
        raise RemoteProtocolError("bad_tag", "shorter than its tag")
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, aad, nonce, key)
    except CryptoError as error:
        raise RemoteProtocolError("bad_tag") from error


def equal(left: bytes, right: bytes) -> bool:
    """Compare secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(left, right)


def _require_key(key: bytes, what: str) -> None:
    # libsodium's binding reads 32 bytes from wherever it is pointed at: a shorter key would be an overread.
    if len(key) != KEY_SIZE:
        raise LocalProtocolError(f"{what} of {len(key)} bytes instead of {KEY_SIZE}")
