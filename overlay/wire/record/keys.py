"""From a session's transport keys to a record layer's AEAD. Knows no packets."""

from hashlib import blake2s
from typing import Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

Cipher = Literal["aes-256-gcm", "chacha20-poly1305"]
Aead = AESGCM | ChaCha20Poly1305

KEY_SIZE = 32
_LABEL = b"overlay record v1 "


def record_key(transport_key: bytes, cipher: Cipher) -> bytes:
    """A transport key of the WireGuard handshake, 32 bytes → the record key of the same direction, 32 bytes.

    Label and cipher name go in, so that no key is ever used in two formats or by two ciphers.
    """
    return blake2s(_LABEL + cipher.encode("ascii"), key=transport_key).digest()


def record_aead(transport_key: bytes, cipher: Cipher) -> Aead:
    """The AEAD that seals or opens the records of one direction."""
    key = record_key(transport_key, cipher)
    return AESGCM(key) if cipher == "aes-256-gcm" else ChaCha20Poly1305(key)
