"""What every record to a peer needs, looked up once in a turn of the loop. Knows no frames and no timers."""

from overlay.engine.link import Link
from overlay.engine.msghdr import Name, RecordMessage
from overlay.engine.udp import UdpSocket
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.keypair import Keypair


class Channel:
    """Holds for one turn, and only until the peer's keys, route or datagram size change: then `Peer.channel` is None.

    `turn`: the turn's `now`, compared by identity. `limit`: bytes of the largest box that goes out in one call.
    """

    __slots__ = (
        "address", "descriptor", "keypair", "layout", "limit", "message", "name", "prefix", "seal", "sock", "turn",
        "writer",
    )  # fmt: skip

    def __init__(
        self,
        turn: float,
        keypair: Keypair,
        writer: RecordWriter,
        layout: Layout,
        prefix: bytes,
        address: Endpoint,
        sock: UdpSocket | Link | None,
    ) -> None:
        self.turn = turn
        self.keypair = keypair
        self.writer = writer
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
