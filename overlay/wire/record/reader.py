"""The receiving half of the record layer: joins fragments, opens each box once, refuses replays.

Knows one direction of one key pair, and neither sockets nor frames. Hostile datagrams never raise: they are counted in
`drops`. Order of checks: header, replay window, then memory, then the AEAD, then the replay window's acceptance.

Reassembly is bounded in memory, number and age. The work per batch is per record, not per fragment, wherever a record's
fragments arrive in order: one comparison over the columns of fragment indices and of the counters' low bytes stands for
parsing each header. A fragment that this lets through by mistake either has the right box bytes, and does no harm, or
makes the box fail its authentication.
"""

from collections import Counter
from struct import Struct

from cryptography.exceptions import InvalidTag

from overlay.wire.packet import ecn
from overlay.wire.packet.ip import Octets
from overlay.wire.record.buffers import MAX_BOX, RecordBuffers
from overlay.wire.record.columns import columns, of_one_receiver, records_in_row
from overlay.wire.record.fragments import FRAGMENT_HEADER, FRAGMENT_HEADER_SIZE, INDICES, MESSAGE_TYPE, TAG_SIZE
from overlay.wire.record.frames import MAX_RECORD
from overlay.wire.record.keys import Cipher, record_aead
from overlay.wire.wireguard.replay import ReplayWindow

MAX_OPEN_BYTES = 8 * MAX_BOX
MAX_OPEN_RECORDS = 128
"""Box bytes, and records, of one session in reassembly at once: reordering on a path mixes neighbours, and these are a
few superpackets, or many of the small records that a path with loss gets. They bound a session's memory, with an object
per fragment."""

MAX_AGE = 0.25
"""Seconds from a record's first fragment: what comes later than that is lost to TCP inside, too, whose own
retransmission is on its way by then."""

REMEMBERED = 64
"""Records given up last: a late fragment of one must not open it again, and evict another that may still be whole."""

_unpack_header = FRAGMENT_HEADER.unpack_from
_pack_header = FRAGMENT_HEADER.pack
_pack_pair = Struct("<QQ").pack  # a header: all before the counter as one number, and the counter
_pack_counter = Struct("<Q").pack_into


class _OpenRecord:
    """A record of which fragments are missing."""

    __slots__ = ("born", "ecn", "have", "missing", "pieces", "size")

    def __init__(self, now: float, field: int) -> None:
        self.born = now
        self.ecn = field  # of its datagrams' outer headers
        self.missing = 0
        self.have = 0  # bit per fragment index
        self.pieces: dict[int, bytes] = {}  # first fragment index → box bytes of a run of fragments
        self.size = 0


class RecordReader:
    """Opens the records of one key pair's receiving direction.

    `drops`: counted by name. `completed` and `lost`: records opened, and records given up with fragments missing.
    `taken`: datagrams given to it since whoever reads that set it to 0.
    `buffers`: scratch memory shared with other writers and readers of the same thread; its own, if none is given.
    """

    def __init__(
        self,
        keypair_receive_key: bytes,
        cipher: Cipher,
        replay: ReplayWindow,
        *,
        buffers: RecordBuffers | None = None,
    ) -> None:
        self.drops: Counter[str] = Counter()
        self.completed = 0
        self.lost = 0
        self.taken = 0
        self.marks: dict[int, int] = {}
        """ECN fields of records that `receive` returned, by position, where they came in runs of several fields."""
        self._ecn = 0
        self._decrypt_into = record_aead(keypair_receive_key, cipher).decrypt_into
        self._replay = replay
        self._arena = (buffers if buffers is not None else RecordBuffers()).arena
        self._arena_used = 0
        self._nonce = bytearray(12)
        self._open: dict[bytes, _OpenRecord] = {}  # by header with fragment index 0; least recently touched first
        self._open_bytes = 0
        self._given_up: dict[bytes, None] = {}  # oldest first
        self._deadline = 0.0  # no open record expires before

    def receive(
        self, batch: memoryview, segment: int, offset: int, now: float, *, multi: bool, field: int = 0
    ) -> list[memoryview]:
        """Take a run of datagrams of this key pair; return the plaintext of each record that is now whole.

        `batch`, `segment`: as `UDP_GRO` gives them: datagrams of `segment` bytes side by side, the last may be shorter.
        `offset`: bytes of prefix before each fragment (0, or 16 of relay header). `multi` False: the source address is
        not proven, and only records of one fragment are taken. `field`: the ECN field of the outer headers.
        Plaintexts are writable, in order, and all valid until the next call; an empty one is a keepalive. Never raises
        on what a peer sent.
        """
        self._begin(field, now)
        opened: list[memoryview] = []
        self._take(batch, segment, offset, now, multi, opened)
        return opened

    def receive_apart(
        self,
        headers: memoryview,
        offset: int,
        box: memoryview,
        payload: int,
        now: float,
        *,
        multi: bool,
        field: int = 0,
    ) -> list[memoryview] | None:
        """As `receive`, for a run whose headers, each behind `offset` bytes of prefix, lie side by side, and so do the
        bytes behind them: `payload` of each datagram, of the last one maybe fewer. Records that came whole and in a row
        are opened where they lie. None, and nothing happened: the run is not for one receiver.
        """
        number = -(-len(box) // payload)
        heads, counters = columns(headers, offset, number)
        records, fragments = records_in_row(heads, counters, 0)
        if records * fragments != number and not of_one_receiver(heads):
            return None
        self._begin(field, now)
        opened: list[memoryview] = []
        at = 0
        while at < number:
            if at:
                records, fragments = records_in_row(heads, counters, at)
            if records and (multi or fragments == 1):
                start, end = at * payload, (at + records * fragments) * payload
                done = self._open_row(heads[at], counters[at], box[start:end], fragments * payload, opened)
                at += done * fragments
                self.taken += done * fragments
                if done == records:
                    continue
            # What is left of a record, or something else: those with one counter.
            end = at + 1
            while end < number and counters[end] == counters[at]:
                end += 1
            stride = offset + FRAGMENT_HEADER_SIZE
            joined = b"".join(
                [
                    part
                    for place in range(at, end)
                    for part in (
                        headers[place * stride : (place + 1) * stride],
                        box[place * payload : (place + 1) * payload],
                    )
                ]
            )
            self._take(memoryview(joined), stride + payload, offset, now, multi, opened)
            at = end
        return opened

    def _open_row(self, head: int, first: int, box: memoryview, box_size: int, out: list[memoryview]) -> int:
        """Open the boxes, side by side, of records with counters from `first` on: each of `box_size` bytes, the last
        one maybe shorter. Stop at one that is not authentic. Returns how many were opened. `head`: what stands before
        the counter in each record's first header."""
        size = len(box)
        number = -(-size // box_size)
        used = self._arena_used
        last = size - (number - 1) * box_size
        if (
            not self._replay.all_new(first, number)
            or min(last, box_size) < TAG_SIZE
            or used + size - number * TAG_SIZE > len(self._arena)
        ):
            return 0
        nonce, decrypt_into, arena = self._nonce, self._decrypt_into, self._arena
        at = opened = 0
        end = box_size
        try:
            for counter in range(first, first + number):
                if end > size:
                    end = size
                plain = arena[used : used + end - at - TAG_SIZE]
                _pack_counter(nonce, 4, counter)
                header = _pack_pair(head, counter)
                decrypt_into(nonce, box[at:end], header, plain)
                out.append(plain)
                used += end - at - TAG_SIZE
                opened += 1
                at = end
                end += box_size
                if self._open:
                    self._close(header)
        except InvalidTag:
            pass  # the closer look comes to it next, and counts it
        self._replay.accept_all(first, opened)
        self._arena_used = used
        self.completed += opened
        return opened

    def _begin(self, field: int, now: float) -> None:
        """A run comes, with this ECN field."""
        if self._open and now >= self._deadline:
            self.expire(now)
        self._arena_used = 0
        self._ecn = field
        if self.marks:
            self.marks.clear()

    def _take(
        self, batch: memoryview, segment: int, offset: int, now: float, multi: bool, opened: list[memoryview]
    ) -> None:
        """Look at each datagram of a batch; append the records that are now whole to `opened`."""
        size = len(batch)
        if not 0 < segment < size:
            segment = size
        if segment:
            self.taken += -(-size // segment)
        head = offset + FRAGMENT_HEADER_SIZE
        if segment <= head:
            self.drops["short_fragment"] += -(-size // segment) if size else 1
            return
        indices = counters = b""
        at = 0
        while at + head < size:
            kind, index, count, reserved, receiver, counter = _unpack_header(batch, at + offset)
            following = at + segment
            if kind != MESSAGE_TYPE or reserved or index >= count:
                self.drops["bad_fragment_header"] += 1
            elif not self._replay.check(counter):
                self.drops["replay"] += 1
            elif count == 1:
                self._open_box(batch[at + offset : at + head], counter, batch[at + head : following], opened)
            elif not multi:
                self.drops["unproven_source"] += 1
            else:
                first = at // segment
                run = min(count - index, -(-(size - head) // segment) - first)
                if run > 1:
                    if not indices:
                        indices = batch[offset + 1 :: segment].tobytes()
                        counters = batch[offset + 8 :: segment].tobytes()
                    if (
                        indices[first : first + run] != INDICES[index : index + run]
                        or counters.count(counter & 0xFF, first, first + run) != run
                    ):
                        run = _length_in_order(indices, counters, first, run)
                    following = at + run * segment
                box = [batch[start : start + segment - head] for start in range(at + head, following, segment)]
                header = _pack_header(MESSAGE_TYPE, 0, count, 0, receiver, counter)
                if run != count:
                    length = min(following, size) - at - run * head
                    self._collect(header, counter, index, count, box, length, now, opened)
                elif self._open_box(header, counter, b"".join(box), opened):
                    self._close(header)
            at = following
        if at < size:
            self.drops["short_fragment"] += 1

    def open(self, header: Octets, count: int, counter: int, box: memoryview) -> memoryview | None:
        """Open a record whose `count` fragments came all together and in order; None, and nothing counted: not
        authentic, or seen before, or too large.

        `header`: the first fragment's, whose values they are. Valid as what `receive` returns.
        """
        size = len(box) - TAG_SIZE
        if not 0 <= size <= MAX_RECORD or not self._replay.check(counter):
            return None
        plain = self._arena[:size]
        _pack_counter(self._nonce, 4, counter)
        try:
            self._decrypt_into(self._nonce, box, header, plain)
        except InvalidTag:
            return None
        if not self._replay.accept(counter):
            return None
        self.completed += 1
        self.taken += count
        if self._open:
            self._close(bytes(header))
        return plain

    def expire(self, now: float) -> None:
        """Give up the records that are too old. Call at `next_timeout`."""
        for header in [header for header, record in self._open.items() if record.born + MAX_AGE <= now]:
            self._give_up(header, "record_expired")
        self._deadline = min((record.born for record in self._open.values()), default=now) + MAX_AGE

    def next_timeout(self) -> float | None:
        """When to call `expire`; may be early. None: nothing is in reassembly."""
        return self._deadline if self._open else None

    def _open_box(self, header: Octets, counter: int, box: Octets, out: list[memoryview]) -> bool:
        """Authenticate and decrypt one box; append the plaintext to `out`. False: dropped."""
        size = len(box) - TAG_SIZE
        if not 0 <= size <= MAX_RECORD:
            self.drops["bad_record_size"] += 1
            return False
        used = self._arena_used + size
        if used <= len(self._arena):
            plain = self._arena[self._arena_used : used]
        else:
            # One batch completed several large records: rare, and bounded by what can be in reassembly.
            used = self._arena_used
            plain = memoryview(bytearray(size))
        _pack_counter(self._nonce, 4, counter)
        try:
            self._decrypt_into(self._nonce, box, header, plain)
        except InvalidTag:
            self.drops["bad_tag"] += 1
            return False
        if not self._replay.accept(counter):
            self.drops["replay"] += 1
            return False
        self._arena_used = used
        self.completed += 1
        out.append(plain)
        return True

    def _collect(
        self,
        header: bytes,
        counter: int,
        index: int,
        count: int,
        box: list[memoryview],
        length: int,
        now: float,
        out: list[memoryview],
    ) -> None:
        """Keep a run of fragments of a record that is not whole yet; open it, if this run completes it.

        `box`: the fragments' box bytes from `index` on, `length` bytes together.
        """
        record = self._open.pop(header, None)
        if record is None:
            if header in self._given_up:
                self.drops["late_fragment"] += len(box)
                return
            record = self._make_room(now)
            record.missing = count
        elif record.ecn != self._ecn:
            record.ecn = ecn.joined(record.ecn, self._ecn)
        self._open[header] = record
        if record.have >> index & ((1 << len(box)) - 1):
            for position, piece in enumerate(box, index):
                if record.have >> position & 1:
                    self.drops["duplicate_fragment"] += 1
                elif header in self._open:
                    self._collect(header, counter, position, count, [piece], len(piece), now, out)
            return
        if record.size + length > MAX_BOX:
            self._give_up(header, "bad_record_size")
            return
        record.have |= ((1 << len(box)) - 1) << index
        record.missing -= len(box)
        if record.missing:
            record.pieces[index] = b"".join(box)
            record.size += length
            self._open_bytes += length
            while self._open_bytes > MAX_OPEN_BYTES:
                self._give_up(next(iter(self._open)), "record_evicted")
            return
        parts: list[tuple[int, list[bytes] | list[memoryview]]] = [(at, [piece]) for at, piece in record.pieces.items()]
        parts.append((index, box))
        parts.sort(key=lambda part: part[0])
        self._close(header)
        opened = self._open_box(header, counter, b"".join([piece for _, pieces in parts for piece in pieces]), out)
        if opened and record.ecn != self._ecn:
            self.marks[len(out) - 1] = record.ecn

    def _make_room(self, now: float) -> _OpenRecord:
        if len(self._open) >= MAX_OPEN_RECORDS:
            self._give_up(next(iter(self._open)), "record_evicted")
        if not self._open:
            self._deadline = now + MAX_AGE
        return _OpenRecord(now, self._ecn)

    def _close(self, header: bytes) -> None:
        """The record is in reassembly no longer, if it was."""
        record = self._open.pop(header, None)
        if record is not None:
            self._open_bytes -= record.size

    def _give_up(self, header: bytes, reason: str) -> None:
        self._close(header)
        if len(self._given_up) >= REMEMBERED:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[header] = None
        self.drops[reason] += 1
        self.lost += 1


def _length_in_order(indices: bytes, counters: bytes, first: int, limit: int) -> int:
    """How many fragments from position `first` on are of one record and in order: 1 … `limit`."""
    for length in range(1, limit):
        at = first + length
        if indices[at] != indices[at - 1] + 1 or counters[at] != counters[first]:
            return length
    return limit
