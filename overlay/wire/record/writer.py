"""The sending half of the record layer: seals a record with one AEAD call and writes the headers of its fragments.

Knows one direction of one key pair. It does no I/O: what it leaves in a layout's buffers is ready for `sendmsg` with
`UDP_SEGMENT`. There is no Python per fragment: header array and iovec are prebuilt, a record's header is repeated over
the array by one slice assignment, and the fragment indices by one strided one.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import count
from struct import Struct

from overlay.errors import LocalProtocolError
from overlay.wire.record.buffers import Iovec, Layout, RecordBuffers
from overlay.wire.record.fragments import FRAGMENT_HEADER, FRAGMENT_HEADER_SIZE, INDICES, MESSAGE_TYPE, TAG_SIZE
from overlay.wire.record.frames import MAX_RECORD
from overlay.wire.record.keys import Cipher, record_aead

_pack_header = FRAGMENT_HEADER.pack
_pack_pair = Struct("<QQ").pack  # a fragment's header: all before the counter as one number, and the counter
_pack_counter = Struct("<Q").pack_into


class RecordWriter:
    """Seals the records of one key pair's sending direction.

    `buffers`: scratch memory shared with other writers and readers of the same thread; its own, if none is given.
    """

    __slots__ = ("_decrypt", "_encrypt_into", "_last_counter", "_nonce", "_receiver_index", "buffers")

    def __init__(
        self, keypair_send_key: bytes, cipher: Cipher, receiver_index: int, *, buffers: RecordBuffers | None = None
    ) -> None:
        aead = record_aead(keypair_send_key, cipher)
        self._encrypt_into = aead.encrypt_into
        self._decrypt = aead.decrypt
        self._receiver_index = receiver_index
        self.buffers = buffers if buffers is not None else RecordBuffers()
        self._nonce = bytearray(12)
        self._last_counter = -1

    def seal(self, plain: memoryview, counter: int, layout: Layout, prefix: bytes = b"") -> int:
        """Seal `plain` (frames, or nothing: a keepalive) into the buffers of `layout`; returns the box's bytes.

        `counter` grows from call to call and is never used twice with one key. `prefix` (empty, or the 16-byte relay
        header that goes before each fragment) is as long as the layout was made for. Box and headers are valid until
        the next call of any writer that shares the buffers.

        Raises `LocalProtocolError` if `plain` is larger than a record can be, or the counter does not grow.
        """
        if counter <= self._last_counter:
            raise LocalProtocolError(f"counter {counter} after {self._last_counter}: a nonce would be used twice")
        size = len(plain) + TAG_SIZE
        count = -(-size // layout.payload)
        if count > layout.max_fragments or len(plain) > MAX_RECORD:
            raise LocalProtocolError(f"a record of {len(plain)} bytes in datagrams of {layout.datagram_size}")
        header = _pack_header(MESSAGE_TYPE, 0, count, 0, self._receiver_index, counter)
        self._last_counter = counter
        nonce = self._nonce
        _pack_counter(nonce, 4, counter)
        stride = layout.stride
        headers = layout.headers
        if count == 1:
            headers[:stride] = prefix + header
        else:
            headers[: stride * count] = (prefix + header) * count
            headers[len(prefix) + 1 : stride * count : stride] = INDICES[:count]
        self._encrypt_into(nonce, plain, header, layout.box[:size])
        return size

    def seal_run(
        self, plains: Iterable[memoryview], first: int, number: int, size: int, layout: Layout, prefix: bytes = b""
    ) -> int:
        """Seal `number` records side by side, under the counters from `first` on; returns the bytes of all boxes.

        Each but the last has `size` bytes of plaintext, which fill its datagrams, and the last one at most as many: all
        datagrams but the last have one size, and are one batch. Each plaintext is sealed before the next is asked for.
        Else as `seal`. Raises `LocalProtocolError` also if the records are others, or too many for a batch of `layout`.
        """
        if first <= self._last_counter:
            raise LocalProtocolError(f"counter {first} after {self._last_counter}: a nonce would be used twice")
        payload = layout.payload
        box_size = size + TAG_SIZE
        fragments = box_size // payload
        if fragments * payload != box_size or not 0 < fragments * number <= layout.fragments_per_batch:
            raise LocalProtocolError(f"{number} records of {size} bytes in datagrams of {layout.datagram_size}")
        self._last_counter = first + number - 1
        heads = last_heads = _heads(fragments, self._receiver_index)
        head = heads[0]
        nonce, encrypt_into, box = self._nonce, self._encrypt_into, layout.box
        at = 0
        for plain, counter in zip(plains, range(first, first + number), strict=True):
            end = at + len(plain) + TAG_SIZE
            if end - at != box_size:
                if end - at > box_size or counter != self._last_counter:
                    raise LocalProtocolError(f"a record of {len(plain)} bytes among those of {size}")
                last_heads = _heads(-(-(end - at) // payload), self._receiver_index)
                head = last_heads[0]
            _pack_counter(nonce, 4, counter)
            encrypt_into(nonce, plain, _pack_pair(head, counter), box[at:end])
            at = end
        self._write_headers(heads * (number - 1) + last_heads, first, fragments, layout, prefix)
        return at

    def _write_headers(self, heads: list[int], first: int, fragments: int, layout: Layout, prefix: bytes) -> None:
        """Write the headers of a run whose records have `fragments` datagrams each, the last one maybe fewer."""
        number = len(heads)
        width = 3 if prefix else 2
        fields: list[int | bytes] = [prefix] * (width * number)
        fields[width - 2 :: width] = heads
        counters = [first + at // fragments for at in range(number)]
        fields[width - 1 :: width] = counters
        _headers(number, len(prefix)).pack_into(layout.headers, 0, *fields)

    def unseal_run(self, first: int, size: int, layout: Layout, boxes_size: int) -> list[bytearray]:
        """The plaintexts that `seal_run` sealed last with these values, when the run went nowhere."""
        box_size = size + TAG_SIZE
        found = []
        for counter, at in zip(count(first), range(0, boxes_size, box_size), strict=False):
            box = layout.box[at : min(at + box_size, boxes_size)]
            _pack_counter(self._nonce, 4, counter)
            header = _pack_pair(_heads(-(-len(box) // layout.payload), self._receiver_index)[0], counter)
            found.append(bytearray(self._decrypt(bytes(self._nonce), bytes(box), header)))
        return found

    def seal_alone(self, plain: memoryview, counter: int, header: memoryview, box: memoryview) -> None:
        """Seal a record of one datagram to wherever the caller has it: `header` with all but its counter in place
        already (`header_alone`), and `box` of exactly the size. Counters and errors as in `seal`."""
        if counter <= self._last_counter:
            raise LocalProtocolError(f"counter {counter} after {self._last_counter}: a nonce would be used twice")
        self._last_counter = counter
        _pack_counter(header, FRAGMENT_HEADER_SIZE - 8, counter)
        _pack_counter(self._nonce, 4, counter)
        self._encrypt_into(self._nonce, plain, header, box)

    def header_alone(self) -> bytes:
        """The header of a record of one datagram, with counter 0."""
        return _pack_header(MESSAGE_TYPE, 0, 1, 0, self._receiver_index, 0)

    def write(
        self, plain: memoryview, counter: int, datagram_size: int, prefix: bytes = b""
    ) -> list[tuple[Iovec, int]]:
        """As `seal`, for datagrams of `datagram_size` bytes of UDP payload, prefix included: what was sealed as
        `Layout.batches` gives it."""
        layout = self.buffers.layout(datagram_size, len(prefix))
        return layout.batches(self.seal(plain, counter, layout, prefix))


@lru_cache(maxsize=4096)
def _heads(fragments: int, receiver_index: int) -> list[int]:
    """What stands before the counter in the headers of a record's fragments."""
    return [
        int.from_bytes(_pack_header(MESSAGE_TYPE, index, fragments, 0, receiver_index, 0)[:8], "little")
        for index in range(fragments)
    ]


@lru_cache(maxsize=256)
def _headers(number: int, prefix_size: int) -> Struct:
    """The headers of `number` datagrams, side by side."""
    return Struct("<" + (f"{prefix_size}s2Q" if prefix_size else "2Q") * number)
