"""Through what stands between: nginx as a reverse proxy, tinyproxy and made-up proxies for CONNECT."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier import proxy as proxy_module
from overlay.carrier.carriers import CarrierName, DialOptions
from overlay.carrier.connection import ControlConnection
from overlay.carrier.openers import OPENERS
from overlay.carrier.proxy import Proxy, excepted, parse_proxy
from overlay.errors import RemoteProtocolError, UserError
from overlay.wire.control.messages import Failed, Ping, Pong

from .ends import WELCOME, answer, answer_pings, greeted, lost, serving
from .programs import nginx, tinyproxy
from .streams import NAME, Certificate, connected

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    yield Certificate(tmp_path_factory.mktemp("tls"))


# nginx ---------------------------------------------------------------------------------------------------------------


async def test_through_nginx_below_a_prefix(certificate: Certificate, tmp_path: Path) -> None:
    seen: list[ControlConnection] = []
    big = Failed(seq=1, code="big", message="x" * 1_000_000)

    async def handler(connection: ControlConnection) -> None:
        seen.append(connection)
        await connection.send(WELCOME)
        assert await connection.receive() == Ping(seq=1)
        await connection.send(Pong(seq=1))
        await connection.send(big)

    async with (
        serving(handler, tls=certificate.context) as server,
        nginx(tmp_path, certificate, server.port) as (plain, secure),
    ):
        for carrier, port, path in (
            ("ws", plain, "/vpn/"),
            ("wss", secure, "/vpn/a/b"),
            ("ws", plain, "/vpns/"),
            ("wss", secure, "/vpns/"),
        ):
            name: CarrierName = carrier  # type: ignore[assignment]
            options = DialOptions(host=NAME, path=path, ca_file=certificate.ca_file, pin=certificate.pin)
            connection = await greeted(await connected(name, ("127.0.0.1", port), options))
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
            with anyio.fail_after(5):
                assert await connection.receive() == big
            assert await lost(connection) == "closed_by_peer"
    assert [connection.carrier for connection in seen] == ["ws", "ws", "wss", "wss"]
    assert {connection.remote_address[0] for connection in seen} == {"127.0.0.1"}
    assert not server.drops


async def test_what_else_nginx_says_is_a_reason(certificate: Certificate, tmp_path: Path) -> None:
    async with (
        serving(answer_pings) as server,
        nginx(tmp_path, certificate, server.port) as (plain, _),
    ):
        for path, words in (
            ("/", "200"),
            ("/old", "redirects to .*not followed"),
            ("/nothing", "404"),
            ("/vpns/", "502"),
        ):
            with pytest.raises(RemoteProtocolError, match=words) as caught:
                await OPENERS["ws"](("127.0.0.1", plain), DialOptions(host=NAME, path=path))
            assert caught.value.reason == "websocket_refused"


# CONNECT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["tcp", "tls", "ws", "wss"])
async def test_through_tinyproxy_without_and_with_a_password(
    carrier: CarrierName, certificate: Certificate, tmp_path: Path
) -> None:
    async with serving(answer_pings, tls=certificate.context) as server:
        target = ("127.0.0.1", server.port)
        async with tinyproxy(tmp_path) as port:
            options = DialOptions(proxy=f"http://127.0.0.1:{port}", ca_file=certificate.ca_file)
            connection = await greeted(await connected(carrier, target, options))
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
            await connection.aclose()
        async with tinyproxy(tmp_path, "BasicAuth alice s3cret") as port:
            options = DialOptions(proxy=f"http://alice:s3%63ret@localhost:{port}", ca_file=certificate.ca_file)
            connection = await greeted(await connected(carrier, target, options))
            assert await answer(connection, Ping(seq=1)) == Pong(seq=1)
            await connection.aclose()
    assert not server.drops


async def test_the_refusals_of_tinyproxy_are_reasons(tmp_path: Path) -> None:
    async with tinyproxy(tmp_path, "BasicAuth alice s3cret", "ConnectPort 443") as port:
        for credentials, words in (
            ("", "asks for a user name and password .407"),
            ("alice:wr0ng@", "refuses the user name or password|asks for .* .407|refuses"),
            ("alice:s3cret@", "refuses this destination .403"),
        ):
            options = DialOptions(proxy=f"http://{credentials}127.0.0.1:{port}")
            with pytest.raises(OSError, match=words) as caught:
                await OPENERS["tcp"](("127.0.0.1", 9), options)
            assert "s3cret" not in str(caught.value)
            assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "more than its answer"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot reach the server .502"),
        (b"HTTP/1.1 418 I'm a teapot\r\n\r\n", "refuses the connection .418"),
        (None, "does not answer within 0.2 s"),
    ],
)
async def test_other_proxies(said: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "PATIENCE", 0.2 if said is None else 5.0)
    asked: list[bytes] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)

    async def say(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            try:
                if said is not None:
                    await stream.send(said)
                    await stream.send_eof()
                await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, say)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        options = DialOptions(host="server.test", proxy=f"http://u:p@127.0.0.1:{port}")
        with anyio.fail_after(5), pytest.raises(OSError, match=words):
            await OPENERS["tcp"](("192.0.2.1", 443), options)
        assert asked[0].startswith(b"CONNECT server.test:443 HTTP/1.1\r\nHost: server.test:443\r\n")
        assert b"Proxy-Authorization: Basic dTpw\r\n" in asked[0]
        tasks.cancel_scope.cancel()


async def test_a_proxy_that_is_not_there() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with pytest.raises(OSError, match="the proxy 127.0.0.1:.* cannot be reached: connection refused"):
        await OPENERS["tls"](("192.0.2.1", 443), DialOptions(proxy=f"127.0.0.1:{port}"))


# settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy.test:3128", Proxy("proxy.test", 3128)),
        ("proxy.test:3128", Proxy("proxy.test", 3128)),
        ("http://proxy.test/", Proxy("proxy.test", 80)),
        ("http://a%40b:c%3Ad@[2001:db8::1]:8080", Proxy("2001:db8::1", 8080, "a@b", "c:d")),
    ],
)
def test_proxy_addresses(url: str, expected: Proxy) -> None:
    assert parse_proxy(url) == expected
    assert "c:d" not in repr(expected)


@pytest.mark.parametrize(
    "url", ["", "http://", "socks5://x:1", "https://x:1", "http://x:99999", "http://x/y", "http://[x"]
)
def test_wrong_proxy_addresses(url: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_proxy(url)
    assert caught.value.code == "proxy-invalid"


@given(st.text(max_size=40))
def test_fuzz_proxy_addresses(url: str) -> None:
    try:
        assert parse_proxy(url).host
    except UserError as error:
        assert error.code == "proxy-invalid"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "server.test", False),
        ("*", "server.test", True),
        ("server.test", "server.test", True),
        (".test", "server.test", True),
        ("test", "server.test", True),
        ("*.test", "server.test", True),
        ("er.test", "server.test", False),
        ("SERVER.test.", "server.TEST", True),
        ("test", "attest", False),
        ("2.3", "10.1.2.3", False),
        ("localhost .test", "server.test", True),
        ("other.test, server.test", "server.test", True),
        ("server.test:443", "server.test", True),
        ("server.test:80", "server.test", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "server.test", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("[2001:db8::1]:443", "2001:db8::1", True),
        ("[2001:db8::1]:80", "2001:db8::1", False),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("nonsense/99", "10.1.2.3", False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, direct: bool) -> None:
    assert excepted(no_proxy, host, 443) is direct


@given(st.text(max_size=30), st.text(max_size=20))
def test_fuzz_no_proxy(no_proxy: str, host: str) -> None:
    assert excepted(no_proxy, host, 443) in (True, False)
