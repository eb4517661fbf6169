"""Scratch memory of the record layer. One set serves every writer and reader of one thread.

What a writer or reader hands out points into it, so sharing a set also shares its rule: valid until the next call of
**any** writer, or **any** reader, of the set. Without sharing, each key pair would keep 128 KiB of its own resident.
"""

from dataclasses import dataclass
from functools import lru_cache

from overlay.errors import LocalProtocolError
from overlay.wire.record.fragments import DATAGRAM_SIZE, FRAGMENT_HEADER_SIZE, MAX_FRAGMENTS, TAG_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, MAX_PADDING, MAX_RECORD

MAX_BOX = MAX_RECORD + TAG_SIZE
MAX_PREFIX = 16
"""Bytes before each fragment: a relay header."""

MAX_BATCH_SIZE = 65000
"""Bytes given to one `sendmsg`. The kernel's limit is 65,535 less IP and UDP headers."""

MAX_BATCH_SEGMENTS = 64
"""Datagrams cut from one `sendmsg` with `UDP_SEGMENT`: `UDP_MAX_SEGMENTS` of kernels from 4.18 on (newer ones: 128)."""

SUPERPACKET_SIZE = (
    MAX_BATCH_SIZE // DATAGRAM_SIZE * (DATAGRAM_SIZE - MAX_PREFIX - FRAGMENT_HEADER_SIZE) - TAG_SIZE - FRAME_HEADER_SIZE
)
"""Bytes. The largest packet whose record goes out, relayed or not, in one batch. An interface that makes none larger
(`IFLA_GSO_MAX_SIZE`) saves a second `sendmsg` and `recvmsg`, and the reassembly across two batches, for each."""

_KEPT_LAYOUTS = 32
_ARENA = 1 << 17  # what one batch of 64 KiB opens to, and one record that it completes

Iovec = list[memoryview]


class Layout:
    """How boxes are cut for one datagram size and prefix length, made once.

    `headers`: prefix and fragment header of each fragment, side by side, `stride` bytes each. `box`: where boxes are
    sealed to. `iovec`: views of a header and of its fragment's `payload` bytes of box, in turn. `datagram_size` in
    bytes of UDP payload. `largest_batch`: bytes of the largest box that goes out in one batch.
    """

    __slots__ = (
        "box",
        "datagram_size",
        "fragments_per_batch",
        "headers",
        "iovec",
        "largest_batch",
        "max_fragments",
        "payload",
        "stride",
    )

    def __init__(self, buffers: "RecordBuffers", datagram_size: int, stride: int) -> None:
        self.datagram_size = datagram_size
        self.stride = stride
        self.payload = payload = datagram_size - stride
        self.max_fragments = min(MAX_FRAGMENTS, -(-MAX_BOX // payload))
        self.fragments_per_batch = max(1, min(MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE // datagram_size))
        # A last, shorter fragment fits where a full one does not: of large datagrams it is much of the batch.
        rest = MAX_BATCH_SIZE - self.fragments_per_batch * datagram_size - stride
        more = rest if self.fragments_per_batch < MAX_BATCH_SEGMENTS else 0
        self.largest_batch = self.fragments_per_batch * payload + max(0, more)
        self.headers = buffers.headers
        self.box = buffers.box
        self.iovec: Iovec = []
        headers = memoryview(buffers.headers)
        for index in range(self.max_fragments):
            self.iovec.append(headers[index * stride : (index + 1) * stride])
            self.iovec.append(buffers.box[index * payload : (index + 1) * payload])

    def batches(self, size: int) -> list[tuple[Iovec, int]]:
        """A box of `size` bytes, sealed with its headers, as pairs of an iovec for one `sendmsg` and the segment size
        for `UDP_SEGMENT`; 0: the batch is a single datagram. At most 64 segments and 65,000 bytes a batch."""
        payload = self.payload
        count = -(-size // payload)
        limit = count if size <= self.largest_batch else self.fragments_per_batch
        iovec = self.iovec[: 2 * count]
        iovec[-1] = self.box[(count - 1) * payload : size]
        return [
            (iovec[2 * first : 2 * (first + limit)], self.datagram_size if min(count - first, limit) > 1 else 0)
            for first in range(0, count, limit)
        ]


@dataclass(frozen=True, slots=True)
class RunShape:
    """How records of one size lie side by side in datagrams of one size: with `padding` zeros behind the plaintext, in
    datagrams of `datagram_size` bytes, `records` of them in a batch at the most."""

    datagram_size: int
    padding: int
    records: int


@lru_cache(maxsize=256)
def run_shape(size: int, datagram_size: int, stride: int) -> RunShape | None:
    """For records of `size` bytes of plaintext, on a path that takes datagrams of `datagram_size` bytes, `stride` of
    them header; None: they go one by one."""
    box_size = size + TAG_SIZE
    fragments = -(-box_size // (datagram_size - stride))
    payload = -(-box_size // fragments)
    padding = fragments * payload - box_size
    records = min(MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE // (payload + stride)) // fragments
    return RunShape(payload + stride, padding, records) if padding <= MAX_PADDING and records > 1 else None


class RecordBuffers:
    """`box` and `headers`: a sealed record and the prefix + header of each fragment; `arena`: opened records. Pages are
    touched, and so resident, only as far as they were used."""

    __slots__ = ("_layouts", "arena", "box", "headers")

    def __init__(self) -> None:
        self.box = memoryview(bytearray(MAX_BOX))
        self.headers = bytearray(MAX_FRAGMENTS * (MAX_PREFIX + FRAGMENT_HEADER_SIZE))
        self.arena = memoryview(bytearray(_ARENA))
        self._layouts: dict[tuple[int, int], Layout] = {}

    def layout(self, datagram_size: int, prefix_size: int) -> Layout:
        """The layout for datagrams of `datagram_size` bytes with `prefix_size` bytes before each fragment.

        Raises `LocalProtocolError` where no byte of a box would fit, or more than a batch takes.
        """
        found = self._layouts.get((datagram_size, prefix_size))
        if found is None:
            stride = prefix_size + FRAGMENT_HEADER_SIZE
            if not stride < datagram_size <= MAX_BATCH_SIZE or prefix_size > MAX_PREFIX:
                raise LocalProtocolError(f"datagram size {datagram_size} with a prefix of {prefix_size} bytes")
            if len(self._layouts) >= _KEPT_LAYOUTS:
                self._layouts.clear()  # datagram sizes change when a path is probed, not per record
            found = self._layouts[datagram_size, prefix_size] = Layout(self, datagram_size, stride)
        return found
