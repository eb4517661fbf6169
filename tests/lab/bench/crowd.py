"""Many nodes in one process, for an engine to talk with: each has its own key and UDP port, and none an interface.

They do what keeps a peer content (answer handshakes and pings, send an empty record now and then) and throw away what
they are told. A child process of the bench: it is given the engine's key, says in one line of JSON who it is (key and
port of each), and ends with its standard input. Not measured itself.
"""

import argparse
import base64
import json
import os
import random
import select
import socket
import struct
import sys
import time
from typing import Final

from overlay.errors import RemoteProtocolError
from overlay.wire.disco import DISCO_TYPE, DiscoKey, Ping, Pong
from overlay.wire.record.keys import record_aead
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.events import KeypairAdded
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.primitives import clamp
from overlay.wire.wireguard.tai64n import Timestamper

KEEPALIVE: Final = 5.0  # s
ENGINE_NUMBER: Final = 2
CIPHER: Final = "chacha20-poly1305"
INITIATION: Final = 1
RECORD: Final = 5
_HEADER: Final = struct.Struct("<BBBBIQ")


class Member:
    """One of the crowd."""

    def __init__(self, number: int, engine_key: bytes) -> None:
        self.number = number
        self.key = clamp(os.urandom(32))
        self._device = Device(
            self.key, random_bytes=os.urandom, tai64n=Timestamper(time.time_ns, 0), jitter=random.random
        )
        self.public_key = self._device.public_key
        self._session = self._device.add_peer(engine_key, now=time.monotonic())
        self._disco = DiscoKey(self.key, engine_key)
        self._keypair: Keypair | None = None
        self._spoke = 0.0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(("0.0.0.0", 0))

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def take(self, now: float) -> None:
        """Deal with all that has come."""
        while True:
            try:
                datagram, source = self.socket.recvfrom(1 << 16)
            except BlockingIOError:
                return
            if datagram[0] == RECORD:
                self._keep_alive(source, now)
            elif datagram[0] == DISCO_TYPE:
                self._answer(datagram, source)
            elif datagram[0] == INITIATION:
                self._shake_hands(datagram, source, now)

    def _answer(self, datagram: bytes, source: tuple[str, int]) -> None:
        try:
            message = self._disco.open(datagram)
        except RemoteProtocolError:
            return
        if isinstance(message, Ping):
            self.socket.sendto(self._disco.seal(Pong(message.txid, source), self.number, os.urandom(24)), source)

    def _shake_hands(self, datagram: bytes, source: tuple[str, int], now: float) -> None:
        result = self._device.receive_handshake(datagram, b"engine", now)
        if result.reply is not None:
            self.socket.sendto(result.reply, source)
        for event in self._session.events():
            if isinstance(event, KeypairAdded):
                self._keypair = event.keypair
                self._spoke = 0.0

    def _keep_alive(self, source: tuple[str, int], now: float) -> None:
        keypair = self._keypair
        if keypair is None or now < self._spoke + KEEPALIVE:
            return
        self._spoke = now
        counter = keypair.next_counter()
        header = _HEADER.pack(RECORD, 0, 1, 0, keypair.remote_index, counter)
        box = record_aead(keypair.send_key, CIPHER).encrypt(struct.pack("<4xQ", counter), b"", header)
        self.socket.sendto(header + box, source)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine-key", required=True)
    parser.add_argument("--first", type=int, required=True, help="node number of the first")
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    engine_key = base64.b64decode(options.engine_key)
    members = [Member(options.first + index, engine_key) for index in range(options.count)]
    by_fd = {member.socket.fileno(): member for member in members}
    said = [[base64.b64encode(member.public_key).decode(), member.port] for member in members]
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    epoll = select.epoll()
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    for descriptor in by_fd:
        epoll.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == sys.stdin.fileno():
                return
            by_fd[descriptor].take(time.monotonic())


if __name__ == "__main__":
    main()
