"""What peers said last of where they are, kept in the state folder: when this node comes up again while the server is
away, nobody passes calls on, and nodes of one LAN find each other all the same."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import anyio.to_thread
import msgspec

from overlay.daemon.state import StateDir
from overlay.engine.api import PeerConfig
from overlay.errors import UserError
from overlay.wire.disco import Offer
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

FILE = "whereabouts.json"
MAX_PEERS = 1024

_log = logging.getLogger(__name__)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Of one peer, as texts."""

    lan: tuple[str, ...] = ()  # of its interfaces
    outside: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, kw_only=True):
    peers: dict[int, Said]


class Whereabouts:
    """`before`: what was said until the last end of this daemon, by node number. What is said since, the engine knows
    itself."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._said = self._read()
        self._unsaved = False
        self.before = {number: _parsed(said) for number, said in self._said.items()}

    def said(self, number: int, offers: Sequence[Offer]) -> None:
        """A peer said where it is. Predictions are left out: they hold for seconds."""
        lan = tuple(format_endpoint(offer.endpoint) for offer in offers if offer.origin == "interface")
        kept = (offer for offer in offers if offer.origin not in ("interface", "predicted"))
        said = Said(lan=lan, outside=tuple(format_endpoint(offer.endpoint) for offer in kept))
        if said != self._said.get(number) and (number in self._said or len(self._said) < MAX_PEERS):
            self._said[number] = said
            self._unsaved = True

    def keep_only(self, numbers: Iterable[int]) -> None:
        """The network has these nodes now: others are forgotten."""
        for number in self._said.keys() - set(numbers):
            del self._said[number]
            self.before.pop(number, None)
            self._unsaved = True

    def complete(self, peer: PeerConfig) -> PeerConfig:
        """What the map says of a peer, and what the peer said itself."""
        lan, outside = self.before.get(peer.number, ((), ()))
        return replace(
            peer,
            endpoints=tuple(dict.fromkeys((*peer.endpoints, *lan, *outside))),
            lan_endpoints=tuple(dict.fromkeys((*peer.lan_endpoints, *lan))),
        )

    async def save(self) -> None:
        """Write what is new. A disk that refuses is no reason to end: the next time is another try."""
        if not self._unsaved:
            return
        self._unsaved = False
        try:
            await anyio.to_thread.run_sync(self._state.write_struct, FILE, _File(peers=dict(self._said)))
        except UserError as error:
            self._unsaved = True
            _log.warning("%s", error)

    def _read(self) -> dict[int, Said]:
        try:
            stored = self._state.read_struct(FILE, _File)
            if stored is None:
                return {}
            for each in stored.peers.values():
                _parsed(each)
        except (UserError, ValueError) as error:
            _log.warning("what peers said of where they are is forgotten: %s", error)
            return {}
        return stored.peers


def _parsed(said: Said) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    return tuple(map(parse_endpoint, said.lan)), tuple(map(parse_endpoint, said.outside))
