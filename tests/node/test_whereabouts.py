"""What peers said of where they are: kept over the daemon's life, and no longer than the peers are in the network."""

from pathlib import Path

import anyio
import pytest

from overlay.daemon.state import StateDir
from overlay.engine.api import PeerConfig
from overlay.node.whereabouts import FILE, MAX_PEERS, Whereabouts
from overlay.wire.disco import Offer

LAN, SEEN, NEXT = ("192.168.1.3", 5), ("203.0.113.3", 6), ("203.0.113.3", 7)
OFFERS = (Offer(SEEN, "observed"), Offer(NEXT, "predicted"), Offer(LAN, "interface"))
PEER = PeerConfig(number=3, public_key=bytes(32), allowed=(), endpoints=(SEEN,))


def test_it_is_there_at_the_next_start_and_completes_what_the_map_says(tmp_path: Path) -> None:
    state = StateDir(tmp_path).open()
    first = Whereabouts(state)
    first.said(3, OFFERS)
    assert first.complete(PEER) == PEER, "the engine knows what is said while it runs"
    anyio.run(first.save)
    peer = Whereabouts(state).complete(PEER)
    assert (peer.endpoints, peer.lan_endpoints) == ((SEEN, LAN), (LAN,))


def test_who_is_no_peer_any_more_is_forgotten(tmp_path: Path) -> None:
    state = StateDir(tmp_path).open()
    first = Whereabouts(state)
    first.said(3, OFFERS)
    first.said(4, OFFERS)
    anyio.run(first.save)
    second = Whereabouts(state)
    second.keep_only([4, 5])
    anyio.run(second.save)
    assert Whereabouts(state).before.keys() == {4}


def test_thousands_of_peers_are_bounded(tmp_path: Path) -> None:
    whereabouts = Whereabouts(StateDir(tmp_path).open())
    for number in range(MAX_PEERS + 100):
        whereabouts.said(number, OFFERS)
    anyio.run(whereabouts.save)
    assert len(Whereabouts(StateDir(tmp_path)).before) == MAX_PEERS


@pytest.mark.parametrize("content", [b"{", b'{"peers": {"3": {"lan": ["nowhere"]}}}', b'{"peers": {"x": {}}}'])
def test_a_broken_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    state = StateDir(tmp_path).open()
    state.write(FILE, content)
    assert Whereabouts(state).before == {}
