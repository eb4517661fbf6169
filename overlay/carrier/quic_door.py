"""The server's side of the carrier `udp`: datagrams of the shared UDP port in, streams of nodes out.

A stranger costs nothing until it has shown that it can receive at its address (a Retry, RFC 9000 §8.1.2): no state, and
an answer that is smaller than what it sent. Then it passes the same door as a TCP connection, under the same limits.
The socket is somebody else's: `received` is called with each QUIC datagram, on the event loop's thread.
"""

import asyncio
import hmac
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import groupby
from typing import Final, Protocol

import anyio
from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from overlay.carrier.limits import BURST, Door, Visit
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_connection import RESET_TOKEN_SIZE, BoundedConnection
from overlay.carrier.quic_line import QuicLine
from overlay.carrier.waiting import Waiting, WaitingRoom
from overlay.wire.endpoint import Endpoint, format_endpoint

_VERSIONS: Final[list[int]] = [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2]
_ID_SIZE: Final = 8  # bytes of our connection ids
_RESET_SIZE: Final = 40  # bytes of a stateless reset: looks like a short packet (RFC 9000 §10.3)
_TURN: Final = 0.05  # s between two looks at those who wait
_RESETS_PER_SECOND: Final = 100.0  # each costs an HMAC: a server's restart under a thousand nodes takes ten seconds


class Host(Protocol):
    """Who serves the streams: the control channel's server."""

    @property
    def door(self) -> Door: ...

    def count(self, reason: str, peer: str, detail: str = "") -> None: ...

    def start(self, stream: QuicStream, endpoint: Endpoint, visit: Visit) -> None:
        """Serve it in a task of its own, close it at the end and leave."""


class QuicDoor:
    """Accepts connections while `run` runs. `send` gives datagrams to the owner of the socket and must not block."""

    def __init__(
        self,
        send: Callable[[Sequence[bytes], Endpoint], None],
        certificate: Callable[[], tuple[bytes, bytes]],
        private_key: bytes,
        expect: Callable[[Endpoint, bool], None] = lambda endpoint, expected: None,
    ) -> None:
        """`certificate` gives chain and key as PEM, the newest of them: it is asked for each new connection.
        `private_key`: the server's, so that its next life can tell nodes that it knows their connections no more.
        `expect`: from now on, or no more, much comes from there."""
        self._send = send
        self._expect = expect
        self._certificate = certificate
        self._reset_key = hmac.digest(private_key, b"quic stateless reset", "sha256")
        self._retry = QuicRetryTokenHandler()
        self._host: Host | None = None
        self._lines: dict[bytes, QuicLine] = {}  # by connection id: some of each connection
        self._loaded: tuple[tuple[bytes, bytes], QuicConfiguration] | None = None
        self._room = WaitingRoom()
        self._next_turn: asyncio.TimerHandle | None = None
        self._resets_full_at = 0.0  # generic cell rate algorithm, as in `Door`

    @property
    def connection_ids(self) -> int:
        """How many are known; none when no connection is left."""
        return len(self._lines)

    async def run(self, host: Host) -> None:
        """Until cancelled; then the nodes are told."""
        self._host = host
        try:
            await anyio.sleep_forever()
        finally:
            self._host = None
            if self._next_turn is not None:
                self._next_turn.cancel()
                self._next_turn = None
            for line in set(self._lines.values()):
                line.close()

    def received(self, datagram: bytes, source: Endpoint) -> None:
        """One datagram as it came from the network."""
        host = self._host
        if host is None:
            return
        try:
            header = pull_quic_header(Buffer(data=datagram), host_cid_length=_ID_SIZE)
        except ValueError:
            host.count("quic_garbage", format_endpoint(source))
            return
        line = self._lines.get(header.destination_cid)
        if line is not None:
            line.feed(datagram, source)
            line.flush_soon()
        elif header.version is None:
            self._disown(datagram, header, source)
        elif header.packet_type is QuicPacketType.VERSION_NEGOTIATION or len(datagram) < SMALLEST_MAX_DATAGRAM_SIZE:
            host.count("quic_garbage", format_endpoint(source))
        elif header.version not in _VERSIONS:
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=_VERSIONS,
            )
            self._send([answer], source)
        elif header.packet_type is not QuicPacketType.INITIAL:
            host.count("quic_unknown_connection", format_endpoint(source))
        elif not header.token:
            self._send([self._ask_again(header, source)], source)
        else:
            self._let_in(datagram, header, source, host)

    # inside ----------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _ask_again(self, header: QuicHeader, source: Endpoint) -> bytes:
        retry_id = os.urandom(_ID_SIZE)
        assert header.version is not None
        return encode_quic_retry(
            version=header.version,
            source_cid=retry_id,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=self._retry.create_token(
                address=source,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=retry_id,
                now=self._now(),
            ),
        )

    def _let_in(self, datagram: bytes, header: QuicHeader, source: Endpoint, host: Host) -> None:
        try:
            original_id = self._retry.validate_token(
                address=source, destination_cid=header.destination_cid, token=header.token, now=self._now()
            )
        except ValueError as error:
            host.count("quic_bad_token", format_endpoint(source), str(error))
            return
        if not self._room.enter(header.destination_cid, source, datagram, original_id, self._now()):
            host.count("too_many_waiting", format_endpoint(source))
        elif self._next_turn is None:
            self._admit()

    def _admit(self) -> None:
        """Serve those who wait, and look again soon if some are left: the door does not say when it has room."""
        self._next_turn = None
        host = self._host
        if host is None:
            return
        now = self._now()
        for connection_id, waiting, visit in self._room.admit(lambda address: host.door.enter(address, now), now):
            self._start(connection_id, waiting, visit, host)
        if self._room:
            self._next_turn = asyncio.get_running_loop().call_later(_TURN, self._admit)

    def _start(self, retry_id: bytes, waiting: Waiting, visit: Visit, host: Host) -> None:
        connection = BoundedConnection(
            configuration=self._configuration(),
            original_destination_connection_id=waiting.original_id,
            retry_source_connection_id=retry_id,
            reset_token=self._reset_token,
        )
        ids = {retry_id, connection.host_cid}

        def identify(connection_id: bytes, ours: bool) -> None:
            if ours:
                ids.add(connection_id)
                self._lines[connection_id] = line
            else:
                ids.discard(connection_id)
                self._lines.pop(connection_id, None)

        expected: list[Endpoint] = []

        def admit() -> None:
            expected.append(waiting.endpoint)
            self._expect(waiting.endpoint, True)

        def forget() -> None:
            for connection_id in ids:
                self._lines.pop(connection_id, None)
            for endpoint in expected:
                self._expect(endpoint, False)

        def arrive(stream: QuicStream) -> None:
            self._follow(stream, waiting.endpoint)

        line = QuicLine(connection, self._transmit, forget, identify, arrive, admit)
        self._lines.update(dict.fromkeys(ids, line))
        line.feed(waiting.first, waiting.endpoint)
        if waiting.latest is not waiting.first:  # it may say that nobody waits any more
            line.feed(waiting.latest, waiting.endpoint)
        line.flush_soon()
        host.start(line.first, waiting.endpoint, visit)

    def _follow(self, stream: QuicStream, endpoint: Endpoint) -> None:
        """One more stream of a connection whose other end is known."""
        host = self._host
        visit = host.door.follow(endpoint[0]) if host is not None else "closed"
        if host is None or isinstance(visit, str):
            stream.cut()
            stream.close()
            if host is not None:
                host.count(str(visit), format_endpoint(endpoint))
            return
        host.start(stream, endpoint, visit)

    def _transmit(self, datagrams: Sequence[tuple[bytes, Endpoint]]) -> None:
        for endpoint, group in groupby(datagrams, key=lambda each: each[1]):
            self._send([datagram for datagram, _ in group], endpoint)

    def _disown(self, datagram: bytes, header: QuicHeader, source: Endpoint) -> None:
        """A stateless reset: shorter than what it answers, so that two ends cannot do this to each other for ever."""
        size = min(_RESET_SIZE, len(datagram) - 1)
        now = self._now()
        full_at = max(self._resets_full_at, now)
        if size <= RESET_TOKEN_SIZE + 5 or full_at - now > BURST:
            return
        self._resets_full_at = full_at + 1 / _RESETS_PER_SECOND
        filler = bytearray(os.urandom(size - RESET_TOKEN_SIZE))
        filler[0] = filler[0] & 0x3F | 0x40
        self._send([bytes(filler) + self._reset_token(header.destination_cid)], source)

    def _reset_token(self, connection_id: bytes) -> bytes:
        return hmac.new(self._reset_key, connection_id, sha256).digest()[:RESET_TOKEN_SIZE]

    def _configuration(self) -> QuicConfiguration:
        current = self._certificate()
        if self._loaded is None or self._loaded[0] != current:
            chain_pem, key_pem = current
            chain = x509.load_pem_x509_certificates(chain_pem)
            configuration = QuicConfiguration(
                is_client=False, connection_id_length=_ID_SIZE, supported_versions=_VERSIONS
            )
            configuration.certificate, configuration.certificate_chain = chain[0], chain[1:]
            configuration.private_key = load_pem_private_key(key_pem, None)
            self._loaded = (current, configuration)
        return self._loaded[1]
