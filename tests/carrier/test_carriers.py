"""tcp, tls, ws and wss over loopback, with the control channel inside, and given away in the middle."""

import os
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from overlay.carrier.carriers import CarrierName, Detached, DialOptions
from overlay.carrier.connection import ConnectionLost, ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.openers import OPENERS
from overlay.carrier.watch import watch
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import MAX_MESSAGE, NoiseChannel
from overlay.wire.control.messages import Failed, Hello, Message, Ping, Pong
from overlay.wire.ingress.client_hello import ClientHello
from overlay.wire.wireguard.primitives import clamp, public_key

from .ends import NODE, NODE_PUBLIC, WELCOME, Running, answer, answer_pings, greeted, in_thread, lost, read_all, serving
from .streams import PLAIN_OPTIONS, Certificate, connected

pytestmark = pytest.mark.anyio

STREAMS: tuple[CarrierName, ...] = ("tcp", "tls", "ws", "wss")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    yield Certificate(tmp_path_factory.mktemp("tls"))


def endpoint(server: Running) -> tuple[str, int]:
    return "127.0.0.1", server.port


@pytest.mark.parametrize("carrier", STREAMS)
async def test_messages_go_both_ways(carrier: CarrierName, certificate: Certificate) -> None:
    seen: list[ControlConnection] = []

    async def handler(connection: ControlConnection) -> None:
        seen.append(connection)
        await answer_pings(connection)

    async with serving(handler, tls=certificate.context) as server:
        connection = await greeted(await connected(carrier, endpoint(server), PLAIN_OPTIONS))
        for seq in range(3):
            assert await answer(connection, Ping(seq=seq)) == Pong(seq=seq)
        assert seen[0].remote_key == NODE_PUBLIC
        assert seen[0].carrier == carrier
        assert seen[0].remote_address[0] == "127.0.0.1"
        await connection.aclose()
        assert await lost(connection) == "closed"
    assert not server.drops


@pytest.mark.parametrize("carrier", STREAMS)
async def test_large_messages_go_both_ways_and_the_last_one_arrives(
    carrier: CarrierName, certificate: Certificate
) -> None:
    big = Failed(seq=1, code="big", message="x" * (MAX_MESSAGE - 1000))
    hello = Hello(name="a", software="y" * (MAX_MESSAGE - 1000))
    received: list[Message] = []

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await connection.send(big)
        received.append(await connection.receive())
        await connection.send(big)

    async with serving(handler, tls=certificate.context) as server:
        connection = await greeted(await connected(carrier, endpoint(server), PLAIN_OPTIONS))
        with anyio.fail_after(10):
            assert await connection.receive() == big
            await connection.send(hello)
            assert await connection.receive() == big
            assert await lost(connection) == "closed_by_peer"
    assert received == [hello]
    assert not server.drops


@pytest.mark.parametrize("carrier", STREAMS)
async def test_a_cancelled_send_loses_nothing(carrier: CarrierName, certificate: Certificate) -> None:
    """The peer reads late, so that the sender is cancelled in the middle of what it has encoded."""
    start = anyio.Event()
    received: list[Message] = []

    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        await start.wait()
        received.extend([await connection.receive() for _ in range(5)])
        await connection.send(Pong(seq=1))

    hello = Hello(name="a", software="z" * 3_000_000)
    async with serving(handler, tls=certificate.context) as server:
        connection = await greeted(await connected(carrier, endpoint(server), PLAIN_OPTIONS))
        for _ in range(4):
            with anyio.move_on_after(0.05):
                await connection.send(hello)
        start.set()
        with anyio.fail_after(10):
            await connection.send(hello)
            assert await connection.receive() == Pong(seq=1)
        await connection.aclose()
    assert received == [hello] * 5


@pytest.mark.parametrize("carrier", STREAMS)
async def test_a_connection_is_given_away_with_what_came_behind_its_last_message(
    carrier: CarrierName, certificate: Certificate
) -> None:
    """The server's first frames come right behind its last message; what the node sends comes to the new owner."""
    given: list[Detached] = []
    frames = b"\xff\xff frames, not Noise " * 10
    taken = anyio.Event()

    async def handler(connection: ControlConnection) -> None:
        assert await connection.receive() == Ping(seq=1)
        await connection.send(Pong(seq=1))
        detached = await connection.detach()
        assert detached is not None
        assert connection.lost is not None
        given.append(detached)
        detached.socket.send(detached.codec.encode(frames))
        taken.set()

    async with serving(handler, tls=certificate.context) as server:
        connection = await connected(carrier, endpoint(server), PLAIN_OPTIONS)
        connection.expect_last()
        await connection.send(Ping(seq=1))
        with anyio.fail_after(5):
            await taken.wait()  # all of it lies in our kernel now, or is on its way there
            assert await connection.receive() == Pong(seq=1)
        here = await connection.detach()
        assert here is not None
        with pytest.raises(ConnectionLost, match="detached"):
            await connection.receive()
        (there,) = given
        with here.socket, there.socket:
            received = here.received
            with anyio.fail_after(5):
                while len(received) < len(frames):
                    await anyio.wait_readable(here.socket)
                    received += here.codec.decode(here.socket.recv(65536))
                assert received == frames
                here.socket.send(here.codec.encode(b"up"))
                await anyio.wait_readable(there.socket)
                assert there.received + there.codec.decode(there.socket.recv(65536)) == b"up"
    assert not server.drops


async def test_the_path_is_free() -> None:
    async with serving(answer_pings) as server:
        for path in ("/", "prefix", "/a/b?c=d", "/%20"):
            connection = await greeted(await connected("ws", endpoint(server), DialOptions(path=path)))
            await connection.aclose()
        with pytest.raises(RemoteProtocolError, match="cannot be asked for"):
            await OPENERS["ws"](endpoint(server), DialOptions(path="/a b\r\nX: y"))
        await server.dropped("closed_early")


# certificates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["tls", "wss"])
async def test_pin_and_authorities_prove_the_certificate(carrier: CarrierName, certificate: Certificate) -> None:
    async with serving(answer_pings, tls=certificate.context) as server:
        for options in (
            DialOptions(host="server.test", pin=certificate.pin),
            DialOptions(host="server.test", ca_file=certificate.ca_file),
            DialOptions(host="server.test", ca_file=certificate.ca_file, pin=certificate.pin),
            DialOptions(ca_file=certificate.ca_file),  # by the address
        ):
            connection = await greeted(await connected(carrier, endpoint(server), options))
            await connection.aclose()
    assert not server.drops


@pytest.mark.parametrize("carrier", ["tls", "wss"])
async def test_a_wrong_certificate_is_refused_by_reason(carrier: CarrierName, certificate: Certificate) -> None:
    wrong = [
        (DialOptions(host="other.test", ca_file=certificate.ca_file), "tls_untrusted"),
        (DialOptions(host="server.test", authorities=True), "tls_untrusted"),
        (DialOptions(host="server.test", pin=bytes(32)), "wrong_certificate"),
        (DialOptions(host="server.test", ca_file=certificate.ca_file, pin=bytes(32)), "wrong_certificate"),
    ]
    async with serving(answer_pings, tls=certificate.context) as server:
        for options, reason in wrong:
            with pytest.raises(RemoteProtocolError) as caught:
                await OPENERS[carrier](endpoint(server), options)
            assert caught.value.reason == reason


async def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    async with serving(answer_pings) as server:
        for path in (empty, tmp_path / "missing.pem"):
            with pytest.raises(OSError, match="CA file"):
                await OPENERS["tls"](endpoint(server), DialOptions(ca_file=str(path)))


async def test_the_name_is_told_and_old_versions_are_not_spoken(certificate: Certificate) -> None:
    names: list[str | None] = []

    def context(hello: ClientHello, protocols: tuple[str, ...]) -> ssl.SSLContext:
        made = certificate.context(hello, protocols)
        made.sni_callback = lambda _object, name, _context: names.append(name)
        return made

    async with serving(answer_pings, tls=context) as server:
        await (await connected("tls", endpoint(server), PLAIN_OPTIONS)).aclose()
        await (await connected("wss", endpoint(server), DialOptions())).aclose()
    assert names == ["server.test", None]


# servers of another kind ---------------------------------------------------------------------------------------------


async def one_answer(data: bytes) -> tuple[str, int, anyio.abc.Listener[anyio.abc.SocketStream]]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    return "127.0.0.1", listener.extra(anyio.abc.SocketAttribute.local_port), listener


@pytest.mark.parametrize(
    ("carrier", "said", "reason"),
    [
        ("ws", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "websocket_refused"),
        (
            "ws",
            b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.test/\r\nContent-Length: 0\r\n\r\n",
            "websocket_refused",
        ),
        (
            "ws",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "not_websocket",
        ),
        ("ws", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not_websocket"),
        ("ws", b"", "not_websocket"),
        ("ws", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "http_head_too_large"),
        ("tls", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "tls_failed"),
        ("tls", b"", "closed_early"),
        ("wss", b"\x15\x03\x03\x00\x02\x02\x28", "tls_failed"),
    ],
)
async def test_what_is_no_server_of_ours_is_told_apart(carrier: CarrierName, said: bytes, reason: str) -> None:
    host, port, listener = await one_answer(said)

    async def say(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(said)
            await stream.send_eof()
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, say)
        with anyio.fail_after(5), pytest.raises(RemoteProtocolError) as caught:
            await OPENERS[carrier]((host, port), PLAIN_OPTIONS)
        assert caught.value.reason == reason
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("carrier", STREAMS[1:])
async def test_a_cancelled_opener_leaves_no_socket(carrier: CarrierName) -> None:
    watch()  # the loop's own descriptor
    before = len(os.listdir("/proc/self/fd"))
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.move_on_after(0.1):
            await OPENERS[carrier](("127.0.0.1", port), PLAIN_OPTIONS)
            pytest.fail("nobody answers")
    assert len(os.listdir("/proc/self/fd")) <= before


# the port ------------------------------------------------------------------------------------------------------------


async def test_a_port_without_a_certificate_says_nothing_to_tls() -> None:
    async with serving(answer_pings) as server:
        with pytest.raises((RemoteProtocolError, OSError)):  # closed; or reset, as our hello was not read
            await OPENERS["tls"](endpoint(server), PLAIN_OPTIONS)
        await server.dropped("unknown_protocol")


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)]
)
async def test_broken_tls_is_counted(first: bytes, certificate: Certificate) -> None:
    async with serving(answer_pings, tls=certificate.context) as server:
        with server.raw() as stranger:
            stranger.sendall(first)
            assert (await in_thread(read_all, stranger))[:1] in (b"", b"\x15")  # an alert, as of any TLS server
        await server.dropped("tls_failed")


async def test_unknown_within_tls_is_closed(certificate: Certificate) -> None:
    def speak(stranger: ssl.SSLSocket) -> bytes:
        stranger.do_handshake()
        stranger.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        try:
            return stranger.recv(100)
        except ssl.SSLEOFError:
            return b""

    context = ssl.create_default_context(cafile=certificate.ca_file)
    async with serving(answer_pings, tls=certificate.context) as server:
        with server.raw() as raw:
            with context.wrap_socket(raw, server_hostname="server.test", do_handshake_on_connect=False) as stranger:
                with anyio.fail_after(5):
                    assert await anyio.to_thread.run_sync(speak, stranger) == b""
        await server.dropped("unknown_protocol")


@pytest.mark.parametrize("carrier", STREAMS)
async def test_another_key_than_the_servers_opens_nothing(carrier: CarrierName, certificate: Certificate) -> None:
    """Both ways: a node that expects another server, and garbage instead of Noise."""
    channel = NoiseChannel.initiator(NODE, public_key(clamp(b"\x07" * 32)), random_bytes=os.urandom)
    async with serving(answer_pings, tls=certificate.context) as server:
        for first, reason in ((channel.data_to_send(), "bad_tag"), (b"\x00\x60" + bytes(96), "low_order_point")):
            stream = await OPENERS[carrier](endpoint(server), PLAIN_OPTIONS)
            await stream.send(first)
            with anyio.fail_after(5), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
            stream.close()
            await server.dropped(reason)


@pytest.mark.parametrize("carrier", STREAMS)
async def test_one_that_does_not_read_is_closed_in_time(carrier: CarrierName, certificate: Certificate) -> None:
    async def handler(connection: ControlConnection) -> None:
        await connection.send(WELCOME)
        for _ in range(12):
            await connection.send(Failed(seq=0, code="flood", message="x" * 1_000_000))
        await connection.receive()

    limits = replace(DEFAULT_LIMITS, write=0.3)
    async with serving(handler, limits, tls=certificate.context) as server:
        deaf = await connected(carrier, endpoint(server), PLAIN_OPTIONS)
        await server.dropped("peer_does_not_read")
        await deaf.aclose()
