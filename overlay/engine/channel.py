"""What every record to a peer needs, looked up once for many. Knows no frames and no timers."""

from overlay.engine.link import Link
from overlay.engine.msghdr import Name, RecordMessage
from overlay.engine.udp import UdpSocket
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout
from overlay.wire.record.fragments import FRAGMENT_HEADER_SIZE, TAG_SIZE
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.keypair import Keypair


class Channel:
    """Holds until the peer's keys, route or datagram size change, or the socket refuses something: then `Peer.channel`
    is None.

    `turn`: the `now`, compared by identity, of the turn in which the peer's machines were told last that data goes
    out. `limit`: bytes of the largest box that goes out in one call. `alone`: bytes of the largest plaintext that
    `send_alone` takes; -1: none.
    """

    __slots__ = (
        "_box", "_datagram", "_header", "_head_size", "_seal_alone", "_send", "address", "alone", "descriptor",
        "expires", "keypair", "layout", "limit", "message", "name", "prefix", "seal", "sock",
        "turn", "writer",
    )  # fmt: skip

    def __init__(
        self,
        keypair: Keypair,
        writer: RecordWriter,
        layout: Layout,
        prefix: bytes,
        address: Endpoint,
        sock: UdpSocket | Link | None,
    ) -> None:
        self.turn = -1.0
        self.keypair = keypair
        self.writer = writer
        self.expires = keypair.expires
        self.seal = writer.seal
        self.layout = layout
        self.prefix = prefix
        self.address = address
        self.sock = sock
        self.limit = 0
        self.descriptor = -1
        self.message: RecordMessage | None = None
        self.name: Name | None = None
        if sock is not None:
            self.limit, self.descriptor = sock.record_limit(layout), sock.fileno()
            self.message, self.name = sock.message(layout), sock.name(address)
        self._send = None if sock is None else sock.plain_sender()
        self.alone = layout.payload - TAG_SIZE if self._send is not None else -1
        self._seal_alone = writer.seal_alone
        self._head_size = len(prefix) + FRAGMENT_HEADER_SIZE
        self._datagram = memoryview(bytearray(prefix + writer.header_alone()).ljust(layout.datagram_size, b"\0"))
        self._header = self._datagram[len(prefix) : self._head_size]
        self._box = self._datagram[self._head_size :]

    def send_alone(self, plain: memoryview) -> None:
        """Send one record without a traffic class in one datagram, in the fewest steps. Raises `OSError` if the socket
        does not take it: the record is lost."""
        size = len(plain) + TAG_SIZE
        self._seal_alone(plain, self.keypair.next_counter(), self._header, self._box[:size])
        if self._send is not None:
            self._send(self._datagram[: self._head_size + size], self.address)
