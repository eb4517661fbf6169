"""Type 4 at speed: one packet, one datagram, but a superpacket's datagrams still go out, and come in, as one run.

The counterparts of `RecordWriter` and `RecordReader` for stock WireGuard peers. They know one key pair and no address.
Order on receipt is the paper's (§5.4.6): window pre-check, authentication, then the window takes the counter.
"""

from collections import Counter
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.packet.superpacket import split
from overlay.wire.record.buffers import MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE
from overlay.wire.record.frames import LENGTH_SIZE, frames
from overlay.wire.wireguard.constants import TAG_SIZE
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.replay import ReplayWindow
from overlay.wire.wireguard.transport import HEADER_SIZE, OVERHEAD, pack_header_into, padding, parse_header

Run = tuple[list[memoryview | bytes], int]
"""An iovec, and the segment size to cut it by (0: a single datagram)."""

_MAX_DATAGRAM: Final = 65507
"""Bytes; the largest UDP payload over IPv4. Only an interface with an absurd MTU has larger packets."""

_pack_counter = Struct("<Q").pack_into


class TransportBuffers:
    """Scratch memory, one set for all writers and readers of a thread: what one hands out is valid until the next call
    of any writer, or any reader, of the set."""

    __slots__ = ("opened", "plain", "sealed")

    def __init__(self) -> None:
        self.plain = memoryview(bytearray(1 << 16))
        self.sealed = memoryview(bytearray(1 << 17))
        self.opened = memoryview(bytearray(1 << 16))


class TransportWriter:
    """Seals packets under one key pair."""

    def __init__(self, keypair: Keypair, mtu: int, buffers: TransportBuffers) -> None:
        """`mtu`: of the interface in bytes: packets are not padded past it (0: no such bound)."""
        self._keypair = keypair
        self._encrypt_into = ChaCha20Poly1305(keypair.send_key).encrypt_into
        self._mtu = mtu
        self._nonce = bytearray(12)
        self._buffers = buffers

    def write(self, plain: memoryview) -> list[Run]:
        """Frames → runs of datagrams, each run for one `sendmsg`. No frame: a keepalive.

        Takes a counter of the key pair per packet. Raises `RemoteProtocolError` for frames that are none,
        `LocalProtocolError` when the counters are used up or a packet fits no datagram.
        """
        packets = [packet for start, end in frames(plain) for packet in split(plain[start + LENGTH_SIZE : end])]
        packets = packets or [b""]
        sizes = [len(packet) + padding(len(packet), self._mtu) + OVERHEAD for packet in packets]
        if max(sizes) > _MAX_DATAGRAM:
            raise LocalProtocolError(f"a packet of {max(sizes) - OVERHEAD} bytes fits no datagram")
        out = self._buffers.sealed
        if sum(sizes) > len(out):  # thousands of tiny segments: rare, and bounded by the superpacket's size
            out = memoryview(bytearray(sum(sizes)))
        runs: list[Run] = []
        start = at = segment = 0
        for index, (packet, size) in enumerate(zip(packets, sizes, strict=True)):
            self._seal(packet, out[at : at + size])
            at += size
            following = sizes[index + 1] if index + 1 < len(sizes) else None
            if at - size == start:
                segment = size
            full = at - start + segment > MAX_BATCH_SIZE or at - start >= segment * MAX_BATCH_SEGMENTS
            # A shorter datagram can only be a run's last.
            if following is None or size < segment or following > segment or full:
                runs.append(([out[start:at]], segment if at - start > segment else 0))
                start = at
        return runs

    def _seal(self, packet: bytes, out: memoryview) -> None:
        counter = self._keypair.next_counter()
        pack_header_into(out, 0, self._keypair.remote_index, counter)
        plain = self._buffers.plain[: len(out) - OVERHEAD]
        plain[: len(packet)] = packet
        plain[len(packet) :] = bytes(len(plain) - len(packet))
        _pack_counter(self._nonce, 4, counter)
        self._encrypt_into(self._nonce, plain, None, out[HEADER_SIZE:])


class TransportReader:
    """Opens packets under one key pair. Hostile datagrams never raise: they are counted in `drops`."""

    def __init__(self, receive_key: bytes, replay: ReplayWindow, buffers: TransportBuffers) -> None:
        self.drops: Counter[str] = Counter()
        self._decrypt_into = ChaCha20Poly1305(receive_key).decrypt_into
        self._replay = replay
        self._nonce = bytearray(12)
        self._out = buffers.opened

    def receive(self, batch: memoryview, segment: int) -> list[memoryview]:
        """The padded packet of each authentic datagram in the run, in order, valid until the next call; empty ones are
        keepalives."""
        opened: list[memoryview] = []
        used = 0
        for at in range(0, len(batch), segment):
            datagram = batch[at : at + segment]
            try:
                _, counter = parse_header(datagram)
            except RemoteProtocolError as error:
                self.drops[error.reason] += 1
                continue
            if not self._replay.check(counter):
                self.drops["replay"] += 1
                continue
            size = len(datagram) - HEADER_SIZE - TAG_SIZE
            plain = self._out[used : used + size]
            _pack_counter(self._nonce, 4, counter)
            try:
                self._decrypt_into(self._nonce, datagram[HEADER_SIZE:], None, plain)
            except InvalidTag:
                self.drops["bad_tag"] += 1
                continue
            if not self._replay.accept(counter):
                self.drops["replay"] += 1
                continue
            used += size
            opened.append(plain)
        return opened
