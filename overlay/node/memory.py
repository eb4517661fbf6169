"""What a node keeps in its state folder, so that it comes up again by itself and works while the server is away.

The key is the node's identity: it is made once and never leaves the folder. All files are 0600 (`StateDir` sees to it).
"""

import logging
import secrets

import anyio
import anyio.to_thread
import msgspec

from overlay.daemon.state import StateDir, corrupt
from overlay.errors import UserError
from overlay.wire.control.messages import NetworkMap, Welcome

KEY_FILE = "node-key.json"
JOINED_FILE = "joined.json"
WELCOME_FILE = "welcome.json"
MAP_FILE = "map.json"
_KEY_SIZE = 32  # bytes
MAP_WRITE_INTERVAL = 2.0
"""Seconds between writes of the map at the most: each costs two syncs of the disk, and a busy network changes often."""

_log = logging.getLogger(__name__)


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    private_key: bytes


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Which network this state folder belongs to."""

    addresses: tuple[str, ...]  # of the server, "203.0.113.1:443"
    server_key: bytes  # X25519 public
    domain: str
    pin: bytes = b""  # of the server's certificate; empty: not pinned
    name: str = ""  # that a person chose for this node; "" for the machine's own


def load_or_make_key(state: StateDir) -> bytes:
    """The node's private key, X25519, clamped. Raises `UserError`: "state-corrupt", what the file system refuses."""
    stored = state.read_struct(KEY_FILE, _KeyFile)
    if stored is None:
        stored = _KeyFile(private_key=_clamp(secrets.token_bytes(_KEY_SIZE)))
        state.write_struct(KEY_FILE, stored)
    if len(stored.private_key) != _KEY_SIZE:
        raise corrupt(state.path / KEY_FILE, "a key has 32 bytes")
    return stored.private_key


def _clamp(key: bytes) -> bytes:
    """RFC 7748 section 5."""
    return bytes([key[0] & 248]) + key[1:31] + bytes([(key[31] & 127) | 64])


class Memory:
    """Joined network, last welcome, last map: as read at the start, and kept up to date."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.joined = state.read_struct(JOINED_FILE, Joined)
        self.welcome = state.read_struct(WELCOME_FILE, Welcome)
        self.network_map = state.read_struct(MAP_FILE, NetworkMap)
        self._unsaved = False
        self._map_changed = anyio.Event()

    def save_joined(self, joined: Joined) -> None:
        """Raises `UserError` if it cannot be written."""
        if joined != self.joined:
            self._state.write_struct(JOINED_FILE, joined)
            self.joined = joined

    def save_welcome(self, welcome: Welcome) -> None:
        """Raises `UserError` if it cannot be written."""
        if welcome != self.welcome:
            self._state.write_struct(WELCOME_FILE, welcome)
            self.welcome = welcome

    def set_map(self, network_map: NetworkMap) -> None:
        """Keep this map; it is written soon."""
        self.network_map = network_map
        self._unsaved = True
        self._map_changed.set()

    async def keep_map(self) -> None:
        """Write maps as they come, until cancelled; the last one then too."""
        try:
            while True:
                await self._map_changed.wait()
                self._map_changed = anyio.Event()
                await self._save_map()
                await anyio.sleep(MAP_WRITE_INTERVAL)
        finally:
            with anyio.CancelScope(shield=True):
                await self._save_map()

    async def _save_map(self) -> None:
        network_map = self.network_map
        if not self._unsaved or network_map is None:
            return
        self._unsaved = False
        try:
            await anyio.to_thread.run_sync(self._state.write_struct, MAP_FILE, network_map)
        except UserError as error:
            # A full disk must not end a network that works: the next map is another try.
            self._unsaved = True
            _log.warning("%s %s", error, error.hint)
