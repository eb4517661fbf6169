"""What goes to the kernel, and what is counted instead: packet by packet, however many were put together."""

import os
from collections.abc import Iterator

import pytest

from overlay.engine import drops
from overlay.engine.delivery import Delivery
from overlay.engine.drops import Drops
from overlay.engine.features import Features
from overlay.engine.peers import Peers
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.primitives import clamp
from tests.engine.rig import Machine, fake_tun, udp4

T = 100.0


class Ends:
    def __init__(self) -> None:
        self.tun, self.kernel = fake_tun(Features())
        self.kernel.setblocking(False)
        self.drops = Drops()
        device = Device(clamp(os.urandom(32)), random_bytes=os.urandom, tai64n=lambda: bytes(12), jitter=lambda: 0.0)
        self.peers = Peers(device, self.drops, os.urandom, lambda: 1380)
        self.peer = self.peers.set(Machine(3).config(endpoints=()), T)
        self.delivery = Delivery(self.tun, self.peers, self.drops)

    def seen(self) -> int:
        """Writes that reached the kernel."""
        count = 0
        try:
            while self.kernel.recv(1 << 17):
                count += 1
        except BlockingIOError:
            return count
        return count


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.tun.close()
    made.kernel.close()


def frames(source: str, number: int) -> list[memoryview]:
    """Datagrams of one flow, which are put together where that is possible."""
    return [memoryview(bytearray(NO_OFFLOAD + udp4(source, "10.0.0.2", bytes([at]) * 500))) for at in range(number)]


@pytest.mark.parametrize("way", ["all", "unchecked"])
def test_neighbours_from_a_wrong_source_count_each(way: str, ends: Ends) -> None:
    deliver = ends.delivery.all if way == "all" else ends.delivery.unchecked
    deliver(ends.peer, frames("10.0.0.9", 5))
    assert ends.drops.counts == {drops.WRONG_SOURCE: 5} and ends.seen() == 0
    deliver(ends.peer, frames("10.0.0.3", 3) + frames("10.0.0.9", 2) + frames("10.0.0.3", 1))
    assert ends.drops.counts == {drops.WRONG_SOURCE: 7}
    assert 1 <= ends.seen() <= 4 and ends.peer.rx_bytes > 4 * 500


def test_what_is_no_packet_beside_a_wrong_source_is_counted_by_its_own_name(ends: Ends) -> None:
    nothing = memoryview(bytearray(NO_OFFLOAD))
    ends.delivery.unchecked(ends.peer, [*frames("10.0.0.9", 2), nothing])
    assert ends.drops.counts[drops.WRONG_SOURCE] == 2 and ends.drops.counts.total() == 3


def test_one_packet_of_either_kind(ends: Ends) -> None:
    for source in ("10.0.0.9", "10.0.0.3"):
        ends.delivery.one(ends.peer, frames(source, 1)[0])
    assert ends.drops.counts == {drops.WRONG_SOURCE: 1} and ends.seen() == 1
