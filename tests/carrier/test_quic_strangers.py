"""What strangers may send to the QUIC port, and what it costs us."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.carrier.carriers import CarrierStream
from overlay.carrier.limits import DEFAULT_LIMITS, Door, Visit
from overlay.carrier.quic import QuicStream
from overlay.carrier.quic_connection import ALPN, MOST_STREAMS, STREAM_ID, WINDOW
from overlay.carrier.quic_door import QuicDoor
from overlay.wire.endpoint import Endpoint

from .ends import SERVER, answer_pings, greeted
from .quic_ends import CERTIFICATE, serving_quic

pytestmark = pytest.mark.anyio

QUICK = replace(DEFAULT_LIMITS, handshake=0.5, admission=0.5)
HERE = ("192.0.2.9", 4433)
THERE = ("192.0.2.1", 443)


class Bench:
    """A door without sockets: what it sends waits in `sent`, and connections that are let in wait in `streams`."""

    def __init__(self) -> None:
        self.door = Door(DEFAULT_LIMITS)
        self.drops: Counter[str] = Counter()
        self.streams: list[CarrierStream] = []
        self.visits: list[Visit] = []
        self.sent: list[tuple[bytes, Endpoint]] = []
        self.quic = QuicDoor(self._send, lambda: CERTIFICATE, SERVER)
        self.quic._host = self

    def _send(self, datagrams: Sequence[bytes], endpoint: Endpoint) -> None:
        self.sent += [(datagram, endpoint) for datagram in datagrams]

    def count(self, reason: str, peer: str, detail: str = "") -> None:
        self.drops[reason] += 1

    def start(self, stream: CarrierStream, endpoint: Endpoint, visit: Visit) -> None:
        self.streams.append(stream)
        self.visits.append(visit)

    async def exchange(self, client: QuicConnection, source: Endpoint = HERE) -> None:
        """Pass datagrams on until nobody has anything to say."""
        for _ in range(50):
            now = anyio.current_time()
            out = client.datagrams_to_send(now)
            for datagram, _ in out:
                self.quic.received(datagram, source)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            back, self.sent = self.sent, []
            for datagram, _ in back:
                client.receive_datagram(datagram, THERE, now)
            if not out and not back:
                return

    async def connected(self, alpn: str = ALPN, source: Endpoint = HERE) -> QuicConnection:
        client = stranger(alpn)
        await self.exchange(client, source)
        return client

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def stranger(alpn: str = ALPN) -> QuicConnection:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], verify_mode=0)
    client = QuicConnection(configuration=configuration)
    client.connect(THERE, anyio.current_time())
    return client


def why(client: QuicConnection) -> str:
    """The reason that it was told."""
    assert client._close_event is not None
    return client._close_event.reason_phrase


def first_of(bench: Bench) -> QuicStream:
    (stream,) = bench.streams
    assert isinstance(stream, QuicStream)
    return stream


async def test_a_forged_source_costs_no_memory_and_gets_less_than_it_sent() -> None:
    bench = Bench()
    for number in range(500):
        client = stranger()
        for datagram, _ in client.datagrams_to_send(anyio.current_time()):
            bench.quic.received(datagram, (f"198.51.100.{number % 250}", 1000 + number))
            assert len(datagram) >= 1200
    assert len(bench.sent) == 500
    assert max(len(datagram) for datagram, _ in bench.sent) < 300
    assert bench.quic.connection_ids == 0
    assert not bench.streams


async def test_a_token_of_another_address_is_nobodys() -> None:
    bench = Bench()
    client = stranger()
    now = anyio.current_time()
    for datagram, _ in client.datagrams_to_send(now):
        bench.quic.received(datagram, HERE)
    client.receive_datagram(bench.sent.pop()[0], THERE, now)
    for datagram, _ in client.datagrams_to_send(now):
        bench.quic.received(datagram, ("198.51.100.1", 1))
    assert bench.drops == {"quic_bad_token": 1}
    assert not bench.sent
    assert bench.quic.connection_ids == 0


async def test_the_limits_per_address_hold() -> None:
    bench = Bench()
    for _ in range(DEFAULT_LIMITS.strangers_per_address + 3):
        await bench.connected()
    assert len(bench.streams) == DEFAULT_LIMITS.strangers_per_address
    assert len(bench.quic._room) == 3
    bench.visits[0].leave()
    bench.quic._admit()
    assert len(bench.streams) == DEFAULT_LIMITS.strangers_per_address + 1
    assert len(bench.quic._room) == 2
    bench.close()


async def test_another_version_is_told_ours() -> None:
    bench = Bench()
    unknown = b"\xc0" + b"\x1a\x2a\x3a\x4a" + b"\x08" + bytes(8) + b"\x08" + bytes(8) + bytes(1200)
    bench.quic.received(unknown, HERE)
    ((answer, _),) = bench.sent
    assert answer[1:5] == bytes(4)
    assert len(answer) < 100
    bench.sent.clear()
    bench.quic.received(unknown[:600], HERE)  # too short to be answered
    bench.quic.received(answer, HERE)  # two servers must not play ball with it
    assert not bench.sent


async def test_a_connection_that_is_not_known_gets_one_shorter_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(bench.quic, "_now", lambda: 1000.0)  # however long this machine takes for what follows
    for size in (20, 21, 22, 41, 1200):
        bench.quic.received(b"\x40" + bytes(size - 1), HERE)
    assert all(len(datagram) < 41 for datagram, _ in bench.sent)
    assert len(bench.sent) == 2
    bench.sent.clear()
    for _ in range(1000):
        bench.quic.received(b"\x40" + os.urandom(99), HERE)
    assert len(bench.sent) <= 200


async def test_another_protocol_on_quic_is_refused() -> None:
    bench = Bench()
    client = await bench.connected("hq-interop")
    assert "ALPN" in why(client)
    assert bench.quic.connection_ids == 0
    with pytest.raises(anyio.BrokenResourceError):
        await first_of(bench).receive()


@pytest.mark.parametrize("stream_id", [2, 4])
async def test_a_second_stream_ends_the_connection(stream_id: int) -> None:
    bench = Bench()
    client = await bench.connected()
    client._remote_max_streams_bidi = client._remote_max_streams_uni = 9
    client._remote_max_stream_data_bidi_remote = client._remote_max_stream_data_uni = 9999
    client.send_stream_data(stream_id, b"x")
    await bench.exchange(client)
    assert why(client) == "Too many streams open"
    assert bench.quic.connection_ids == 0


async def test_a_claim_reserves_a_window_at_most() -> None:
    """A byte far ahead, then one at the end of each window that is announced."""
    bench = Bench()
    client = await bench.connected()
    client.send_stream_data(STREAM_ID, b"x")
    await bench.exchange(client)
    stream = client._streams[STREAM_ID]
    limit = stream.max_stream_data_remote
    for _ in range(10):
        end = stream.max_stream_data_remote
        stream.sender._buffer = bytearray(end)
        stream.sender._buffer_start, stream.sender._buffer_stop = 0, end
        stream.sender._pending.add(end - 1, end)
        stream.sender.buffer_is_empty = False
        await bench.exchange(client)
    assert stream.max_stream_data_remote == limit
    held = first_of(bench).line.connection._streams[STREAM_ID]
    assert held.receiver.highest_offset == limit
    assert len(held.receiver._buffer) <= limit
    bench.close()


async def test_too_many_pieces_end_the_connection() -> None:
    bench = Bench()
    client = await bench.connected()
    client.send_stream_data(STREAM_ID, bytes(8000))
    stream = client._streams[STREAM_ID]
    stream.sender._pending.subtract(0, 8000)
    for at in range(1, 4000, 2):
        stream.sender._pending.add(at, at + 1)
    for _ in range(40):
        await bench.exchange(client)
        if client._close_event is not None:
            break
    assert why(client) == "too many pieces"
    assert bench.quic.connection_ids == 0


async def test_too_long_a_handshake_ends_the_connection() -> None:
    bench = Bench()
    client = await bench.connected()
    for crypto in client._crypto_streams.values():
        crypto.sender.write(bytes(100_000))
        crypto.sender._pending.subtract(0, 90_000)
    await bench.exchange(client)
    assert why(client) == "too long a handshake"
    assert bench.quic.connection_ids == 0


async def test_ipv6() -> None:
    bench = Bench()
    client = await bench.connected(source=("2001:db8::1", 4433))
    client.send_stream_data(STREAM_ID, b"hello")
    await bench.exchange(client, ("2001:db8::1", 4433))
    assert await first_of(bench).receive() == b"hello"
    bench.close()


async def test_silent_clients_are_closed() -> None:
    async with serving_quic(answer_pings, QUICK) as server:
        stream = await server.open()
        await server.dropped("handshake_timeout")
        with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await server.empty()
        stream.close()


async def test_garbage_within_the_stream_is_closed() -> None:
    async with serving_quic(answer_pings) as server:  # at once, not when the time for a handshake is over
        stream = await server.open()
        await stream.send(b"\xff\xff" + os.urandom(498))
        with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
            await stream.receive()
        # What the client sends once more of its handshake may come when nobody knows the connection any more.
        assert server.drops["bad_length"] == 1 and set(server.drops) <= {"bad_length", "quic_garbage"}
        await server.empty()
        stream.close()


async def test_garbage_does_not_disturb_the_others() -> None:
    async with serving_quic(answer_pings) as server:
        connection = await greeted(await server.dial())
        known = list(server.door._lines)
        for number in range(300):
            garbage = os.urandom(1 + number * 4)
            server.door.received(garbage, HERE)
            server.door.received(b"\x40" + known[number % len(known)] + garbage, HERE)
            server.door.received(b"\xc0\x00\x00\x00\x01\x08" + known[0] + garbage, HERE)
        await greeted(await server.dial())
        assert connection.lost is None
        connection.lose("closed")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.binary(max_size=1300).map(lambda tail: b"\xc0\x00\x00\x00\x01" + tail),
            st.binary(max_size=40).map(lambda tail: b"\xc3\x00\x00\x00\x01\x08" + tail + bytes(1200)),
        ),
        max_size=5,
    )
)
async def test_fuzz_datagrams_of_strangers(datagrams: list[bytes]) -> None:
    bench = Bench()
    for datagram in datagrams:
        bench.quic.received(datagram, HERE)
    assert bench.quic.connection_ids == 0
    assert sum(len(datagram) for datagram, _ in bench.sent) <= sum(map(len, datagrams))


def sealed(client: QuicConnection, kind: int, body: bytes) -> bytes:
    """A packet of an established connection, with one frame that may mean anything."""
    assert client._version is not None
    builder = QuicPacketBuilder(
        host_cid=client.host_cid,
        peer_cid=client._peer_cid.cid,
        version=client._version,
        is_client=True,
        max_datagram_size=1200,
        packet_number=client._packet_number,
    )
    builder.start_packet(QuicPacketType.ONE_RTT, client._cryptos[Epoch.ONE_RTT])
    builder.start_frame(kind, capacity=len(body)).push_bytes(body)
    ((datagram,), _) = builder.flush()
    client._packet_number = builder.packet_number
    return datagram


async def admitted(bench: Bench) -> QuicConnection:
    """Somebody who has shown what he was to show on the first stream."""
    client = await bench.connected()
    first_of(bench).admit()
    await bench.exchange(client)
    return client


async def test_a_stranger_has_one_stream() -> None:
    bench = Bench()
    client = await bench.connected()
    for stream_id in (STREAM_ID, STREAM_ID + 4):
        bench.quic.received(sealed(client, 0x0A, bytes((stream_id, 1, 0))), HERE)
    await bench.exchange(client)
    assert why(client) == "Too many streams open"
    assert len(bench.streams) == 1 and bench.quic.connection_ids == 0


async def test_who_is_let_in_has_so_many_streams_and_no_more() -> None:
    """None of them says anything of use, or ends: each holds one place."""
    bench = Bench()
    client = await admitted(bench)
    for number in range(MOST_STREAMS):
        bench.quic.received(sealed(client, 0x0A, bytes((0x40, 4 * number, 1, 0))), HERE)
    await bench.exchange(client)
    assert len(bench.streams) == MOST_STREAMS and not bench.drops
    bench.quic.received(sealed(client, 0x0A, bytes((0x40, 4 * MOST_STREAMS, 1, 0))), HERE)
    await bench.exchange(client)
    assert why(client) == "Too many streams open"
    bench.close()
    assert bench.quic.connection_ids == 0


async def test_more_streams_than_may_be_silent_at_once_are_given_up() -> None:
    bench = Bench()
    bench.door = Door(replace(DEFAULT_LIMITS, silent=3))
    client = await admitted(bench)
    for number in range(1, 6):
        client.send_stream_data(4 * number, b"?")
    await bench.exchange(client)
    assert len(bench.streams) == 1 + 3 and bench.drops == {"too_many_silent": 2}
    assert client._close_event is None
    bench.close()


async def test_streams_that_begin_with_their_end_leave_nothing() -> None:
    bench = Bench()
    client = await admitted(bench)
    line = first_of(bench).line
    client.send_stream_data(STREAM_ID, b"!")
    for _ in range(5 * MOST_STREAMS):
        stream_id = client.get_next_available_stream_id()
        client.reset_stream(stream_id, 0)
        client.stop_stream(stream_id, 0)
        await bench.exchange(client)
    assert client._close_event is None
    assert len(line._left) <= MOST_STREAMS and len(line.connection._streams) <= MOST_STREAMS
    assert list(line._streams) == [STREAM_ID]
    bench.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 0x3F), st.binary(max_size=40)),
            st.tuples(
                st.sampled_from((0x04, 0x05, 0x08, 0x0A, 0x0F, 0x11, 0x15, 0x30)),
                st.builds(bytes.__add__, st.sampled_from((0, 4, 8, 0x3C)).map(lambda i: bytes((i,))), st.binary()),
            ),
        ),
        max_size=12,
    )
)
async def test_fuzz_frames_of_who_is_let_in(frames: list[tuple[int, bytes]]) -> None:
    """Whatever it says, it costs a window of each stream at most, and the others are served."""
    bench = Bench()
    client = await admitted(bench)
    line = first_of(bench).line
    for kind, body in frames:
        bench.quic.received(sealed(client, kind, body), HERE)
        line.flush()
        for stream in bench.streams[::2]:
            stream.close()
    assert len(line._streams) <= MOST_STREAMS and len(line._left) <= MOST_STREAMS
    assert all(len(each.receiver._buffer) <= WINDOW for each in line.connection._streams.values())
    other = await bench.connected(source=("192.0.2.10", 1))
    other.send_stream_data(STREAM_ID, b"hello")
    await bench.exchange(other, ("192.0.2.10", 1))
    assert await bench.streams[-1].receive() == b"hello"
    bench.close()
    line.close()
    assert bench.quic.connection_ids == 0


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 0x3F), st.one_of(st.binary(max_size=40), st.binary(min_size=200, max_size=1000))),
        max_size=8,
    )
)
async def test_fuzz_frames_of_an_established_peer(frames: list[tuple[int, bytes]]) -> None:
    """Whatever it says, it costs a window at most, and the others are served."""
    bench = Bench()
    client = await bench.connected()
    stream = first_of(bench)
    for kind, body in frames:
        bench.quic.received(sealed(client, kind, body), HERE)
        stream.line.flush()
    held = stream.line.connection._streams.get(STREAM_ID)
    assert held is None or len(held.receiver._buffer) <= WINDOW
    assert len(stream._received) <= WINDOW
    other = await bench.connected(source=("192.0.2.10", 1))
    other.send_stream_data(STREAM_ID, b"hello")
    await bench.exchange(other, ("192.0.2.10", 1))
    served = bench.streams[1]
    assert await served.receive() == b"hello"
    bench.close()
    assert bench.quic.connection_ids == 0
