"""Targets through proxies: microsocks and tinyproxy, and such as are none."""

import socket
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.carrier.proxy import Proxy
from overlay.errors import Exit, UserError
from overlay.node.target_end import TargetEnd, TargetStream
from overlay.node.target_proxy import connect_by, parse_target_proxy
from overlay.node.targets import Target, TargetOptions
from tests.carrier.programs import microsocks, tinyproxy
from tests.node.exposing import tcp_service

BANNER = b"SSH-2.0-test\r\n"


async def greeter(stream: SocketStream) -> None:
    """Speaks first, as ssh and databases do; then says in capitals what it hears."""
    async with stream:
        await stream.send(BANNER)
        async for chunk in stream:
            await stream.send(chunk.upper())


async def talk(stream: TargetStream) -> bytes:
    with anyio.fail_after(5):
        async with stream:
            await stream.send(b"hello" * 20_000)
            data = b""
            while len(data) < len(ANSWER):
                data += await stream.receive()
    return data


ANSWER = BANNER + b"HELLO" * 20_000


def end_of(port: int, proxy: str, host: str = "localhost") -> TargetEnd:
    return TargetEnd(Target.parse(f"tcp://{host}:{port}"), TargetOptions(proxy=proxy))


def test_through_microsocks_without_and_with_a_password() -> None:
    async def main() -> None:
        async with tcp_service(greeter) as port:
            async with microsocks() as proxy:
                for host in ("localhost", "127.0.0.1"):
                    inside = end_of(port, f"socks5://127.0.0.1:{proxy}", host)
                    await inside.check()
                    assert await talk(await inside.open()) == ANSWER
                    assert await talk(await inside.open()) == ANSWER
            async with microsocks("-u", "alice", "-P", "s3cr:et") as proxy:
                assert await talk(await end_of(port, f"socks5://alice:s3cr%3Aet@127.0.0.1:{proxy}").open()) == ANSWER
                for secret, why in (("", "refuses: no acceptable auth"), ("alice:wrong@", "refuses: ")):
                    inside = end_of(port, f"socks5://{secret}127.0.0.1:{proxy}")
                    with pytest.raises(OSError):
                        await inside.open()
                    assert why in inside.trouble and "wrong" not in inside.trouble

    anyio.run(main)


def test_through_tinyproxy_without_and_with_a_password(tmp_path: Path) -> None:
    async def main() -> None:
        async with tcp_service(greeter) as port:
            async with tinyproxy(tmp_path) as proxy:
                assert await talk(await end_of(port, f"http://127.0.0.1:{proxy}").open()) == ANSWER
            async with tinyproxy(tmp_path, "BasicAuth alice s3cret") as proxy:
                assert await talk(await end_of(port, f"http://alice:s3cret@127.0.0.1:{proxy}").open()) == ANSWER
                inside = end_of(port, f"http://127.0.0.1:{proxy}")
                with pytest.raises(OSError):
                    await inside.open()
                assert "asks for a user name and password (407" in inside.trouble

    anyio.run(main)


def test_a_target_that_refuses_and_proxies_that_are_none() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nobody = taken.getsockname()[1]
        async with microsocks() as proxy:
            inside = end_of(nobody, f"socks5://127.0.0.1:{proxy}")
            with pytest.raises(OSError):
                await inside.open()
            assert "connection refused by destination host" in inside.trouble
        inside = end_of(1, f"socks5://127.0.0.1:{nobody}")
        with pytest.raises(OSError):
            await inside.open()
        assert inside.trouble == f"the proxy 127.0.0.1:{nobody} cannot be reached: connection refused"

    anyio.run(main)


PIECES = [b"\5\0", b"\5\2", b"\1\0", b"\5\0\0\1", b"\5\0\0\3\1", b"\5\5\0"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.sampled_from(PIECES), max_size=5).map(b"".join))
def test_what_a_proxy_answers_is_a_connection_or_an_oserror(answer: bytes) -> None:
    async def say_it(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):
                await stream.send(answer or b"\5")
                await stream.send_eof()
                async for _ in stream:
                    pass

    async def main() -> None:
        async with tcp_service(say_it) as port:
            try:
                stream = await connect_by(Proxy("127.0.0.1", port, "a", "b", "socks5"), "target.test", 80)
            except OSError as error:
                assert "127.0.0.1" in str(error)
            else:
                stream.close()

    anyio.run(main)


def test_how_a_proxy_is_written() -> None:
    assert parse_target_proxy("socks5://proxy.lan") == Proxy("proxy.lan", 1080, scheme="socks5")
    assert parse_target_proxy("socks5h://u:p%40@[::1]:9050") == Proxy("::1", 9050, "u", "p@", "socks5h")
    assert parse_target_proxy("proxy.lan:3128") == Proxy("proxy.lan", 3128)
    for wrong in ("socks4://a", "ftp://a", "socks5://", "socks5://a/b", "socks5://é:p@a", f"socks5://u:{'p' * 256}@a"):
        with pytest.raises(UserError) as caught:
            parse_target_proxy(wrong)
        assert (caught.value.code, caught.value.exit_code) == ("proxy-invalid", Exit.USAGE)
        assert "p@" not in caught.value.message
