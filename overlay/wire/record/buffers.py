"""Scratch memory of the record layer. One set serves every writer and reader of one thread.

What a writer or reader hands out points into it, so sharing a set also shares its rule: valid until the next call of
**any** writer, or **any** reader, of the set. Without sharing, each key pair would keep 128 KiB of its own resident.
"""

from overlay.wire.record.fragments import DATAGRAM_SIZE, FRAGMENT_HEADER_SIZE, MAX_FRAGMENTS, TAG_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, MAX_RECORD

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

_KEPT_LAYOUTS = 16
_ARENA = 1 << 17  # what one batch of 64 KiB opens to, and one record that it completes

Iovec = list[memoryview | bytes]


class Layout:
    """How boxes are cut for one datagram size and prefix length: header and box views side by side, made once."""

    __slots__ = ("fragments_per_batch", "iovec", "max_fragments", "payload")

    def __init__(self, buffers: "RecordBuffers", datagram_size: int, stride: int) -> None:
        self.payload = payload = datagram_size - stride
        self.max_fragments = min(MAX_FRAGMENTS, -(-MAX_BOX // payload))
        self.fragments_per_batch = min(MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE // datagram_size)
        self.iovec: Iovec = []
        headers = memoryview(buffers.headers)
        for index in range(self.max_fragments):
            self.iovec.append(headers[index * stride : (index + 1) * stride])
            self.iovec.append(buffers.box[index * payload : (index + 1) * payload])


class RecordBuffers:
    """`box` and `headers`: a sealed record and the prefix + header of each fragment; `datagram`: a fragment that holds
    a whole record; `arena`: opened records. Pages are touched, and so resident, only as far as they were used."""

    __slots__ = ("_layouts", "arena", "box", "datagram", "headers")

    def __init__(self) -> None:
        self.box = memoryview(bytearray(MAX_BOX))
        self.datagram = memoryview(bytearray(MAX_BATCH_SIZE))
        self.headers = bytearray(MAX_FRAGMENTS * (MAX_PREFIX + FRAGMENT_HEADER_SIZE))
        self.arena = memoryview(bytearray(_ARENA))
        self._layouts: dict[tuple[int, int], Layout] = {}

    def layout(self, datagram_size: int, stride: int) -> Layout:
        """The layout for datagrams of `datagram_size` bytes of which `stride` are prefix and fragment header."""
        found = self._layouts.get((datagram_size, stride))
        if found is None:
            if len(self._layouts) >= _KEPT_LAYOUTS:
                self._layouts.clear()  # datagram sizes change when a path is probed, not per record
            found = self._layouts[datagram_size, stride] = Layout(self, datagram_size, stride)
        return found
