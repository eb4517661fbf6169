"""The server's keys: the X25519 node key that invites pin, and the Ed25519 key that signs network maps."""

from collections.abc import Callable

import msgspec
from nacl.bindings import crypto_scalarmult_base
from nacl.signing import SigningKey

from overlay.daemon.state import StateDir, corrupt

FILE_NAME = "server-keys.json"
_KEY_SIZE = 32  # bytes, of either private key


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Both private keys, 32 bytes each. `repr` shows the public one."""

    node_key: bytes  # X25519, clamped
    map_seed: bytes  # Ed25519

    def __repr__(self) -> str:
        return f"ServerKeys(public={self.public_key.hex()})"

    @property
    def public_key(self) -> bytes:
        """X25519 public: the server's identity."""
        return crypto_scalarmult_base(self.node_key)

    @property
    def map_key(self) -> SigningKey:
        return SigningKey(self.map_seed)


def load_or_make_keys(state: StateDir, random_bytes: Callable[[int], bytes]) -> ServerKeys:
    """The keys in the state folder; made and kept there on the first start.

    Raises `UserError`: "state-corrupt", or what the file system refuses.
    """
    keys = state.read_struct(FILE_NAME, ServerKeys)
    if keys is None:
        keys = ServerKeys(node_key=_clamp(random_bytes(_KEY_SIZE)), map_seed=random_bytes(_KEY_SIZE))
        state.write_struct(FILE_NAME, keys)
    if len(keys.node_key) != _KEY_SIZE or len(keys.map_seed) != _KEY_SIZE:
        raise corrupt(state.path / FILE_NAME, "a key does not have 32 bytes")
    return keys


def _clamp(key: bytes) -> bytes:
    """RFC 7748 §5: the form in which WireGuard's tools show a private key too."""
    return bytes([key[0] & 248]) + key[1:31] + bytes([(key[31] & 127) | 64])
