"""The carrier `udp` over real sockets: the control channel inside one QUIC stream, and networks that do not help."""

import errno
import gc
import random
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from overlay.carrier.carriers import DialOptions
from overlay.carrier.connection import ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.quic import UNSENT, QuicStream
from overlay.carrier.quic_client import open_quic
from overlay.carrier.quic_connection import STREAM_ID, WINDOW, BoundedConnection
from overlay.errors import RemoteProtocolError
from overlay.wire.control.messages import Failed, Hello, Ping, Pong

from .ends import WELCOME, answer, answer_pings, greeted, lost
from .quic_ends import CA, CERTIFICATE, PIN, Network, noise, pin_of, serving_quic, udp_socket

pytestmark = pytest.mark.anyio


async def test_more_at_once_than_the_limits_let_in_come_in_turns() -> None:
    """Behind one address: nobody is turned away, and nobody is forgotten."""
    limits = replace(DEFAULT_LIMITS, strangers_per_address=4)
    async with serving_quic(answer_pings, limits) as server:

        async def one(seq: int) -> None:
            connection = await greeted(await server.dial())
            assert await answer(connection, Ping(seq=seq)) == Pong(seq=seq)
            await connection.aclose()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for seq in range(30):
                    tasks.start_soon(one, seq)
        await server.empty()
    assert not server.drops


async def test_two_hundred_one_after_the_other_leave_nothing() -> None:
    limits = replace(DEFAULT_LIMITS, handshakes_per_address=10_000.0, handshakes_per_second=10_000.0)
    async with serving_quic(answer_pings, limits) as server:
        with anyio.fail_after(60):
            for _ in range(200):
                connection = await greeted(await server.dial())
                connection.lose("closed")
        await server.empty()
    del connection
    with anyio.fail_after(10):
        while sum(isinstance(each, BoundedConnection) for each in gc.get_objects()) > 2:
            await anyio.sleep(0.01)  # those that were closed last
            gc.collect()


async def test_loss_and_reordering_are_mended() -> None:
    chance = random.Random(7)
    big = Failed(seq=1, code="big", message="x" * 300_000)

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(big)
        await answer_pings(connection)

    async with serving_quic(handler) as server:
        network = Network(server.port, lambda _: chance.choices(("pass", "lose", "late"), (90, 5, 5))[0])
        with network.running():
            connection = await greeted(await server.dial(port=network.port))
            with anyio.fail_after(60):
                assert await connection.receive() == big
                await connection.send(Hello(name="a", software="y" * 300_000))
            assert await answer(connection, Ping(seq=1)) == WELCOME
            connection.lose("closed")


async def test_the_source_port_changes_under_it() -> None:
    """As behind a NAT that has forgotten: the connection goes on."""
    async with serving_quic(answer_pings) as server:
        network = Network(server.port)
        with network.running():
            connection = await greeted(await server.dial(port=network.port))
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
            network.rebind()
            for seq in range(2, 5):
                assert await answer(connection, Ping(seq=seq)) == Pong(seq=seq)
            connection.lose("closed")


# the server goes -----------------------------------------------------------------------------------------------------


async def test_stopping_the_server_closes_its_connections() -> None:
    async with serving_quic(answer_pings) as server:
        connection = await greeted(await server.dial())
    assert await lost(connection) in ("closed_by_peer", "reset")


async def test_a_server_that_has_lost_its_memory_says_so() -> None:
    """It went without a word, and its next life stands on the same port."""
    async with serving_quic(answer_pings) as first:
        network = Network(first.port)
        with network.running():
            connection = await greeted(await first.dial(port=network.port))
            network.fate = lambda _: "lose"
            async with serving_quic(answer_pings) as second:
                network.fate = lambda _: "pass"
                network.server = ("127.0.0.1", second.port)
                await connection.send(Ping(seq=1))
                assert await lost(connection) == "reset"


async def test_what_is_on_its_way_to_a_closed_connection_does_not_change_its_end() -> None:
    """The server answers it by a stateless reset, behind its last word."""

    async def handler(connection: ControlConnection) -> None:
        await connection.receive()
        connection.lose("closed")

    async with serving_quic(handler) as server:
        for _ in range(5):
            connection = await server.dial()
            await connection.send(Hello(name="a"))
            with suppress(anyio.BrokenResourceError):
                await connection._stream.send(bytes(WINDOW))
            assert await lost(connection) == "closed_by_peer"


async def test_a_server_that_is_gone_is_noticed() -> None:
    """Its port is closed: the kernel says so for each datagram."""
    async with serving_quic(answer_pings) as server:
        network = Network(server.port)
        with network.running():
            connection = await greeted(await server.dial(port=network.port))
    await connection.send(Ping(seq=1))
    assert await lost(connection) == "reset"


async def test_a_way_that_is_blocked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall learns a new rule: what is sent stays unanswered, without a word."""
    async with serving_quic(answer_pings) as server:
        network = Network(server.port)
        with network.running():
            connection = await greeted(await server.dial(port=network.port))
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
            monkeypatch.setattr("overlay.carrier.quic_line.UNANSWERED", 0.3)
            network.fate = lambda _: "lose"
            await connection.send(Ping(seq=2))
            assert await lost(connection) == "reset"
            assert connection.lost is not None
            assert connection.lost.detail == "no answer for 0.3 s"


async def test_nobody_is_there() -> None:
    with udp_socket() as closed:
        endpoint = closed.getsockname()
    with anyio.fail_after(5):
        with pytest.raises(OSError) as caught:
            await open_quic(endpoint, DialOptions())
    assert caught.value.errno == errno.ECONNREFUSED
    assert str(caught.value.strerror) == "connection refused"


async def test_nobody_answers_and_it_is_cancelled() -> None:
    with udp_socket() as silent:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_quic, silent.getsockname(), DialOptions())
            with anyio.fail_after(5):
                await anyio.wait_readable(silent)
            tasks.cancel_scope.cancel()


async def test_what_answers_is_no_quic() -> None:
    """Garbage does not end it: only what is proven to come from the server does."""
    with udp_socket() as silent:

        async def babble() -> None:
            await anyio.wait_readable(silent)
            _, source = silent.recvfrom(65536)
            for piece in (b"\x00", b"\x40" * 60, b"\xc0" + bytes(1199), b"HTTP/1.1 400 Bad Request\r\n\r\n"):
                silent.sendto(piece, source)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_quic, silent.getsockname(), DialOptions())
            with anyio.fail_after(5):
                await babble()
                await anyio.wait_readable(silent)  # it asks again
            tasks.cancel_scope.cancel()


# certificates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "vpn.example.test", "127.0.0.1", "wëb.example.test"])
async def test_the_pinned_key_is_enough(host: str) -> None:
    async with serving_quic(answer_pings) as server:
        stream = await server.open(DialOptions(host=host, pin=PIN))
        (await greeted(await noise(stream))).lose("closed")


async def test_another_key_than_the_pinned_one_is_refused() -> None:
    other = CA.issue_cert("vpn.example.test")
    async with serving_quic(answer_pings) as server:
        with pytest.raises(RemoteProtocolError) as caught:
            await server.open(DialOptions(pin=pin_of(other.cert_chain_pems[0].bytes())))
        assert caught.value.reason == "wrong_certificate"
        await server.empty()


async def test_certificate_authorities(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ca")
    ca_file = str(folder / "ca.pem")
    CA.cert_pem.write_to_path(ca_file)
    async with serving_quic(answer_pings) as server:
        for host in ("vpn.example.test", ""):  # a name, and the endpoint's address
            stream = await server.open(DialOptions(host=host, ca_file=ca_file, pin=PIN))
            (await greeted(await noise(stream))).lose("closed")
        for options in (
            DialOptions(host="other.example.test", ca_file=ca_file),
            DialOptions(host="vpn.example.test", authorities=True),
            DialOptions(host="vpn.example.test", ca_file=ca_file, pin=bytes(32)),
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                await server.open(options)
            assert caught.value.reason == "wrong_certificate"
        (folder / "empty.pem").write_text("nothing")
        for missing in ("empty.pem", "none.pem"):
            with pytest.raises(OSError):
                await server.open(DialOptions(ca_file=str(folder / missing)))


async def test_a_new_certificate_is_shown_to_new_connections() -> None:
    renewed = CA.issue_cert("vpn.example.test")
    chain = renewed.cert_chain_pems[0].bytes()
    current = [CERTIFICATE]
    async with serving_quic(answer_pings, certificate=lambda: current[0]) as server:
        old = await server.open(DialOptions(pin=PIN))
        current[0] = (chain, renewed.private_key_pem.bytes())
        new = await server.open(DialOptions(pin=pin_of(chain)))
        for stream in (old, new):
            (await greeted(await noise(stream))).lose("closed")


# back-pressure -------------------------------------------------------------------------------------------------------


async def test_what_a_reader_has_not_read_is_bounded() -> None:
    """More than twenty windows: the window must follow the reader, not the claims."""
    size = 24 * WINDOW
    streams = []

    async def handler(connection: ControlConnection) -> None:
        streams.append(connection._stream)
        await connection.send(WELCOME)
        await anyio.sleep_forever()

    async with serving_quic(handler) as server:
        stream = await server.open()
        connection = await greeted(await noise(stream))
        served = streams[0]
        assert isinstance(served, QuicStream)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send, bytes(size))
                while len(served._received) < WINDOW - 2000:  # noqa: ASYNC110 - nobody reads, so nobody is told
                    await anyio.sleep(0.005)
                announced = served.line.connection._streams[STREAM_ID].max_stream_data_local
                assert announced <= served.line.connection._read.get(STREAM_ID, 0) + WINDOW
                read = 0
                while read < size:
                    read += len(await served.receive(10_000))
                    assert len(served._received) <= WINDOW
                    assert stream.line.connection.unacknowledged(STREAM_ID) <= UNSENT
        assert read == size
        connection.lose("closed")


async def test_a_peer_that_reads_late_is_not_taken_for_a_dead_one() -> None:
    """Its window is full, and all that was sent is acknowledged: nothing is owed."""

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await anyio.sleep_forever()

    async with serving_quic(handler) as server:
        stream = await server.open()
        connection = await greeted(await noise(stream))
        with anyio.fail_after(10):
            await stream.send(bytes(WINDOW + UNSENT // 2))
            while stream.line.connection.awaits_answer:  # noqa: ASYNC110 - nobody is told
                await anyio.sleep(0.005)
        stream.line.flush()
        assert stream.line.connection.unacknowledged(STREAM_ID)
        assert stream.line._unanswered_since is None
        connection.lose("closed")


async def test_a_peer_that_does_not_read_is_closed() -> None:
    limits = replace(DEFAULT_LIMITS, write=0.5)
    big = Failed(seq=1, code="big", message="x" * (4 * WINDOW))

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(big)
        await connection.receive()

    async with serving_quic(handler, limits) as server:
        stream = await server.open()
        await noise(stream)
        await server.dropped("peer_does_not_read")
        await server.empty()
        stream.close()
