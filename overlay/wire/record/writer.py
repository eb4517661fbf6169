"""The sending half of the record layer: seals a record with one AEAD call and cuts the box into datagrams.

Knows one direction of one key pair. It does no I/O: what it returns is ready for `sendmsg` with `UDP_SEGMENT`. There is
no Python per fragment: header array and iovec are prebuilt, a record's header is repeated over the array by one slice
assignment, and the fragment indices by one strided one.
"""

from struct import Struct

from overlay.errors import LocalProtocolError
from overlay.wire.record.buffers import MAX_BATCH_SIZE, MAX_PREFIX, Iovec, RecordBuffers
from overlay.wire.record.fragments import FRAGMENT_HEADER, FRAGMENT_HEADER_SIZE, INDICES, MESSAGE_TYPE, TAG_SIZE
from overlay.wire.record.frames import MAX_RECORD
from overlay.wire.record.keys import Cipher, record_aead

_pack_header = FRAGMENT_HEADER.pack
_pack_counter = Struct("<Q").pack_into


class RecordWriter:
    """Seals and cuts the records of one key pair's sending direction.

    `buffers`: scratch memory shared with other writers and readers of the same thread; its own, if none is given.
    """

    __slots__ = ("_buffers", "_encrypt_into", "_last_counter", "_nonce", "_receiver_index")

    def __init__(
        self, keypair_send_key: bytes, cipher: Cipher, receiver_index: int, *, buffers: RecordBuffers | None = None
    ) -> None:
        self._encrypt_into = record_aead(keypair_send_key, cipher).encrypt_into
        self._receiver_index = receiver_index
        self._buffers = buffers if buffers is not None else RecordBuffers()
        self._nonce = bytearray(12)
        self._last_counter = -1

    def write(
        self, plain: memoryview, counter: int, datagram_size: int, prefix: bytes = b""
    ) -> list[tuple[Iovec, int]]:
        """Seal `plain` (frames, or nothing: a keepalive) into batches, each for one `sendmsg`.

        `counter` grows from call to call and is never used twice with one key. `datagram_size`: bytes of UDP payload,
        `prefix` (empty, or the 16-byte relay header that goes before each fragment) included. Returns pairs of an iovec
        and the segment size for `UDP_SEGMENT`; 0: the batch is a single datagram, sent without. At most 64 segments
        and 65,000 bytes a batch. The iovecs are valid until the next call.

        Raises `LocalProtocolError` if `plain` is larger than a record can be, or the counter does not grow.
        """
        if counter <= self._last_counter:
            raise LocalProtocolError(f"counter {counter} after {self._last_counter}: a nonce would be used twice")
        stride = len(prefix) + FRAGMENT_HEADER_SIZE
        if not stride < datagram_size <= MAX_BATCH_SIZE or len(prefix) > MAX_PREFIX:
            raise LocalProtocolError(f"datagram size {datagram_size} with a prefix of {len(prefix)} bytes")
        size = len(plain) + TAG_SIZE
        buffers = self._buffers
        nonce = self._nonce
        if size + stride <= datagram_size:
            header = _pack_header(MESSAGE_TYPE, 0, 1, 0, self._receiver_index, counter)
            self._last_counter = counter
            _pack_counter(nonce, 4, counter)
            datagram = buffers.datagram[: stride + size]
            datagram[:stride] = prefix + header
            self._encrypt_into(nonce, plain, header, datagram[stride:])
            return [([datagram], 0)]
        layout = buffers.layout(datagram_size, stride)
        payload = layout.payload
        count = -(-size // payload)
        if count > layout.max_fragments or len(plain) > MAX_RECORD:
            raise LocalProtocolError(f"a record of {len(plain)} bytes in datagrams of {datagram_size}")
        header = _pack_header(MESSAGE_TYPE, 0, count, 0, self._receiver_index, counter)
        self._last_counter = counter
        _pack_counter(nonce, 4, counter)
        headers = buffers.headers
        headers[: stride * count] = (prefix + header) * count
        headers[len(prefix) + 1 : stride * count : stride] = INDICES[:count]
        box = buffers.box
        self._encrypt_into(nonce, plain, header, box[:size])
        iovec = layout.iovec[: 2 * count]
        if count * payload != size:
            iovec[-1] = box[(count - 1) * payload : size]
        limit = layout.fragments_per_batch
        if count <= limit:
            return [(iovec, datagram_size)]
        return [
            (iovec[2 * first : 2 * (first + limit)], datagram_size if min(count - first, limit) > 1 else 0)
            for first in range(0, count, limit)
        ]
