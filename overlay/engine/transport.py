"""Type 4 at speed: one packet, one datagram, but a superpacket's datagrams still go out, and come in, as one run.

The counterparts of `RecordWriter` and `RecordReader` for stock WireGuard peers. They know one key pair and no address.
Order on receipt is the paper's (§5.4.6): window pre-check, authentication, then the window takes the counter.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, count
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.packet.superpacket import split
from overlay.wire.record.buffers import MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE
from overlay.wire.record.frames import LENGTH_SIZE, frames
from overlay.wire.wireguard.keypair import Keypair
from overlay.wire.wireguard.replay import ReplayWindow
from overlay.wire.wireguard.transport import HEADER, HEADER_SIZE, OVERHEAD, TYPE, padding, parse_header

Run = tuple[list[memoryview | bytes], int]
"""An iovec, and the segment size to cut it by (0: a single datagram)."""

_MAX_DATAGRAM: Final = 65507
"""Bytes; the largest UDP payload over IPv4. Only an interface with an absurd MTU has larger packets."""

_KEPT_SIZES: Final = 16
_KEPT_VIEWS: Final = 128
"""Of each size: the most datagrams that a kernel puts in one run."""

_pack_counter = Struct("<Q").pack_into


class _Places:
    """Memory cut into places of one size, side by side. The views are made once per size: a slice costs as much as a
    tenth of sealing what is in it."""

    def __init__(self, size: int, before: int) -> None:
        """`size`: bytes of memory; `before`: bytes of each place that are not seen, at its front."""
        self.memory = memoryview(bytearray(size))
        self._before = before
        self._kept: dict[int, list[memoryview]] = {}

    def of(self, size: int, number: int) -> list[memoryview]:
        """Views of the first `number` places of `size` bytes each; of 128, or of those that there is room for, if that
        is fewer."""
        number = min(number, _KEPT_VIEWS, len(self.memory) // size)
        kept = self._kept.get(size)
        if kept is None:
            if len(self._kept) >= _KEPT_SIZES:
                self._kept.clear()  # sizes change with paths and flows, not per run
            kept = self._kept[size] = []
        for end in range((len(kept) + 1) * size, number * size + 1, size):
            kept.append(self.memory[end - size + self._before : end])
        return kept[:number]


class TransportBuffers:
    """Scratch memory, one set for all writers and readers of a thread: what one hands out is valid until the next call
    of any writer, or any reader, of the set."""

    __slots__ = ("opened", "sealed")

    def __init__(self) -> None:
        self.sealed = _Places(1 << 17, HEADER_SIZE)
        self.opened = _Places(1 << 16, 0)


class TransportWriter:
    """Seals packets under one key pair."""

    def __init__(self, keypair: Keypair, mtu: int, buffers: TransportBuffers) -> None:
        """`mtu`: of the interface in bytes: packets are not padded past it (0: no such bound)."""
        self._keypair = keypair
        self._encrypt_into = ChaCha20Poly1305(keypair.send_key).encrypt_into
        self._mtu = mtu
        self._nonce = bytearray(12)
        self._sealed = buffers.sealed

    def write(self, plain: memoryview) -> list[Run]:
        """Frames → runs of datagrams, each run for one `sendmsg`. No frame: a keepalive.

        Takes a counter of the key pair per packet. Raises `RemoteProtocolError` for frames that are none,
        `LocalProtocolError` when the counters are used up or a packet fits no datagram.
        """
        packets = [packet for start, end in frames(plain) for packet in split(plain[start + LENGTH_SIZE : end])]
        packets = _padded(packets or [b""], self._mtu)
        sizes = [len(packet) + OVERHEAD for packet in packets]
        if max(sizes) > _MAX_DATAGRAM:
            raise LocalProtocolError(f"a packet of {max(sizes) - OVERHEAD} bytes fits no datagram")
        out = self._sealed.memory
        if len(packets) == 1:
            self._seal(packets, (0,), (out[HEADER_SIZE : sizes[0]],), out)
            return [([out[: sizes[0]]], 0)]
        offsets = list(accumulate(sizes, initial=0))
        if offsets[-1] <= len(out):
            boxes = self._sealed.of(sizes[0], _leading(sizes))
        else:  # thousands of tiny segments: rare, and bounded by the superpacket's size
            out = memoryview(bytearray(offsets[-1]))
            boxes = []
        for at, end in zip(offsets[len(boxes) :], offsets[len(boxes) + 1 :], strict=False):
            boxes.append(out[at + HEADER_SIZE : end])
        self._seal(packets, offsets, boxes, out)
        return [
            ([out[offsets[start] : offsets[end]]], sizes[start] if end - start > 1 else 0)
            for start, end in _runs(sizes)
        ]

    def _seal(
        self, packets: Sequence[bytes], offsets: Sequence[int], boxes: Sequence[memoryview], out: memoryview
    ) -> None:
        """Seal each packet to its box; its header goes to its offset in `out`, which is before the box."""
        index, nonce, encrypt_into = self._keypair.remote_index, self._nonce, self._encrypt_into
        pack_header_into = HEADER.pack_into
        first = self._keypair.next_counter(len(packets))
        for packet, at, box, counter in zip(packets, offsets, boxes, count(first), strict=False):
            pack_header_into(out, at, TYPE, index, counter)
            _pack_counter(nonce, 4, counter)
            encrypt_into(nonce, packet, None, box)


class TransportReader:
    """Opens packets under one key pair. Hostile datagrams never raise: they are counted in `drops`."""

    def __init__(self, receive_key: bytes, replay: ReplayWindow, buffers: TransportBuffers) -> None:
        self.drops: Counter[str] = Counter()
        self._decrypt_into = ChaCha20Poly1305(receive_key).decrypt_into
        self._replay = replay
        self._nonce = bytearray(12)
        self._opened = buffers.opened

    def receive(self, batch: memoryview, segment: int) -> memoryview | None:
        """The padded packets of the authentic datagrams in the run, in order and side by side, each `segment` less
        `OVERHEAD` bytes, the last maybe shorter; valid until the next call.

        `batch`, `segment`: datagrams of `segment` bytes side by side, the last may be shorter. Empty: there were none
        but keepalives; None: none was authentic.
        """
        size = len(batch)
        done = used = 0
        authentic = False
        if size >= 2 * segment and segment > OVERHEAD:
            done = self._open_in_order(batch[: size // segment * segment], segment)
            used = done * (segment - OVERHEAD)
            authentic = done > 0
        for at in range(done * segment, size, segment):
            opened = self._open(batch[at : at + segment], used)
            if opened >= 0:
                used += opened
                authentic = True
        return self._opened.memory[:used] if authentic else None

    def _open_in_order(self, batch: memoryview, segment: int) -> int:
        """Open the datagrams from the front on, as long as they are what a sender sends in a row. Returns how many."""
        rows = list(_datagrams(segment).iter_unpack(batch))
        head, first, _ = rows[0]
        number = len(rows)
        if (
            head & 0xFFFFFFFF != TYPE
            or not self._replay.all_new(first, number)
            or [row[0] for row in rows].count(head) != number
            or [row[1] for row in rows] != list(range(first, first + number))
        ):
            return 0
        nonce, decrypt_into = self._nonce, self._decrypt_into
        opened = 0
        try:
            for (_, counter, box), plain in zip(rows, self._opened.of(segment - OVERHEAD, number), strict=False):
                _pack_counter(nonce, 4, counter)
                decrypt_into(nonce, box, None, plain)
                opened += 1
        except InvalidTag:
            pass  # `_open` comes to it next, and counts it
        self._replay.accept_all(first, opened)
        return opened

    def _open(self, datagram: memoryview, at: int) -> int:
        """Open one datagram to `at`. Returns the size of its packet in bytes, -1: dropped."""
        try:
            _, counter = parse_header(datagram)
        except RemoteProtocolError as error:
            self.drops[error.reason] += 1
            return -1
        if not self._replay.check(counter):
            self.drops["replay"] += 1
            return -1
        size = len(datagram) - OVERHEAD
        _pack_counter(self._nonce, 4, counter)
        try:
            self._decrypt_into(self._nonce, datagram[HEADER_SIZE:], None, self._opened.memory[at : at + size])
        except InvalidTag:
            self.drops["bad_tag"] += 1
            return -1
        if not self._replay.accept(counter):
            self.drops["replay"] += 1
            return -1
        return size


@lru_cache(maxsize=64)
def _datagrams(segment: int) -> Struct:
    """Type and receiver index | counter | box."""
    return Struct(f"<QQ{segment - HEADER_SIZE}s")


def _padded(packets: list[bytes], mtu: int) -> list[bytes]:
    pads = {length: bytes(padding(length, mtu)) for length in set(map(len, packets))}
    if any(pads.values()):
        return [packet + pads[len(packet)] for packet in packets]
    return packets


def _leading(sizes: list[int]) -> int:
    """How many of the sizes, from the first on, are the same."""
    first = sizes[0]
    if sizes.count(first) == len(sizes):
        return len(sizes)
    return next(index for index, size in enumerate(sizes) if size != first)


def _runs(sizes: list[int]) -> list[tuple[int, int]]:
    """Datagrams of these sizes, in order → `(first, end)` of each run: equal sizes, but the last may be smaller."""
    runs: list[tuple[int, int]] = []
    start, number = 0, len(sizes)
    while start < number:
        size = sizes[start]
        limit = min(number, start + max(1, min(MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE // size)))
        end = start + 1
        while end < limit and sizes[end] == size:
            end += 1
        if end < limit and sizes[end] < size:
            end += 1
        runs.append((start, end))
        start = end
    return runs
