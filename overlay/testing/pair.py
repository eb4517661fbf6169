"""Two ends of a WireGuard session in virtual time, with a link each way: real handshakes, real type 4, no sockets.

What an engine does around a session, in its smallest form: it seals, opens, stages what has no key yet, and does what
the session's events say. It has no TUN and no records.
"""

from collections import Counter, deque
from random import Random
from typing import TypedDict, Unpack

from overlay.errors import RemoteProtocolError
from overlay.testing.clock import VirtualClock
from overlay.testing.link import Link
from overlay.wire.packet import ip
from overlay.wire.wireguard import transport
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.events import (
    DropStaged,
    HandshakeCompleted,
    KeypairAdded,
    KeypairRemoved,
    SendHandshake,
    SendKeepalive,
    SessionEvent,
)
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.primitives import aead_open, aead_seal, clamp
from overlay.wire.wireguard.session import Session
from overlay.wire.wireguard.tai64n import Timestamper

INNER_MTU = 1380  # bytes
_EPOCH = 1_700_000_000_000_000_000  # ns; what the wall clock shows when virtual time shows 0


class LinkSettings(TypedDict, total=False):
    """As in `Link`; for both directions."""

    latency: float
    jitter: float
    loss: float
    duplicate: float
    reorder: float
    reorder_by: float
    mtu: int


class End:
    """One machine with one peer."""

    def __init__(self, clock: VirtualClock, seed: int, source: bytes) -> None:
        self.clock = clock
        self.source = source
        """Address and port as the peer sees them, bytes."""
        random = Random(seed)
        self.device = Device(
            clamp(random.randbytes(32)),
            random_bytes=random.randbytes,
            tai64n=Timestamper(lambda: _EPOCH + int(clock.now * 1e9)),
            jitter=random.random,
        )
        self.under_load = False
        self.received: list[bytes] = []
        """Inner packets, in the order in which they came."""
        self.history: list[tuple[float, SessionEvent]] = []
        self.drops: Counter[str] = Counter()
        self.session: Session
        self._out: Link
        self._staged: deque[bytes] = deque()
        self._keypairs: dict[int, Keypair] = {}

    def attach(self, session: Session, out: Link) -> None:
        """Done by `Pair`: the session with the other end, and the way there."""
        self.session = session
        self._out = out
        self.clock.watch(session, self.drain)

    def send(self, packet: bytes) -> None:
        """Send one IP packet, or stage it and ask for a handshake."""
        keypair = self.session.sending_keypair(self.clock.now)
        if keypair is None:
            self._staged.append(packet)
            self.session.request_handshake(self.clock.now)
        else:
            self._seal(keypair, packet)
        self.drain()

    def receive(self, datagram: bytes, source: bytes) -> None:
        """A datagram came from `source`; hostile ones are counted in `drops`."""
        if datagram[:1] == bytes([transport.TYPE]):
            try:
                self._open(datagram)
            except RemoteProtocolError as error:
                self.drops[error.reason] += 1
        else:
            result = self.device.receive_handshake(datagram, source, self.clock.now, under_load=self.under_load)
            if result.drop is not None:
                self.drops[result.drop] += 1
            if result.reply is not None:
                self._out.send(result.reply)
        self.drain()

    def drain(self) -> None:
        """Do what the session asks for."""
        while events := self.session.events():
            for event in events:
                self.history.append((self.clock.now, event))
                self._obey(event)

    def handshakes(self) -> int:
        """How many were completed."""
        return sum(isinstance(event, HandshakeCompleted) for _, event in self.history)

    def _obey(self, event: SessionEvent) -> None:
        match event:
            case SendHandshake(datagram):
                self._out.send(datagram)
            case SendKeepalive(keypair):
                self._seal(keypair, b"")
            case KeypairAdded(keypair):
                self._keypairs[keypair.local_index] = keypair
            case KeypairRemoved(local_index):
                del self._keypairs[local_index]
            case HandshakeCompleted():
                while self._staged and (current := self.session.sending_keypair(self.clock.now)):
                    self._seal(current, self._staged.popleft())
            case DropStaged():
                self.drops["staged"] += len(self._staged)
                self._staged.clear()

    def _seal(self, keypair: Keypair, packet: bytes) -> None:
        counter = keypair.next_counter()
        header = bytearray(transport.HEADER_SIZE)
        transport.pack_header_into(header, 0, keypair.remote_index, counter)
        padded = packet + bytes(transport.padding(len(packet), INNER_MTU))
        self._out.send(bytes(header) + aead_seal(keypair.send_key, counter, padded, b""))
        self.session.data_sent(keypair, self.clock.now, empty=not packet)

    def _open(self, datagram: bytes) -> None:
        index, counter = transport.parse_header(datagram)
        keypair = self._keypairs.get(index)
        if keypair is None:
            raise RemoteProtocolError("unknown_index")
        if keypair.expired(self.clock.now):
            raise RemoteProtocolError("expired_key")
        plaintext = aead_open(keypair.receive_key, counter, datagram[transport.HEADER_SIZE :], b"")
        if not keypair.replay.accept(counter):
            raise RemoteProtocolError("replay")
        self.session.data_received(keypair, self.clock.now, empty=not plaintext)
        if plaintext:
            self.received.append(plaintext[: ip.total_length(plaintext)])


class Pair:
    """Ends `a` and `b`, with the links `a_to_b` and `b_to_a`. The same seed gives the same run."""

    def __init__(
        self,
        *,
        seed: int = 0,
        preshared_key: bytes | None = None,
        persistent_keepalive: float = 0.0,
        **link: Unpack[LinkSettings],
    ) -> None:
        self.clock = VirtualClock()
        self.a = a = End(self.clock, 4 * seed + 1, b"\xc0\x00\x02\x01\x30\x39")
        self.b = b = End(self.clock, 4 * seed + 2, b"\xc0\x00\x02\x02\x30\x39")
        self.a_to_b = Link(self.clock, lambda datagram: b.receive(datagram, a.source), seed=4 * seed + 3, **link)
        self.b_to_a = Link(self.clock, lambda datagram: a.receive(datagram, b.source), seed=4 * seed + 4, **link)
        for one, other, out in ((a, b, self.a_to_b), (b, a, self.b_to_a)):
            peer = one.device.add_peer(other.device.public_key, preshared_key, persistent_keepalive, now=self.clock.now)
            one.attach(peer, out)
