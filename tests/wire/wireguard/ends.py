"""Two WireGuard ends in virtual time: a small engine of lists and numbers around the real `Device` and `Session`.

Each end seals real type 4 packets, stages what has no key, and does what `events` says. A link between them has
latency, can be cut, and keeps a log.
"""

import heapq
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import transport
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.primitives import aead_open, aead_seal, clamp
from overlay.wire.wireguard.session import (
    DropStaged,
    HandshakeCompleted,
    KeypairAdded,
    KeypairRemoved,
    SendHandshake,
    SendKeepalive,
    Session,
    SessionEvent,
)
from overlay.wire.wireguard.tai64n import Timestamper

START = 1000.0
EPOCH = 1_700_000_000_000_000_000


@dataclass
class Clock:
    now: float = START

    def wall_ns(self) -> int:
        return EPOCH + int(self.now * 1e9)


def private_key(seed: int) -> bytes:
    return clamp(Random(seed).randbytes(32))


def make_device(seed: int, clock: Clock, jitter: Callable[[], float] = lambda: 0.0) -> Device:
    return Device(
        private_key(seed),
        random_bytes=Random(seed + 1_000_000).randbytes,
        tai64n=Timestamper(clock.wall_ns),
        jitter=jitter,
    )


@dataclass
class End:
    """One machine with one peer."""

    name: str
    device: Device
    session: Session
    source: bytes
    transmit: Callable[[bytes], None] = lambda datagram: None
    keypairs: dict[int, Keypair] = field(default_factory=dict)
    staged: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    log: list[tuple[float, SessionEvent]] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    under_load: bool = False

    def send(self, payload: bytes, now: float) -> None:
        self.staged.append(payload)
        self._flush(now)
        if self.staged:
            self.session.request_handshake(now)
            self.drain(now)

    def receive(self, datagram: bytes, source: bytes, now: float) -> None:
        if datagram[:1] == b"\x04":
            self._receive_data(datagram, now)
            return
        result = self.device.receive_handshake(datagram, source, now, under_load=self.under_load)
        if result.drop is not None:
            self.drops[result.drop] += 1
        if result.reply is not None:
            self.transmit(result.reply)
        if result.session is not None:
            self.drain(now)

    def timeout(self, now: float) -> None:
        self.session.handle_timeout(now)
        self.drain(now)

    def drain(self, now: float) -> None:
        while events := self.session.events():
            for event in events:
                self.log.append((now, event))
                match event:
                    case SendHandshake(datagram):
                        self.transmit(datagram)
                    case SendKeepalive(keypair):
                        self._seal(keypair, b"", now)
                    case KeypairAdded(keypair):
                        self.keypairs[keypair.local_index] = keypair
                    case KeypairRemoved(local_index):
                        del self.keypairs[local_index]
                    case HandshakeCompleted():
                        self._flush(now)
                    case DropStaged():
                        self.staged.clear()

    def times_of(self, kind: type[SessionEvent]) -> list[float]:
        return [time for time, event in self.log if isinstance(event, kind)]

    def _flush(self, now: float) -> None:
        while self.staged:
            keypair = self.session.sending_keypair(now)
            if keypair is None:
                return
            self._seal(keypair, self.staged.pop(0), now)
        self.drain(now)

    def _seal(self, keypair: Keypair, payload: bytes, now: float) -> None:
        counter = keypair.next_counter()
        header = bytearray(transport.HEADER_SIZE)
        transport.pack_header_into(header, 0, keypair.remote_index, counter)
        plaintext = struct.pack("<H", len(payload)) + payload if payload else b""
        plaintext += bytes(transport.padding(len(plaintext), 1420))
        self.transmit(bytes(header) + aead_seal(keypair.send_key, counter, plaintext, b""))
        self.session.data_sent(keypair, now, empty=not payload)
        self.drain(now)

    def _receive_data(self, datagram: bytes, now: float) -> None:
        index, counter = transport.parse_header(datagram)
        keypair = self.keypairs.get(index)
        if keypair is None:
            self.drops["unknown_index"] += 1
            return
        if keypair.expired(now) or not keypair.replay.check(counter):
            self.drops["replay"] += 1
            return
        try:
            plaintext = aead_open(keypair.receive_key, counter, datagram[transport.HEADER_SIZE :], b"")
        except RemoteProtocolError as error:
            self.drops[error.reason] += 1
            return
        assert keypair.replay.accept(counter)
        self.session.data_received(keypair, now, empty=not plaintext)
        if plaintext:
            (length,) = struct.unpack_from("<H", plaintext)
            self.received.append(plaintext[2 : 2 + length])
        self.drain(now)


class Pair:
    """Ends `a` and `b`. `lose(datagram)` decides what the link swallows; `latency` in seconds, each way."""

    def __init__(
        self,
        *,
        preshared_key: bytes | None = None,
        latency: float = 0.01,
        jitter: Callable[[], float] = lambda: 0.0,
        keepalive_a: float = 0.0,
        keepalive_b: float = 0.0,
    ) -> None:
        self.clock = Clock()
        self.latency = latency
        self.lose: Callable[[bytes], bool] = lambda datagram: False
        self.wire: list[tuple[float, str, bytes]] = []  # (sent at, sender, datagram)
        self._order = count()
        self._flying: list[tuple[float, int, End, bytes, bytes]] = []
        device_a, device_b = make_device(1, self.clock, jitter), make_device(2, self.clock, jitter)
        session_a = device_a.add_peer(device_b.public_key, preshared_key, keepalive_a, now=self.now)
        session_b = device_b.add_peer(device_a.public_key, preshared_key, keepalive_b, now=self.now)
        self.a = End("a", device_a, session_a, bytes([192, 0, 2, 1, 0x30, 0x39]))
        self.b = End("b", device_b, session_b, bytes([192, 0, 2, 2, 0x30, 0x39]))
        self.a.transmit = lambda datagram: self._carry(self.a, self.b, datagram)
        self.b.transmit = lambda datagram: self._carry(self.b, self.a, datagram)

    @property
    def now(self) -> float:
        return self.clock.now

    def cut(self) -> None:
        self.lose = lambda datagram: True

    def mend(self) -> None:
        self.lose = lambda datagram: False

    def connect(self) -> None:
        """A completes a handshake as the initiator, and nothing else happens."""
        self.a.session.request_handshake(self.now)
        self.a.drain(self.now)
        self.run(5 * self.latency)
        assert self.a.session.sending_keypair(self.now) and self.b.session.sending_keypair(self.now)

    def run(self, duration: float) -> None:
        """Let `duration` seconds pass."""
        end = self.now + duration
        for _ in range(100_000):
            step = self._next_step()
            if step is None or step > end:
                self.clock.now = end
                return
            self.clock.now = max(self.now, step)
            self._do_step()
        raise AssertionError("time does not pass: a deadline is armed in the past again and again")

    def sent(self, sender: str, first_byte: int, since: float = START) -> list[float]:
        """When `sender` sent messages of this type."""
        return [
            time for time, name, datagram in self.wire if name == sender and datagram[0] == first_byte and time >= since
        ]

    def _next_step(self) -> float | None:
        times = [end.session.next_timeout() for end in (self.a, self.b)]
        if self._flying:
            times.append(self._flying[0][0])
        return min((time for time in times if time is not None), default=None)

    def _do_step(self) -> None:
        while self._flying and self._flying[0][0] <= self.now:
            _, _, receiver, source, datagram = heapq.heappop(self._flying)
            receiver.receive(datagram, source, self.now)
        for end in (self.a, self.b):
            timeout = end.session.next_timeout()
            if timeout is not None and timeout <= self.now:
                end.timeout(self.now)

    def _carry(self, sender: End, receiver: End, datagram: bytes) -> None:
        self.wire.append((self.now, sender.name, datagram))
        if not self.lose(datagram):
            heapq.heappush(
                self._flying, (self.now + self.latency, next(self._order), receiver, sender.source, datagram)
            )
