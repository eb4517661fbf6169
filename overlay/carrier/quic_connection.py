"""aioquic's connection with bounds on what a peer's claims may cost. No I/O, no clock.

aioquic doubles a window as soon as half of it is *claimed*, whether anybody reads or not, and a claim reserves memory:
twenty packets of a stranger would be enough to fill a server's. Here a window moves only by what was read. There is one
bidirectional stream, and more only when the server permits them. Handshake data and the pieces that out-of-order data
comes in are bounded too. A stateless reset (RFC 9000 §10.3) ends a connection at once whose other end has lost its
memory of it. Everything that reaches into aioquic is in this file.
"""

import hmac
import logging
from collections.abc import Callable
from typing import Final

from aioquic._buffer import Buffer, BufferReadError
from aioquic.buffer import UINT_VAR_MAX_SIZE, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography.hazmat.primitives.serialization import Encoding

from overlay.carrier.limits import KIB

ALPN: Final = "h3"
"""What most of the QUIC traffic in the world says that it is."""
STREAM_ID: Final = 0  # the client's first bidirectional stream (RFC 9000 §2.1)
MOST_STREAMS: Final = 32  # of one connection, once permitted: aioquic looks at each of them for each packet
WINDOW: Final = 256 * KIB  # that the peer may send before we have read, of each stream
IDLE_TIMEOUT: Final = 30.0  # s without a sign of life, after something was sent: two heartbeats of the control channel
RESET_TOKEN_SIZE: Final = 16
MAX_DATAGRAM_FRAME: Final = 2048  # bytes: what a peer may send by one (RFC 9221)
_MAX_DATAGRAMS: Final = 64  # that wait to be sent
_SMALLEST_RESET: Final = 21  # bytes of a stateless reset (RFC 9000 §10.3)
_UNBOUNDED: Final = 2**60  # of the connection's window, since each of its few streams has its own
_MAX_CRYPTO: Final = 64 * KIB  # of handshake data of each epoch: a long certificate chain four times
_MAX_PIECES: Final = 512  # out of order: of a whole window in the smallest datagrams, more than every other one
_LOOK: Final = 16  # datagrams, after which these are counted again

# Any stranger's datagram can make aioquic write warnings. What matters is counted, and logged by whoever counts it.
logging.getLogger("quic").setLevel(logging.CRITICAL)


def with_flow(stream_id: int, datagram: bytes) -> bytes:
    """Say to which stream a datagram belongs: by the number of it in fours, as RFC 9297 §2.1 does."""
    return encode_uint_var(stream_id // 4) + datagram


def flow_of(datagram: bytes) -> tuple[int, bytes] | None:
    """→ stream and datagram of `with_flow`; None: it is none."""
    buffer = Buffer(data=datagram[:UINT_VAR_MAX_SIZE])
    try:
        number = buffer.pull_uint_var()
    except BufferReadError:
        return None
    return 4 * number, datagram[buffer.tell() :]


class BoundedConnection(QuicConnection):
    """One end. `reset_token` (connection id → 16 bytes): of a server, the same after its restart."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
        reset_token: Callable[[bytes], bytes] | None = None,
    ) -> None:
        configuration.alpn_protocols = [ALPN]
        configuration.idle_timeout = IDLE_TIMEOUT
        configuration.max_stream_data = WINDOW
        configuration.max_data = _UNBOUNDED
        configuration.max_datagram_frame_size = MAX_DATAGRAM_FRAME
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        bidirectional, unidirectional = self._local_max_streams_bidi, self._local_max_streams_uni
        bidirectional.value = bidirectional.sent = 0 if configuration.is_client else 1
        unidirectional.value = unidirectional.sent = 0
        self._reset_token = reset_token
        self._read: dict[int, int] = {}  # bytes of each stream
        self._due: set[int] = set()  # streams whose window is to be announced
        self._unseen = 0  # datagrams since pieces were counted
        self._name_reset_tokens()

    @property
    def ending(self) -> ConnectionTerminated | None:
        """Why the connection is over, as soon as it is known: the event itself comes only when draining is done."""
        return self._close_event

    def permit(self) -> None:
        """Let the peer open more streams than one; as many as it ends, it may open anew."""
        self._local_max_streams_bidi.value += MOST_STREAMS - 1

    @property
    def room(self) -> int:
        """How many streams the peer lets us open now."""
        return self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4

    def open_stream(self) -> int:
        """→ its number. There must be room."""
        stream_id = self.get_next_available_stream_id()
        self.send_stream_data(stream_id, b"")
        return stream_id

    def has(self, stream_id: int) -> bool:
        """Whether something may still come of it, or go."""
        return stream_id in self._streams

    def abandon(self, stream_id: int, error_code: int) -> None:
        """Neither send nor take anything more of it."""
        if stream_id in self._streams:
            self.reset_stream(stream_id, error_code)
            self.stop(stream_id, error_code)

    def stop(self, stream_id: int, error_code: int = QuicErrorCode.NO_ERROR) -> None:
        """Take nothing more of it."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, error_code)

    def forget(self, stream_id: int) -> None:
        """It is not read any more."""
        self._read.pop(stream_id, None)
        self._due.discard(stream_id)

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes written to the stream that the peer may still ask for again."""
        stream = self._streams.get(stream_id)
        return len(stream.sender._buffer) if stream is not None else 0

    @property
    def awaits_answer(self) -> bool:
        """Some of a stream was sent and is not acknowledged. What waits for the peer's window does not count."""
        for stream in self._streams.values():
            sender = stream.sender
            if sender.highest_offset > sender._buffer_start and not sender.is_finished:
                return True
        return False

    @property
    def takes_datagrams(self) -> bool:
        """The peer knows them, and not too many wait for the congestion window."""
        return bool(self._remote_max_datagram_frame_size) and len(self._datagrams_pending) < _MAX_DATAGRAMS

    @property
    def peer_certificate(self) -> bytes | None:
        """DER; proven to be the peer's once the handshake is complete."""
        certificate = self.tls._peer_certificate
        return certificate.public_bytes(Encoding.DER) if certificate is not None else None

    def read(self, stream_id: int, size: int) -> bool:
        """So many bytes of a stream were taken by whoever reads. → whether the peer should be told now."""
        self._read[stream_id] = self._read.get(stream_id, 0) + size
        stream = self._streams.get(stream_id)
        if stream is None or not self._credit_is_due(stream):
            return False
        self._due.add(stream_id)
        return True

    def receive(self, datagram: bytes, source: tuple[str, int], now: float) -> None:
        """`receive_datagram`, and its bounds. Hostile data may raise whatever aioquic did not think of."""
        if self._is_client and self._close_event is None and self._is_reset(datagram):
            self._close_event = ConnectionTerminated(
                error_code=QuicErrorCode.NO_VIABLE_PATH, frame_type=None, reason_phrase="the server knows it no more"
            )
            self._close_begin(is_initiator=False, now=now)
            return
        self.receive_datagram(datagram, source, now)
        self._unseen += 1
        if self._unseen >= _LOOK or not self._handshake_confirmed:
            self._unseen = 0
            self._count_pieces()

    # what aioquic calls ----------------------------------------------------------------------------------------------

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        stream_id = stream.stream_id
        if stream_id not in self._due or stream_id is None or not self._credit_is_due(stream):
            return
        limit = self._read.get(stream_id, 0) + WINDOW
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        frame.push_uint_var(stream_id)
        frame.push_uint_var(limit)
        stream.max_stream_data_local = stream.max_stream_data_local_sent = limit
        self._due.discard(stream_id)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not QuicDeliveryState.ACKED and stream.stream_id in self._read:
            self._due.add(stream.stream_id)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > _MAX_CRYPTO:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too long a handshake")
        super()._handle_crypto_frame(context, frame_type, buf)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._name_reset_tokens()

    # inside ----------------------------------------------------------------------------------------------------------

    def _credit_is_due(self, stream: QuicStream) -> bool:
        # A lost announcement sets what was sent to 0, so that it is due again.
        read = self._read.get(stream.stream_id or 0, 0)
        return not stream.receiver.is_finished and read + WINDOW - stream.max_stream_data_local_sent >= WINDOW // 2

    def _count_pieces(self) -> None:
        # Each piece is looked at for each frame that comes.
        for streams in (self._streams, self._crypto_streams):
            if any(len(stream.receiver._ranges) > _MAX_PIECES for stream in streams.values()):
                self.close(QuicErrorCode.PROTOCOL_VIOLATION, reason_phrase="too many pieces")

    def _name_reset_tokens(self) -> None:
        if self._reset_token is not None:
            for each in self._host_cids:
                each.stateless_reset_token = self._reset_token(each.cid)

    def _is_reset(self, datagram: bytes) -> bool:
        if len(datagram) < _SMALLEST_RESET or datagram[0] >= 0x80:
            return False
        end = datagram[-RESET_TOKEN_SIZE:]
        known = (self._peer_cid, *self._peer_cid_available)
        return any(
            each.stateless_reset_token and hmac.compare_digest(end, each.stateless_reset_token) for each in known
        )
