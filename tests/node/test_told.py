"""What targets are told of users, at the node: by whom, and what stands before it."""

from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from overlay.carrier.port import Stream
from overlay.errors import Exit, UserError
from overlay.wire.control.terms import Terms, Told
from overlay.wire.ingress.proxy_protocol import ProxyHeader, encode_v2
from tests.node.test_exposures import NODE, PEER, SERVER, Setup, ask, serving, shout, tcp_service


def test_peers_who_come_straight_are_told_of_as_users_are(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        told = Terms(told=Told(proxy_protocol="v1"))
        async with serving(setup.exposures), tcp_service(shout) as port, tcp_service(shout) as free:
            public = await setup.add(f"tcp://127.0.0.1:{port}", "", ("app.example.org",), terms=told)
            number = int(public.public.rpartition(":")[2])
            line = f"PROXY TCP4 {PEER} {NODE} "
            assert (await ask(number, PEER, b"hello")).decode().startswith(line)
            assert await ask(setup.server.exposures["x1"].port, SERVER, b"hello") == b"HELLO", "the server says it"
            own = await setup.add(f"{NODE}:{free}", str(free), ("app.example.org",), terms=told)
            assert not own.direct, "the service itself would get no header"
            with pytest.raises(UserError, match="knows no datagrams"):
                await setup.add("udp://127.0.0.1:53", "", terms=told)

    anyio.run(main)


def test_a_target_by_https_is_told_before_tls_begins(tmp_path: Path) -> None:
    header = encode_v2(ProxyHeader(("198.51.100.90", 40000), ("203.0.113.1", 443)))

    async def main() -> None:
        came = bytearray()

        async def take(stream: SocketStream) -> None:
            async with stream:
                while len(came) < len(header) + 2:
                    came.extend(await stream.receive())

        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(take) as port:
            told = Terms(told=Told(proxy_protocol="v2"))
            await setup.add(f"https://127.0.0.1:{port}", "", terms=told)
            at = setup.server.exposures["x1"].port
            for said in (header + b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
                with suppress(OSError, anyio.BrokenResourceError):
                    assert b" 502 " in await ask(at, SERVER, said), "this target speaks no TLS"
            assert came.startswith(header + b"\x16\x03")
            assert setup.exposures.drops["bad_proxy_header"] == 1

    anyio.run(main)


def test_where_tls_of_users_ends_here_the_header_stands_before_it(tmp_path: Path) -> None:
    line = b"PROXY TCP4 198.51.100.90 203.0.113.1 40000 443\r\n"

    async def end_tls(stream: Stream) -> Stream:
        assert await stream.receive(3) == b"TLS"
        return stream

    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            await setup.add(f"tcp://127.0.0.1:{port}", "", terms=Terms(told=Told(proxy_protocol="v1")))
            setup.exposures._ends["x1"].tls = end_tls
            answer = await ask(setup.server.exposures["x1"].port, SERVER, line + b"TLS hello")
            assert answer == line.upper() + b" HELLO"

    anyio.run(main)


def test_what_needs_root_is_refused_without(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures, ""):
            with pytest.raises(UserError, match="root's rights") as refused:
                await setup.add("tcp://127.0.0.1:22", "", terms=Terms(told=Told(transparent=True)))
            assert refused.value.exit_code == Exit.REFUSED and not setup.server.exposures

    anyio.run(main)
