"""A node whose keys are known and whose program is not ours: it shakes hands, then seals whatever it likes.

It has a UDP socket and no engine, so that nothing of the sending side cares for what it says.
"""

import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.engine.loop import clock
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.keys import Cipher, record_aead
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.events import KeypairAdded, SendHandshake
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.tai64n import Timestamper

UDP_SEGMENT: Final = 103
RESPONSE: Final = 2
DATAGRAM: Final = 1400  # bytes
_HEADER: Final = struct.Struct("<BBBBIQ")


class HostilePeer:
    """`sock`: bound or not; taken over, with a timeout. `private_key`: 32 bytes, clamped."""

    def __init__(
        self,
        sock: socket.socket,
        victim: Endpoint,
        victim_key: bytes,
        private_key: bytes,
        *,
        cipher: Cipher = "chacha20-poly1305",
    ) -> None:
        self._socket = sock
        self._victim = victim
        self._cipher = cipher
        self._device = Device(
            private_key, random_bytes=os.urandom, tai64n=Timestamper(time.time_ns, 0), jitter=random.random
        )
        self._session = self._device.add_peer(victim_key, now=clock())
        self.keypair: Keypair

    def shake_hands(self, wait: Callable[[], None] = lambda: None) -> None:
        """Until there is a key. `wait`: gives the victim its turn, where it does not run by itself."""
        self._session.request_handshake(clock())
        for event in self._session.events():
            if isinstance(event, SendHandshake):
                self._socket.sendto(event.datagram, self._victim)
        wait()
        while True:
            datagram = self._socket.recv(1 << 16)
            if datagram[0] == RESPONSE:
                break
        assert self._device.receive_handshake(datagram, b"victim", clock()).drop is None
        (self.keypair,) = [event.keypair for event in self._session.events() if isinstance(event, KeypairAdded)]

    def record(self, plain: bytes, datagram: int = DATAGRAM) -> list[bytes]:
        """The datagrams of a record (type 5) of that plaintext."""
        counter = self.keypair.next_counter()
        room = datagram - _HEADER.size
        count = -(-(len(plain) + 16) // room)
        index = self.keypair.remote_index
        nonce = struct.pack("<4xQ", counter)
        header = _HEADER.pack(5, 0, count, 0, index, counter)
        box = record_aead(self.keypair.send_key, self._cipher).encrypt(nonce, plain, header)
        return [
            _HEADER.pack(5, number, count, 0, index, counter) + box[number * room : (number + 1) * room]
            for number in range(count)
        ]

    def packet(self, plain: bytes) -> bytes:
        """A datagram (type 4) of that plaintext."""
        counter = self.keypair.next_counter()
        box = ChaCha20Poly1305(self.keypair.send_key).encrypt(struct.pack("<4xQ", counter), plain, None)
        return struct.pack("<IIQ", 4, self.keypair.remote_index, counter) + box

    def first_fragment(self, box: bytes, count: int = 2) -> bytes:
        """Of a record whose rest will never come."""
        return _HEADER.pack(5, 0, count, 0, self.keypair.remote_index, self.keypair.next_counter()) + box

    def send(self, datagrams: Iterable[bytes]) -> None:
        for datagram in datagrams:
            self._socket.sendto(datagram, self._victim)

    def send_run(self, datagrams: Sequence[bytes]) -> None:
        """In one call, so that they arrive as one run: all but the last are of one length, the last is not longer."""
        cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))] if len(datagrams) > 1 else []
        self._socket.sendmsg(datagrams, cut, 0, self._victim)

    def close(self) -> None:
        self._socket.close()
