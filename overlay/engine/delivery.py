"""Opened packets → TUN: neighbours of a flow put together, and nothing from an address that is not the peer's."""

from collections.abc import Iterable

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.engine.tun import Tun
from overlay.wire.packet import virtio
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.join import join_frames, join_unchecked


class Delivery:
    """Writes for all peers. Frames are `virtio header | packet`."""

    def __init__(self, tun: Tun | None, peers: Peers, counted: Drops) -> None:
        self._tun = tun
        self._peers = peers
        self._drops = counted
        self.join_tcp = tun is not None and tun.features.tun_vnet
        self.join_udp = tun is not None and tun.features.tun_uso

    def one(self, peer: Peer, frame: memoryview) -> None:
        """Give a checked packet to the kernel, if its source is one of the peer's addresses."""
        packet = frame[virtio.VIRTIO_HEADER_SIZE :]
        if self._is_its(peer, packet):
            self._write(peer, packet, frame)
        else:
            self._drops.count(drops.WRONG_SOURCE)

    def all(self, peer: Peer, found: list[memoryview]) -> None:
        """Give checked packets to the kernel, neighbours of a flow put together: a path with loss brings segments one
        by one."""
        if len(found) > 1 and self.join_tcp:
            self._joined(peer, join_frames(found, tcp=True, udp=self.join_udp), found)
            return
        for frame in found:
            self.one(peer, frame)

    def unchecked(self, peer: Peer, found: list[memoryview]) -> None:
        """As `all`, for frames that have not been checked: each neighbour that is like a checked one but for what
        counts on from packet to packet has been checked with it."""
        joined = join_unchecked(found, self._drops.count, tcp=self.join_tcp, udp=self.join_udp)
        self._joined(peer, joined, found)

    def _joined(self, peer: Peer, joined: Iterable[Octets], found: list[memoryview]) -> None:
        """What `found` was joined to. Packets with a source that is not the peer's are counted as they came."""
        strange: set[bytes] = set()
        for each in joined:
            frame = memoryview(each)
            packet = frame[virtio.VIRTIO_HEADER_SIZE :]
            if self._is_its(peer, packet):
                self._write(peer, packet, frame)
            else:
                strange.add(_source(packet))
        if strange:
            packets = (frame[virtio.VIRTIO_HEADER_SIZE :] for frame in found)
            sources = (_source(packet) for packet in packets if packet)  # some may not even be packets
            self._drops.count(drops.WRONG_SOURCE, sum(source in strange for source in sources))

    def _is_its(self, peer: Peer, packet: memoryview) -> bool:
        return self._peers.allowed.lookup(_source(packet)) is peer

    def _write(self, peer: Peer, packet: memoryview, frame: memoryview) -> None:
        outcome = drops.NO_TUN if self._tun is None else self._tun.write(frame)
        if outcome:
            self._drops.count(outcome)
        else:
            peer.rx_bytes += len(packet)


def _source(packet: memoryview) -> bytes:
    """The source address of a checked packet."""
    return (packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]).tobytes()
