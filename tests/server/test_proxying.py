"""HTTP CONNECT: tokens in a real registry, and the door over real sockets."""

import base64
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.port import Guest
from overlay.carrier.stream import TcpStream
from overlay.errors import UserError
from overlay.server.proxying import Nodes, ProxyDoor
from overlay.server.registry import Registry
from overlay.server.tokens import Tokens
from overlay.server.tunnels import Visitor
from overlay.wire.control.proxy_token import ProxyToken

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
NAMES = {"server": 1, "a": 2, "b": 3}


class Bench:
    def __init__(self, tokens: Tokens) -> None:
        self.now = 1000.0
        self.tokens = tokens
        self.offline: set[int] = set()
        self.end_port = 4000
        self.drops: Counter[str] = Counter()
        nodes = Nodes(
            lambda: NAMES,
            ("local.test",),
            lambda number: None if number in self.offline else HOST,
            lambda number, port: port == self.end_port,
        )
        self.door = ProxyDoor(tokens, nodes, lambda: self.now, self.drops)

    async def ask(self, place: str, shown: str | None, more: bytes = b"", behind: bytes = b"hello") -> bytes:
        """All that a client gets who asks for this place."""
        field = f"Proxy-Authorization: {shown}\r\n" if shown is not None else ""
        begun = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{field}".encode() + more + b"\r\n" + behind
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        stream = TcpStream(ours)
        async with await anyio.abc.SocketStream.from_socket(theirs) as client:
            known = await self._serve(stream, begun, client)
            data = b""
            try:
                while True:
                    data += await client.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return data if known else b"stranger"

    async def _serve(self, stream: TcpStream, begun: bytes, client: SocketStream) -> bool:
        await client.send_eof()
        known = await self.door.serve(Guest(stream, begun, secure=True), Visitor((HOST, 5), (HOST, 443)))
        stream.close()
        return known


@asynccontextmanager
async def bench(path: Path) -> AsyncIterator[Bench]:
    registry = await Registry.open(path)
    counter = iter(range(1, 250))
    tokens = Tokens(
        registry,
        wall=lambda: 1000.0,
        random_bytes=lambda size: bytes([next(counter)]) * size,
        names=lambda: NAMES,
        place=lambda: (("203.0.113.1:443",), b"p" * 32),
    )
    await tokens.start()
    with anyio.fail_after(10):
        yield Bench(tokens)
    await registry.close()


async def echo(stream: SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send(chunk.upper())


async def test_who_shows_a_token_is_let_through_to_a_node(tmp_path: Path) -> None:
    async with bench(tmp_path / "registry.sqlite") as it, await anyio.create_tcp_listener(local_host=HOST) as target:
        port = target.extra(SocketAttribute.local_port)
        token = (await it.tokens.add(("B",), 60))["token"]
        basic = base64.b64encode(f"anybody:{token}".encode()).decode()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, echo)
            for place in (f"b:{port}", f"B.local.test:{port}", f"b.local.test.:{port}"):
                for shown in (f"Bearer {token}", f"bearer  {token}", f"Basic {basic}"):
                    answer = await it.ask(place, shown)
                    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nHELLO", (place, shown, answer)
            tasks.cancel_scope.cancel()
        assert not it.drops


async def test_what_is_wrong_is_said_to_holders_alone(tmp_path: Path) -> None:
    async with bench(tmp_path / "registry.sqlite") as it:
        token = (await it.tokens.add(("b",), 60))["token"]
        with socket.socket() as closed:
            closed.bind((HOST, 0))
            port = closed.getsockname()[1]
            for place, status in (
                ("a:22", b"403"),  # not for this token
                ("server:22", b"403"),
                ("b.other.test:22", b"403"),
                ("127.0.0.1:22", b"403"),
                ("b:0", b"403"),
                ("b:99999", b"403"),
                (f"b:{it.end_port}", b"403"),  # where users of exposures are waited for
                (f"b:{port}", b"502"),
            ):
                assert (await it.ask(place, f"Bearer {token}"))[9:12] == status, place
            assert (await it.ask("b:22", f"Bearer {token}", b"Content-Length: 5\r\n"))[9:12] == b"400"
            it.offline.add(3)
            assert (await it.ask(f"b:{port}", f"Bearer {token}"))[9:12] == b"502"
            it.now += 61
            expired = await it.ask(f"b:{port}", f"Bearer {token}")
            assert expired[9:12] == b"407" and b"Proxy-Authenticate: Basic" in expired and b"overlay" not in expired
        for shown in (
            None,
            "Bearer x",
            "Basic !",
            "Basic",
            f"Digest {token}",
            f"Bearer {token}x",
            "Bearer " + "y" * 9000,
        ):
            assert await it.ask("b:22", shown) == b"stranger", shown
        twice = f"Proxy-Authorization: Bearer {token}\r\n".encode()
        assert await it.ask("b:22", f"Bearer {token}", twice) == b"stranger"
        assert it.drops == {
            "proxy_refused": 7,
            "proxy_failed": 1,
            "bad_http": 1,
            "proxy_offline": 1,
            "proxy_expired": 1,
        }


async def test_tokens_outlive_a_restart_and_not_their_removal(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite"
    async with bench(path) as it:
        made: dict[str, Any] = await it.tokens.add((), 60)
        assert made["token"].encode() not in path.read_bytes()
    async with bench(path) as it:
        assert it.tokens.status() == [{"id": "t1", "nodes": [], "expires": 1060.0}]
        assert it.tokens.find(made["token"]) is not None
        for nodes, seconds, code in ((("x",), 60.0, "node-unknown"), ((), 0.0, "token-invalid")):
            with pytest.raises(UserError) as caught:
                await it.tokens.add(nodes, seconds)
            assert caught.value.code == code
        await it.tokens.remove("t1")
        assert it.tokens.find(made["token"]) is None
        with pytest.raises(UserError, match="t1"):
            await it.tokens.remove("t1")


@pytest.mark.parametrize("end", ["removed", "expired", "node gone"])
async def test_what_goes_through_ends_with_the_token_and_with_the_node(tmp_path: Path, end: str) -> None:
    async with bench(tmp_path / "registry.sqlite") as it, await anyio.create_tcp_listener(local_host=HOST) as target:
        port = target.extra(SocketAttribute.local_port)
        token, other = await it.tokens.add(("b",), 60), await it.tokens.add(("b",), 60)
        if end == "expired":
            it.now += 59.99
        field = f"Proxy-Authorization: Bearer {token['token']}"
        ask = f"CONNECT b:{port} HTTP/1.1\r\nHost: b:{port}\r\n{field}\r\n\r\nhello"
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        async with anyio.create_task_group() as tasks, await SocketStream.from_socket(theirs) as client:
            tasks.start_soon(target.serve, echo)
            guest = Guest(TcpStream(ours), ask.encode(), secure=True)
            tasks.start_soon(it.door.serve, guest, Visitor((HOST, 5), (HOST, 443)))
            if end != "expired":
                said = b""
                while b"HELLO" not in said:
                    said += await client.receive()
                await it.tokens.remove(other["id"])
                it.door.forget_node(2)
                await client.send(b"more")
                assert await client.receive() == b"MORE"
            if end == "removed":
                await it.tokens.remove(token["id"])
            elif end == "node gone":
                it.door.forget_node(3)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await client.receive()
            tasks.cancel_scope.cancel()
        assert it.drops == {"proxy_ended": 1}


@given(st.binary(min_size=16, max_size=16), st.sampled_from([b"", b"p" * 32]))
def test_a_token_says_where_the_server_is(secret: bytes, pin: bytes) -> None:
    token = ProxyToken(("203.0.113.1:443", "vpn.example.org:443"), secret, pin)
    assert ProxyToken.parse(f" {token.encode()}\n") == token
    assert secret.hex() not in repr(token)


@given(
    st.one_of(
        st.text(max_size=100), st.binary(max_size=100).map(lambda data: "ovp1_" + base64.b64encode(data).decode())
    )
)
def test_whatever_is_given_as_a_token(text: str) -> None:
    with pytest.raises(UserError) as caught:
        ProxyToken.parse(text)
    assert caught.value.code == "token-malformed" and (len(text) < 6 or text not in str(caught.value))
