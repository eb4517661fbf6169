"""WebSocket's frames (RFC 6455 §5) after the upgrade, as a codec: a byte stream in binary messages. Sans-I/O.

- What a frame carries is handed on as it comes, whatever length it announces: kept are an incomplete header (14 bytes)
  and an incomplete control frame (125 bytes).
- Where messages begin and end means nothing: the peer, or a proxy between, may cut them as it likes.
- The client masks each frame with fresh random bytes; a server refuses what is not masked, a client what is (§5.1).
- Of several pings the last is answered (§5.5.3). A close frame is answered by `end`, after what is left to say
  (§5.5.1).
- Frames that bring no data cost time and prove nothing: only so many in a row are taken.
- No extension is ever negotiated, so the reserved bits are 0; text is not ours.
"""

from collections.abc import Callable
from typing import Final

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.stream.codec import Octets

CONTINUATION: Final = 0x0
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
FIN: Final = 0x80
RESERVED: Final = 0x70
MASKED: Final = 0x80
MASK_SIZE: Final = 4
MAX_CONTROL: Final = 125  # §5.5
MAX_HEADER: Final = 14
MAX_EMPTY: Final = 256  # frames in a row that bring no data: who pings us each second is heard between two heartbeats
NORMAL_CLOSURE: Final = (1000).to_bytes(2, "big")  # §7.4.1

_TRANSLATED_FROM: Final = 2048  # bytes: below, one XOR of two long integers is faster
_REPEATED: Final = int.from_bytes(bytes(range(256)), "big")
_XOR_TABLES: Final = tuple(
    (_REPEATED ^ int.from_bytes(bytes([x]) * 256, "big")).to_bytes(256, "big") for x in range(256)
)


def masked(data: Octets, mask: bytes) -> bytes | bytearray:
    """`data` XOR `mask` over and over (§5.3), which is its own inverse. 64 KiB take about 0.1 ms."""
    size = len(data)
    if size < _TRANSLATED_FROM:
        pad = (mask * (size // MASK_SIZE + 1))[:size]
        return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
    whole = bytes(data)
    result = bytearray(size)
    for place, octet in enumerate(mask):
        result[place::MASK_SIZE] = whole[place::MASK_SIZE].translate(_XOR_TABLES[octet])
    return result


class WebSocket:
    """One end. A `Codec`; the random bytes are an argument, as everywhere in sans-I/O code."""

    def __init__(self, client: bool, random_bytes: Callable[[int], bytes]) -> None:
        self._client = client
        self._random_bytes = random_bytes
        self._header = b""  # an incomplete one
        self._left = 0  # bytes of the present frame that have not come
        self._mask = bytes(MASK_SIZE)  # turned so that it begins with the next byte of the frame
        self._control: int | None = None  # the opcode, while a control frame comes
        self._control_payload = b""
        self._in_message = False
        self._empty = 0  # frames without data since the last one with data
        self._ping: bytes | None = None
        self._closing = False
        self._ended = False
        self._failure: RemoteProtocolError | None = None

    @property
    def ended(self) -> bool:
        return self._ended

    def encode(self, data: Octets) -> bytes:
        """Raises `LocalProtocolError` after `end`."""
        if self._closing:
            raise LocalProtocolError("nothing may be sent after the close frame")
        return self._frame(BINARY, data) if data else b""

    def answers(self) -> bytes:
        ping, self._ping = self._ping, None
        return b"" if ping is None or self._closing else self._frame(PONG, ping)

    def end(self) -> bytes:
        if self._closing:
            return b""
        self._closing = True
        return self._frame(CLOSE, NORMAL_CLOSURE)

    def decode(self, data: Octets) -> bytes:
        """Raises `RemoteProtocolError`, and the same again for all that follows: `websocket_unmasked`,
        `websocket_masked`, `websocket_reserved_bits`, `websocket_opcode`, `websocket_control_frame`,
        `websocket_fragment`, `websocket_length`, `websocket_empty_frames`."""
        if self._failure is not None:
            raise self._failure
        try:
            return self._decode(data)
        except RemoteProtocolError as failure:
            self._failure = failure
            raise

    # inside ----------------------------------------------------------------------------------------------------------

    def _frame(self, opcode: int, payload: Octets) -> bytes:
        size = len(payload)
        if size <= MAX_CONTROL:
            length = bytes([size])
        elif size <= 0xFFFF:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
        if not self._client:
            return b"".join((bytes([FIN | opcode]), length, payload))
        mask = self._random_bytes(MASK_SIZE)
        return b"".join((bytes([FIN | opcode, length[0] | MASKED]), length[1:], mask, masked(payload, mask)))

    def _decode(self, data: Octets) -> bytes:
        view = memoryview(data)
        pieces: list[bytes | bytearray | memoryview] = []
        start = 0
        while not self._ended:
            if self._left == 0 and self._control is None:
                used = self._read_header(bytes(view[start : start + MAX_HEADER]))
                start += used
                if self._header:
                    break
            size = min(self._left, len(view) - start)
            if size:
                payload = self._unmask(view[start : start + size])
                start += size
                if self._control is None:
                    pieces.append(payload)
                else:
                    self._control_payload += payload
            if self._left:
                break  # all of `data` is used
            if self._control is not None:
                self._take_control_frame()
            elif start == len(view):
                break
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _unmask(self, payload: memoryview) -> bytes | bytearray | memoryview:
        size = len(payload)
        self._left -= size
        if self._client:
            return payload
        plain = masked(payload, self._mask)
        turn = size % MASK_SIZE
        self._mask = self._mask[turn:] + self._mask[:turn]
        return plain

    def _read_header(self, data: bytes) -> int:
        """→ bytes of `data` that belong to the header; it is whole when `_header` is empty afterwards."""
        known = len(self._header)
        header = self._header + data
        if len(header) < 2:
            return self._keep(header, known)
        first, second = header[0], header[1]
        self._check(first, second)
        code = second & 0x7F
        length_size = 2 if code == 0x7E else 8 if code == 0x7F else 0
        mask_at = 2 + length_size
        size = mask_at + (0 if self._client else MASK_SIZE)
        if len(header) < size:
            return self._keep(header, known)
        length = int.from_bytes(header[2:mask_at], "big") if length_size else code
        if length_size and (length <= (MAX_CONTROL if length_size == 2 else 0xFFFF) or length >> 63):
            raise RemoteProtocolError("websocket_length", f"{length} in {length_size} bytes")
        self._begin(first, length, header[mask_at:size])
        self._header = b""
        return size - known

    def _keep(self, header: bytes, known: int) -> int:
        self._header = header
        return len(header) - known

    def _check(self, first: int, second: int) -> None:
        """What the first two bytes tell already (§5.2, §5.4, §5.5)."""
        opcode = first & 0x0F
        if first & RESERVED:
            raise RemoteProtocolError("websocket_reserved_bits")
        if opcode not in (CONTINUATION, BINARY, CLOSE, PING, PONG):
            raise RemoteProtocolError("websocket_opcode", f"{opcode:#x}")
        if bool(second & MASKED) is self._client:
            raise RemoteProtocolError("websocket_masked" if self._client else "websocket_unmasked")
        if opcode >= CLOSE:
            if not first & FIN or second & 0x7F > MAX_CONTROL:
                raise RemoteProtocolError("websocket_control_frame", "fragmented, or too long")
        elif (opcode == CONTINUATION) is not self._in_message:
            raise RemoteProtocolError("websocket_fragment", "a message begins or goes on where it must not")

    def _begin(self, first: int, length: int, mask: bytes) -> None:
        self._left = length
        self._mask = mask
        opcode = first & 0x0F
        self._empty = self._empty + 1 if opcode >= CLOSE or not length else 0
        if self._empty > MAX_EMPTY:
            raise RemoteProtocolError("websocket_empty_frames", f"more than {MAX_EMPTY} in a row")
        if opcode >= CLOSE:
            self._control = opcode
            self._control_payload = b""
        else:
            self._in_message = not first & FIN

    def _take_control_frame(self) -> None:
        if self._control == PING:
            self._ping = self._control_payload
        elif self._control == CLOSE:
            if len(self._control_payload) == 1:
                raise RemoteProtocolError("websocket_control_frame", "half a status code")
            self._ended = True
        self._control = None
        self._control_payload = b""
