"""The control channel's secure stream: `Noise_IK_25519_ChaChaPoly_BLAKE2s` (Noise specification, revision 34).

Sans-I/O: bytes of a carrier go in, whole messages come out, and the other way round. The channel knows no clock and no
socket, and not what a message means.

    Noise message        length u16 big-endian | ciphertext
    handshake 1 (→)      e, es, s, ss   96 bytes, empty payload
    handshake 2 (←)      e, ee, se      48 bytes, empty payload
    transport            up to 65,519 bytes of the stream below, and a tag of 16
    stream               length u32 big-endian | message

What follows from who could have sent what:

- Handshake message 1 can be replayed by anybody who saw it. It therefore carries no payload, changes nothing outside
  this object, and its sender's key is not shown: `remote_key` is there when the first transport message has been
  opened, which only the holder of the fresh ephemeral key can make. The initiator sends one, empty, at once.
- Before that, a peer can make us hold no more than one handshake message, compute no more than four DHs, and keep
  nothing else: any other length than the exact one ends the channel before a byte is hashed.
- After it, a message takes the memory of the bytes that have arrived, whatever length it announces.
- A Noise message of length 0, before the handshake ends, is a responder with too many strangers at its door (`BUSY`).
  It proves nothing: an initiator takes it as a reason to try elsewhere or later, and for nothing else.

Both directions rekey (specification §4.2) after every `REKEY_EVERY` messages, so that a key taken from memory opens
only the latest part of a connection that may last for months.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.wireguard.primitives import (
    KEY_SIZE,
    TAG_SIZE,
    aead_open,
    aead_seal,
    clamp,
    dh,
    hash_,
    kdf2,
    public_key,
)

PROTOCOL_NAME: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
PROLOGUE: Final = b"overlay control v1"
LENGTH_SIZE: Final = 2  # bytes before each Noise message
INITIATION_SIZE: Final = KEY_SIZE + (KEY_SIZE + TAG_SIZE) + TAG_SIZE  # 96: e, s, empty payload
RESPONSE_SIZE: Final = KEY_SIZE + TAG_SIZE  # 48: e, empty payload
NOISE_MESSAGE_SIZE: Final = 65535  # specification §3
PAYLOAD_SIZE: Final = NOISE_MESSAGE_SIZE - TAG_SIZE
MESSAGE_LENGTH_SIZE: Final = 4
MAX_MESSAGE: Final = 4 * 1024 * 1024  # a map of some ten thousand nodes
REKEY_EVERY: Final = 1 << 14  # Noise messages: at most 1 GiB under one key
MAX_NONCE: Final = 2**64 - 1  # reserved for rekeying (specification §5.1)
_SMALL: Final = 4096  # bytes; up to there a message is copied behind its length
BUSY: Final = b"\0\0"  # what a responder sends instead of handshake 2 when it takes nobody more


class _State(Enum):
    AWAIT_INITIATION = auto()  # responder
    AWAIT_RESPONSE = auto()  # initiator
    AWAIT_CONFIRMATION = auto()  # responder: the peer's key is claimed, not proven fresh
    ESTABLISHED = auto()
    FAILED = auto()
    DETACHED = auto()


class CipherState:
    """One direction's key and nonce (specification §5.1), which rekeys itself every `REKEY_EVERY` messages."""

    def __init__(self, key: bytes, nonce: int = 0) -> None:
        self._key = key
        self._nonce = nonce

    def seal(self, plaintext: bytes) -> bytes:
        """Raises `LocalProtocolError` when the nonces are used up: never in practice, and then not silently."""
        if self._nonce >= MAX_NONCE:
            raise LocalProtocolError("nonces used up")
        ciphertext = aead_seal(self._key, self._nonce, plaintext, b"")
        self._advance()
        return ciphertext

    def open(self, ciphertext: bytes) -> bytes:
        """Raises `RemoteProtocolError`: `bad_tag`, or `nonces_used_up`."""
        if self._nonce >= MAX_NONCE:
            raise RemoteProtocolError("nonces_used_up")
        plaintext = aead_open(self._key, self._nonce, ciphertext, b"")
        self._advance()
        return plaintext

    def _advance(self) -> None:
        self._nonce += 1
        if self._nonce % REKEY_EVERY == 0:
            self._key = aead_seal(self._key, MAX_NONCE, bytes(KEY_SIZE), b"")[:KEY_SIZE]


class _SymmetricState:
    """Chaining key and transcript hash (specification §5.2)."""

    def __init__(self, responder_public: bytes, prologue: bytes) -> None:
        self._chaining_key = self.hash = hash_(PROTOCOL_NAME)  # hashed: its 33 bytes are more than a hash has
        self._key = b""
        self.mix_hash(prologue)
        self.mix_hash(responder_public)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hash_(self.hash, data)

    def mix_key(self, input_: bytes) -> None:
        self._chaining_key, self._key = kdf2(self._chaining_key, input_)

    def seal(self, plaintext: bytes) -> bytes:
        # Nonce 0 always: in IK every encrypted field comes after a mix_key of its own.
        ciphertext = aead_seal(self._key, 0, plaintext, self.hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def open(self, ciphertext: bytes) -> bytes:
        plaintext = aead_open(self._key, 0, ciphertext, self.hash)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """→ (initiator to responder, responder to initiator)."""
        first, second = kdf2(self._chaining_key, b"")
        return CipherState(first), CipherState(second)


class NoiseChannel:
    """One end of one channel. Make it with `initiator` or `responder`; drain `data_to_send` after every call."""

    def __init__(
        self,
        private_key: bytes,
        remote_public: bytes | None,
        random_bytes: Callable[[int], bytes],
        max_message: int,
        prologue: bytes,
    ) -> None:
        self._static = private_key
        self._static_public = public_key(private_key)
        self._random_bytes = random_bytes
        self._remote: bytes | None = remote_public
        self._prologue = prologue
        self._ephemeral = b""
        self._symmetric: _SymmetricState | None = None
        self._send: CipherState | None = None
        self._receive: CipherState | None = None
        self._received = bytearray()  # an incomplete Noise message
        self._stream = bytearray()  # an incomplete message
        self._messages: list[bytes] = []
        self._outgoing: list[bytes] = []  # Noise messages
        self._unsealed: deque[memoryview] = deque()  # of the stream, what is not in a Noise message yet
        self._waiting_size = 0  # of both
        self._failure: RemoteProtocolError | None = None
        self._one_more = False  # the next message is the last one of this channel
        self._state = _State.AWAIT_INITIATION
        self.max_message = max_message

    @classmethod
    def initiator(
        cls,
        private_key: bytes,
        server_public: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        max_message: int = MAX_MESSAGE,
        prologue: bytes = PROLOGUE,
    ) -> "NoiseChannel":
        """A channel to the holder of `server_public`; the first handshake message waits in `data_to_send`.

        Raises `RemoteProtocolError("low_order_point")` if `server_public` is not a usable key.
        """
        channel = cls(private_key, server_public, random_bytes, max_message, prologue)
        channel._write_initiation(server_public)
        return channel

    @classmethod
    def responder(
        cls,
        private_key: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        max_message: int = MAX_MESSAGE,
        prologue: bytes = PROLOGUE,
    ) -> "NoiseChannel":
        """The server's end. `max_message` may be raised later, when the peer is known to be welcome."""
        return cls(private_key, None, random_bytes, max_message, prologue)

    # getters ---------------------------------------------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """The peer has proven its key, freshly. Messages may be sent."""
        return self._state is _State.ESTABLISHED

    @property
    def remote_key(self) -> bytes | None:
        """The peer's static public key, 32 bytes; None until it is proven (`established`)."""
        return self._remote if self.established else None

    @property
    def handshake_hash(self) -> bytes:
        """The transcript's hash, 32 bytes, the same on both ends and on no other channel (channel binding, §11.2)."""
        if self._symmetric is None or not self.established:
            raise LocalProtocolError("no handshake hash before the channel is established")
        return self._symmetric.hash

    @property
    def bytes_to_send(self) -> int:
        """How many bytes wait for `data_to_send`, without what sealing will add to them."""
        return self._waiting_size

    # commands --------------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Queue one message of up to `MAX_MESSAGE` bytes. Raises `LocalProtocolError` before `established`.

        It is sealed when it goes. Until then it is kept as it is given, so that what goes to a thousand peers is in
        memory once.
        """
        if self._send is None or not self.established:
            raise LocalProtocolError("no message may be sent before the channel is established")
        if len(message) > MAX_MESSAGE:
            raise LocalProtocolError(f"a message of {len(message)} bytes; the limit is {MAX_MESSAGE}")
        length = len(message).to_bytes(MESSAGE_LENGTH_SIZE, "big")
        if len(message) <= _SMALL:
            self._unsealed.append(memoryview(length + message))
        else:
            self._unsealed += (memoryview(length), memoryview(message))
        self._waiting_size += MESSAGE_LENGTH_SIZE + len(message)

    def receive_data(self, data: bytes) -> None:
        """Take bytes of the carrier, cut anywhere. Whole messages are then in `messages`.

        Raises `RemoteProtocolError` once the peer breaks the protocol, and the same again for all that follows:
        `bad_length`, `bad_tag`, `low_order_point`, `server_busy`, `message_too_large`, `nonces_used_up`.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self._received += data
            self._read_noise_messages()
        except RemoteProtocolError as failure:
            self._failure = failure
            self._state = _State.FAILED
            self._received.clear()
            self._stream.clear()
            raise

    def expect_last(self) -> None:
        """The next message is the last: what comes behind it is not Noise, and is kept as it came for `detach`."""
        self._one_more = True

    def detach(self) -> bytes:
        """End the channel in the middle of the carrier's stream. → what came behind the last message, as it came.

        Raises `LocalProtocolError` while something waits to be sent, or if the channel is not established.
        """
        if not self.established or self._outgoing or self._unsealed:
            raise LocalProtocolError("only an established channel that has sent all can be detached")
        self._state = _State.DETACHED
        left = bytes(self._received)
        self._received.clear()
        return left

    # poll ------------------------------------------------------------------------------------------------------------

    def messages(self) -> list[bytes]:
        """The messages received since the last call, also those that came whole before the peer broke the protocol."""
        drained, self._messages = self._messages, []
        return drained

    def data_to_send(self, most: int | None = None) -> bytes:
        """The next bytes for the carrier: all there are, or `most` and up to one Noise message more."""
        drained, self._outgoing = self._outgoing, []
        size = sum(map(len, drained))
        self._waiting_size -= size
        while self._unsealed and (most is None or size < most):
            drained.append(self._seal_some())
            size += len(drained[-1])
        return b"".join(drained)

    # Noise messages --------------------------------------------------------------------------------------------------

    def _queue(self, noise_message: bytes) -> None:
        self._outgoing.append(len(noise_message).to_bytes(LENGTH_SIZE, "big") + noise_message)
        self._waiting_size += LENGTH_SIZE + len(noise_message)

    def _seal_some(self) -> bytes:
        """One Noise message of what is in front."""
        assert self._send is not None  # nothing is queued before
        pieces: list[memoryview] = []
        left = PAYLOAD_SIZE
        while self._unsealed and left:
            first = self._unsealed.popleft()
            if len(first) > left:
                self._unsealed.appendleft(first[left:])
                first = first[:left]
            pieces.append(first)
            left -= len(first)
        self._waiting_size -= PAYLOAD_SIZE - left
        sealed = self._send.seal(b"".join(pieces))
        return len(sealed).to_bytes(LENGTH_SIZE, "big") + sealed

    def _read_noise_messages(self) -> None:
        received = self._received
        start = 0
        while len(received) - start >= LENGTH_SIZE and not (self._one_more and self._messages):
            length = int.from_bytes(received[start : start + LENGTH_SIZE], "big")
            self._check_length(length)
            end = start + LENGTH_SIZE + length
            if len(received) < end:
                break
            self._read_noise_message(bytes(received[start + LENGTH_SIZE : end]))
            start = end
        del received[:start]

    def _check_length(self, length: int) -> None:
        if self._state is _State.AWAIT_INITIATION:
            if length != INITIATION_SIZE:
                raise RemoteProtocolError("bad_length", f"a first message of {length} bytes")
        elif self._state is _State.AWAIT_RESPONSE:
            if length == 0:
                raise RemoteProtocolError("server_busy")
            if length != RESPONSE_SIZE:
                raise RemoteProtocolError("bad_length", f"an answer of {length} bytes to the handshake")
        elif self._state is _State.AWAIT_CONFIRMATION:
            # An honest initiator confirms with an empty message: nobody unproven makes us hold more than that.
            if length != TAG_SIZE:
                raise RemoteProtocolError("bad_length", f"a confirmation of {length} bytes")
        elif length < TAG_SIZE:
            raise RemoteProtocolError("bad_length", f"a Noise message of {length} bytes")

    def _read_noise_message(self, message: bytes) -> None:
        if self._state is _State.AWAIT_INITIATION:
            self._read_initiation(message)
            return
        if self._state is _State.AWAIT_RESPONSE:
            self._read_response(message)
            return
        assert self._receive is not None  # the state says so
        plaintext = self._receive.open(message)
        self._state = _State.ESTABLISHED
        self._stream += plaintext
        self._read_messages()

    def _read_messages(self) -> None:
        stream = self._stream
        start = 0
        while len(stream) - start >= MESSAGE_LENGTH_SIZE:
            length = int.from_bytes(stream[start : start + MESSAGE_LENGTH_SIZE], "big")
            if length > self.max_message:
                raise RemoteProtocolError("message_too_large", f"{length} bytes; the limit is {self.max_message}")
            end = start + MESSAGE_LENGTH_SIZE + length
            if len(stream) < end:
                break
            self._messages.append(bytes(stream[start + MESSAGE_LENGTH_SIZE : end]))
            start = end
        del stream[:start]

    # the handshake (specification §7.5, pattern IK) ------------------------------------------------------------------

    def _write_initiation(self, server_public: bytes) -> None:
        symmetric = self._symmetric = _SymmetricState(server_public, self._prologue)
        self._ephemeral = clamp(self._random_bytes(KEY_SIZE))
        ephemeral_public = public_key(self._ephemeral)
        symmetric.mix_hash(ephemeral_public)
        symmetric.mix_key(dh(self._ephemeral, server_public))  # es
        static = symmetric.seal(self._static_public)
        symmetric.mix_key(dh(self._static, server_public))  # ss
        self._queue(ephemeral_public + static + symmetric.seal(b""))
        self._state = _State.AWAIT_RESPONSE

    def _read_initiation(self, message: bytes) -> None:
        symmetric = self._symmetric = _SymmetricState(self._static_public, self._prologue)
        remote_ephemeral = message[:KEY_SIZE]
        symmetric.mix_hash(remote_ephemeral)
        symmetric.mix_key(dh(self._static, remote_ephemeral))  # es
        remote_static = symmetric.open(message[KEY_SIZE:-TAG_SIZE])
        symmetric.mix_key(dh(self._static, remote_static))  # ss
        symmetric.open(message[-TAG_SIZE:])

        ephemeral = clamp(self._random_bytes(KEY_SIZE))
        ephemeral_public = public_key(ephemeral)
        symmetric.mix_hash(ephemeral_public)
        symmetric.mix_key(dh(ephemeral, remote_ephemeral))  # ee
        symmetric.mix_key(dh(ephemeral, remote_static))  # se
        self._queue(ephemeral_public + symmetric.seal(b""))
        self._remote = remote_static
        self._receive, self._send = symmetric.split()
        self._state = _State.AWAIT_CONFIRMATION

    def _read_response(self, message: bytes) -> None:
        symmetric = self._symmetric
        assert symmetric is not None  # the state says so
        remote_ephemeral = message[:KEY_SIZE]
        symmetric.mix_hash(remote_ephemeral)
        symmetric.mix_key(dh(self._ephemeral, remote_ephemeral))  # ee
        symmetric.mix_key(dh(self._static, remote_ephemeral))  # se
        symmetric.open(message[KEY_SIZE:])
        self._ephemeral = b""
        self._send, self._receive = symmetric.split()
        self._queue(self._send.seal(b""))  # confirms to the responder that this is no replay
        self._state = _State.ESTABLISHED
