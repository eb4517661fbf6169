"""Two ends of the carrier `udp` on real loopback sockets, and the network between them."""

import asyncio
import os
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.connection import ControlConnection
from overlay.carrier.dialling import find_server
from overlay.carrier.limits import DEFAULT_LIMITS, Limits
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_client import open_quic
from overlay.carrier.quic_door import QuicDoor
from overlay.carrier.tcp import serve
from overlay.carrier.verification import spki_sha256
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message
from overlay.wire.endpoint import Endpoint

from .ends import NODE, SERVER, SERVER_PUBLIC, Handler

CA = trustme.CA()
ISSUED = CA.issue_cert("vpn.example.test", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
CERTIFICATE = (b"".join(blob.bytes() for blob in ISSUED.cert_chain_pems), ISSUED.private_key_pem.bytes())


def pin_of(chain_pem: bytes) -> bytes:
    return spki_sha256(x509.load_pem_x509_certificate(chain_pem).public_bytes(Encoding.DER))


PIN = pin_of(CERTIFICATE[0])


def udp_socket(port: int = 0) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.bind(("127.0.0.1", port))
    return opened


@contextmanager
def reading(opened: socket.socket, received: Callable[[bytes, Endpoint], None]) -> Iterator[socket.socket]:
    """Call `received` on the loop with each datagram; closes the socket."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        while True:
            try:
                datagram, source = opened.recvfrom(65536)
            except OSError:
                return
            received(datagram, source)

    loop.add_reader(opened, readable)
    try:
        yield opened
    finally:
        loop.remove_reader(opened)
        opened.close()


@dataclass
class RunningQuic:
    port: int
    door: QuicDoor
    sent: list[int] = field(default_factory=list)  # sizes of what went out
    drops: Counter[str] = field(default_factory=Counter)

    async def open(self, options: DialOptions | None = None, port: int | None = None) -> QuicStream:
        with anyio.fail_after(10):
            return await open_quic(("127.0.0.1", port or self.port), options or DialOptions())

    async def dial(self, limits: Limits = DEFAULT_LIMITS, port: int | None = None) -> ControlConnection:
        address = f"127.0.0.1:{port or self.port}"
        openers: dict[CarrierName, Opener] = {"udp": open_quic}
        found = await find_server([address], SERVER_PUBLIC, NODE, 10.0, limits, carriers=("udp",), openers=openers)
        return found.connection

    async def dropped(self, reason: str, count: int = 1) -> None:
        """Wait until the server has counted it."""
        with anyio.fail_after(10):
            while self.drops[reason] < count:  # noqa: ASYNC110 - a counter tells nobody
                await anyio.sleep(0.005)

    async def empty(self) -> None:
        """Wait until the door knows no connection any more."""
        with anyio.fail_after(10):
            while self.door.connection_ids:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.005)


async def noise(stream: CarrierStream) -> ControlConnection:
    """The node's end of the Noise handshake, on any carrier."""
    with anyio.fail_after(10):
        channel = NoiseChannel.initiator(NODE, SERVER_PUBLIC, random_bytes=os.urandom)
        await stream.send(channel.data_to_send())
        while (key := channel.remote_key) is None:
            channel.receive_data(await stream.receive(4096))
        await stream.send(channel.data_to_send())
    return ControlConnection(stream, channel, key, ("127.0.0.1", 1), decode_server_message, DEFAULT_LIMITS)


@asynccontextmanager
async def serving_quic(
    handler: Handler,
    limits: Limits = DEFAULT_LIMITS,
    port: int = 0,
    certificate: Callable[[], tuple[bytes, bytes]] = lambda: CERTIFICATE,
) -> AsyncIterator[RunningQuic]:
    opened = udp_socket(port)
    sent: list[int] = []

    def send(datagrams: Sequence[bytes], endpoint: Endpoint) -> None:
        for datagram in datagrams:
            sent.append(len(datagram))
            try:
                opened.sendto(datagram, endpoint)
            except OSError:
                return  # lost

    door = QuicDoor(send, certificate, SERVER)
    running = RunningQuic(opened.getsockname()[1], door, sent)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener:
        with reading(opened, door.received):
            async with anyio.create_task_group() as tasks:

                async def run() -> None:
                    await serve(listener, SERVER, handler, limits, drops=running.drops, quic=door)

                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                try:
                    yield running
                finally:
                    tasks.cancel_scope.cancel()


class Network:
    """Between one client and a server: loses and reorders what `fate` says; may move the client to another port.

    `fate` (number of the datagram) → "pass", "lose", or "late": behind the next one.
    """

    def __init__(self, server_port: int, fate: Callable[[int], str] = lambda number: "pass") -> None:
        self.fate = fate
        self.server: Endpoint = ("127.0.0.1", server_port)
        self._client: Endpoint | None = None
        self._count = 0
        self._late: deque[tuple[Callable[[bytes], None], bytes]] = deque(maxlen=1)
        self._inside = udp_socket()
        self._outside = udp_socket()
        self.port: int = self._inside.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["Network"]:
        with reading(self._inside, self._from_client):
            self._loop = asyncio.get_running_loop()
            self._open()
            try:
                yield self
            finally:
                self._loop.remove_reader(self._outside)
                self._outside.close()

    def rebind(self) -> None:
        """As a NAT that has forgotten the mapping: the client comes from another port from now on."""
        self._loop.remove_reader(self._outside)
        old, self._outside = self._outside, udp_socket()
        old.close()
        self._open()

    def _open(self) -> None:
        self._loop.add_reader(self._outside, self._from_server)

    def _from_client(self, datagram: bytes, source: Endpoint) -> None:
        self._client = source
        self._pass_on(datagram, self._to_server)

    def _to_server(self, datagram: bytes) -> None:
        self._outside.sendto(datagram, self.server)

    def _to_client(self, datagram: bytes) -> None:
        if self._client is not None:
            self._inside.sendto(datagram, self._client)

    def _from_server(self) -> None:
        while True:
            try:
                datagram = self._outside.recv(65536)
            except OSError:
                return
            if self._client is not None:
                self._pass_on(datagram, self._to_client)

    def _pass_on(self, datagram: bytes, send: Callable[[bytes], None]) -> None:
        fate = self.fate(self._count)
        self._count += 1
        late = list(self._late)
        self._late.clear()
        if fate == "late":
            self._late.append((send, datagram))
        elif fate == "pass":
            send(datagram)
        for send_late, held in late:
            send_late(held)
