"""A user by HTTP/2 who keeps to the rules only as far as a test wants him to."""

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.streams.tls import TLSAttribute, TLSStream
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.carrier.streams import Certificate
from tests.server.web.shared_port import HOST, SharedPort

Fields = Sequence[tuple[bytes, bytes]]
NAME = "site.test"


@dataclass
class Answer:
    heads: list[dict[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> bytes:
        return self.heads[-1][b":status"] if self.heads else b""

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class Http2User:
    def __init__(self, stream: TLSStream) -> None:
        self.stream = stream
        self.h2 = H2Connection(
            H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.goodbye: int | None = None  # the error code of GOAWAY
        self.pinged = False
        self.taking = True  # gives windows back

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send(data)

    async def ask(
        self, path: str = "/", *more: tuple[bytes, bytes], method: str = "GET", end: bool = True, host: str = NAME
    ) -> int:
        number = self.h2.get_next_available_stream_id()
        fields = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", host.encode()),
            (b":path", path.encode()),
            *more,
        ]
        self.h2.send_headers(number, fields, end_stream=end)
        await self.flush()
        return number

    async def turn(self) -> None:
        """Take in what comes next. Raises `EndOfStream`."""
        try:
            data = await self.stream.receive()
        except anyio.BrokenResourceError as error:
            raise anyio.EndOfStream from error
        for event in self.h2.receive_data(data):
            self._handle(event)
        await self.flush()

    async def ping(self) -> None:
        """There and back: what was said before has arrived."""
        self.h2.ping(b"returned")
        await self.flush()
        self.pinged = False
        while not self.pinged:
            await self.turn()

    async def answer(self, number: int) -> Answer:
        while not self.answers[number].over:
            await self.turn()
        return self.answers[number]

    async def end(self) -> int | None:
        """Wait for the connection's end. → the error code of GOAWAY"""
        try:
            while True:
                await self.turn()
        except anyio.EndOfStream:
            return self.goodbye

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.ResponseReceived | events.InformationalResponseReceived):
            self.answers[event.stream_id].heads.append({bytes(k): bytes(v) for k, v in event.headers})
        elif isinstance(event, events.DataReceived):
            self.answers[event.stream_id].body += event.data
            if self.taking:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, events.TrailersReceived):
            self.answers[event.stream_id].trailers = {bytes(k): bytes(v) for k, v in event.headers}
        elif isinstance(event, events.StreamEnded):
            self.answers[event.stream_id].ended = True
        elif isinstance(event, events.StreamReset):
            self.answers[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, events.PingAckReceived):
            self.pinged = True
        elif isinstance(event, events.ConnectionTerminated):
            self.goodbye = int(event.error_code or 0)


async def tls_user(port: SharedPort, certificate: Certificate) -> TLSStream:
    context = ssl.create_default_context(cafile=certificate.ca_file)
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    return await anyio.connect_tcp(
        HOST, port.port, ssl_context=context, tls_hostname=NAME, tls_standard_compatible=False
    )


@asynccontextmanager
async def http2_user(port: SharedPort, certificate: Certificate) -> AsyncIterator[Http2User]:
    async with await tls_user(port, certificate) as stream:
        assert stream.extra(TLSAttribute.alpn_protocol) == "h2"
        user = Http2User(stream)
        await user.flush()
        yield user
