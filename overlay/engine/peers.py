"""All peers: by number, by key, by receiver index, and by inner address. Adds and removes them; sends nothing."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

from overlay.engine.api import PeerConfig
from overlay.engine.drops import Drops
from overlay.engine.peer import Peer, Receiver
from overlay.engine.transport import TransportBuffers, TransportReader, TransportWriter
from overlay.path import timing
from overlay.path.budget import Budget
from overlay.path.pace import Pace
from overlay.path.selector import Selector
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import RecordBuffers
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.allowedips import AllowedIPs
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.keypair import Keypair


class Peers:
    """The table. `touched` collects who has to be attended to at the end of the loop's turn."""

    def __init__(
        self, device: Device, counted: Drops, random_bytes: Callable[[int], bytes], mtu: Callable[[], int]
    ) -> None:
        """`mtu` tells that of the interface, bytes; 0: none."""
        self.by_number: dict[int, Peer] = {}
        self.by_key: dict[bytes, Peer] = {}
        self.receivers: dict[int, Receiver] = {}
        self._inner: dict[bytes, Peer] = {}  # single addresses inside the network
        self.allowed: AllowedIPs[Peer] = AllowedIPs()
        self.touched: set[Peer] = set()
        self._device = device
        self._drops = counted
        self._random_bytes = random_bytes
        self.node_budget = Budget(timing.NODE_RATE, timing.NODE_BURST)
        """Of probes to what may be a peer's endpoint, all peers' together."""
        self._mtu = mtu
        self._pace = Pace()
        self.on_removed: Callable[[int, float], None] = lambda number, now: None
        """Told before a peer is forgotten."""
        self._record_buffers = RecordBuffers()
        self._transport_buffers = TransportBuffers()

    def __iter__(self) -> Iterator[Peer]:
        return iter(self.by_number.values())

    def set(self, config: PeerConfig, now: float) -> Peer:
        """Add a peer or update it; the session stays, unless key, transport or cipher are others.

        Raises `LocalProtocolError` for a key that no peer can have.
        """
        known = self.by_number.get(config.number)
        if known is not None and (
            (known.config.public_key, known.config.transport, known.config.cipher)
            != (config.public_key, config.transport, config.cipher)
        ):
            self.remove(config.number, now)
        owner = self.by_key.get(config.public_key)
        if owner is not None and owner.number != config.number:
            self.remove(owner.number, now)  # the node came back under another number
        session = self._device.add_peer(config.public_key, config.preshared_key, config.persistent_keepalive, now=now)
        peer = self.by_number.get(config.number)
        if peer is None:
            selector = None
            if config.transport == "record":
                selector = Selector(
                    relay=False, random_bytes=self._random_bytes, node_budget=self.node_budget, pace=self._pace
                )
            peer = Peer(config, session, selector, time.time(), self._random_bytes)
            self.by_number[config.number] = peer
            self.by_key[config.public_key] = peer
            self._insert_networks(peer)
        before = peer.config
        peer.config = config = replace(config, epoch=config.epoch or before.epoch)
        if before.epoch != config.epoch:
            session.renew(now)
        if before.allowed != config.allowed:
            self._remove_networks(peer)  # takes the longer, the more peers there are
            self._insert_networks(peer)
        if peer.selector is not None:
            peer.selector.set_candidates(config.endpoints, config.lan_endpoints, now)
        elif config.endpoints and (peer.address is None or before.endpoints != config.endpoints):
            peer.set_route(config.endpoints[0], b"", now)
        self.touched.add(peer)
        return peer

    def remove(self, number: int, now: float) -> None:
        """Forget a peer with all its keys; unknown numbers are forgotten already."""
        peer = self.by_number.get(number)
        if peer is None:
            return
        self.on_removed(number, now)
        del self.by_number[number]
        self._device.remove_peer(peer.config.public_key)
        del self.by_key[peer.config.public_key]
        self._remove_networks(peer)
        self.touched.discard(peer)
        for index in [*peer.record_writers, *peer.transport_writers]:
            self.remove_keypair(peer, index, now)

    def forget_channels(self) -> None:
        """What reaches an endpoint is another socket now, or sockets send otherwise: channels are to be made anew."""
        for peer in self:
            peer.channel = None

    def is_inner(self, endpoint: Endpoint) -> bool:
        """Is this an address inside the network? A path to there would lead through itself."""
        return ip_address(endpoint[0]).packed in self._inner

    def _insert_networks(self, peer: Peer) -> None:
        for network in peer.config.allowed:
            self.allowed.insert(network, peer)
            if network.num_addresses == 1:
                self._inner[network.network_address.packed] = peer

    def _remove_networks(self, peer: Peer) -> None:
        self.allowed.remove_value(peer)
        self._inner = {address: owner for address, owner in self._inner.items() if owner is not peer}

    def add_keypair(self, peer: Peer, keypair: Keypair) -> None:
        """Messages under this key pair can be sealed and opened from now on."""
        index = keypair.local_index
        receiver = Receiver(peer, keypair, keypair.expires, None, None)
        if peer.config.transport == "record":
            cipher = peer.config.cipher
            receiver.record = peer.readers[index] = RecordReader(
                keypair.receive_key, cipher, keypair.replay, buffers=self._record_buffers
            )
            peer.record_writers[index] = RecordWriter(
                keypair.send_key, cipher, keypair.remote_index, buffers=self._record_buffers
            )
            peer.meter.add(index, receiver.record, keypair.replay)
        else:
            receiver.transport = TransportReader(keypair.receive_key, keypair.replay, self._transport_buffers)
            peer.transport_writers[index] = TransportWriter(keypair, self._mtu(), self._transport_buffers)
        self.receivers[index] = receiver
        peer.channel = None

    def remove_keypair(self, peer: Peer, index: int, now: float) -> None:
        """The key pair is dead; what it counted stays counted."""
        receiver = self.receivers.pop(index, None)
        if receiver is not None:
            for reader in (receiver.record, receiver.transport):
                if reader is not None:
                    self._drops.merge(reader.drops)
        peer.meter.remove(index, now)
        peer.channel = None
        peer.readers.pop(index, None)
        peer.record_writers.pop(index, None)
        peer.transport_writers.pop(index, None)
