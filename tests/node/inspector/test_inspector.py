"""An exposure that is inspected, on loopback: what users and target see of that, the page, and requests sent again."""

import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from anyio.abc import SocketStream

from overlay.carrier.tapped import TappedStream
from overlay.errors import UserError
from overlay.node.inspector.inspector import Inspector
from overlay.node.status import ExposeWish
from overlay.wire.control.terms import Terms, Told
from tests.node.exposing import NODE, SERVER, Setup, serving, tcp_service

ASKED = b"POST /up?x HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer abc\r\nContent-Length: 5\r\n\r\nhello"
CUT = b"GET /cut HTTP/1.1\r\nHost: app.test\r\n\r\n"


class Target:
    """Answers with what it was asked, as it came; closes where /cut is asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def __call__(self, stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):  # the exposure is given back
                await self._answer(stream)

    async def _answer(self, stream: SocketStream) -> None:
        async for data in stream:
            self.asked.append(data)
            if b"/cut" in data:
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nso far")
                return
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))


class Inspected(Setup):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.target = Target()

    @property
    def inspector(self) -> Inspector:
        return self.exposures.inspector

    async def ask(self, *requests: bytes) -> list[bytes]:
        (port,) = (each.port for each in self.server.list())
        answers = []
        with anyio.fail_after(5):
            async with await anyio.connect_tcp(NODE, port, local_host=SERVER) as stream:
                for request in requests:
                    await stream.send(request)
                    answers.append(await stream.receive())
        return answers

    async def until(self, *states: str) -> list[Any]:
        """What there is, once it is in these states."""
        with anyio.fail_after(5):
            while [each.state for each in self.inspector.summaries()] != list(states):
                await anyio.lowlevel.checkpoint()
        return self.inspector.summaries()


@asynccontextmanager
async def inspected(folder: Path, limit: int = 1000) -> AsyncIterator[Inspected]:
    it = Inspected(folder)
    async with serving(it.exposures), tcp_service(it.target) as port, anyio.create_task_group() as tasks:
        tasks.start_soon(it.inspector.run)
        await it.exposures.add(ExposeWish(target=str(port), host="app.test", inspect=limit))
        yield it
        tasks.cancel_scope.cancel()


def test_it_sees_what_passes_and_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            (answer,) = await it.ask(ASKED)
            assert it.target.asked == [ASKED] and answer.endswith(ASKED)
            (shown,) = await it.until("done")
            assert (shown.method, shown.target, shown.status, shown.sent, shown.exposure) == (
                "POST",
                "/up?x",
                200,
                5,
                "x1",
            )
            await it.ask(CUT)
            await it.until("done", "cut")
            hello = b"SSH-2.0-OpenSSH\r\n\r\n"
            assert (await it.ask(hello))[0].endswith(hello), "what is no HTTP goes through as well"
            await it.exposures.change("x1", ExposeWish(target=it.exposures.status()[0].target, host="app.test"))
            assert it.inspector.summaries() == [], "inspected no longer"
            await it.ask(ASKED)
            assert it.inspector.summaries() == []

    anyio.run(main)


def test_only_while_it_looks_bytes_go_through_python(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            end = it.exposures._ends["x1"]
            inside = await end.connect()
            assert inside is not None and end.tap is not None
            tapped = end.tap(inside)
            assert isinstance(tapped, TappedStream)
            await tapped.aclose()
            await it.exposures.change("x1", ExposeWish(target=it.exposures.status()[0].target, host="app.test"))
            assert end.tap is None

    anyio.run(main)


def test_it_sees_requests_and_not_the_header_before_them(tmp_path: Path) -> None:
    header = b"PROXY TCP4 198.51.100.90 203.0.113.1 40000 80\r\n"
    came: list[bytes] = []

    async def target(stream: SocketStream) -> None:
        async with stream:
            whole = b""
            while not whole.endswith(b"\r\n\r\nhello"):
                whole += await stream.receive()
            came.append(whole)
            await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def main() -> None:
        async with inspected(tmp_path) as it, tcp_service(target) as port:
            told = Terms(told=Told(proxy_protocol="v1"))
            await it.exposures.change("x1", ExposeWish(target=str(port), host="app.test", inspect=1000, terms=told))
            await it.ask(header + ASKED)
            (shown,) = await it.until("done")
            assert (shown.target, shown.status) == ("/up?x", 204)
            with anyio.fail_after(5):
                await it.inspector.replay(shown.id)
            assert came[0] == header + ASKED and came[1].startswith(b"PROXY UNKNOWN\r\nPOST /up?x")

    anyio.run(main)


def test_an_upgraded_connection_is_left_as_it_is_half_closes_too(tmp_path: Path) -> None:
    async def main() -> None:
        async def chat(stream: SocketStream) -> None:
            async with stream:
                await stream.receive()
                await stream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello")
                heard = b"".join([data async for data in stream])
                await stream.send(b"heard " + heard)

        it = Inspected(tmp_path)
        async with serving(it.exposures), tcp_service(chat) as port:
            await it.exposures.add(ExposeWish(target=str(port), host="app.test", inspect=100))
            with anyio.fail_after(5):
                async with await anyio.connect_tcp(NODE, it.server.list()[0].port, local_host=SERVER) as user:
                    await user.send(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
                    answer = b""
                    while not answer.endswith(b"hello"):
                        answer += await user.receive()
                    await user.send(b"\x81\x00last")
                    await user.send_eof()
                    answer = b"".join([data async for data in user])
            assert answer == b"heard \x81\x00last"
            (summary,) = await it.until("done")
            assert (summary.upgraded, summary.status, summary.sent, summary.received) == (True, 101, 6, 17)

    anyio.run(main)


def test_a_request_is_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            await it.ask(ASKED)
            with anyio.fail_after(5):
                made = await it.inspector.replay("r1")
            again = it.target.asked[1]
            assert again.startswith(b"POST /up?x HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer abc\r\n")
            assert again.endswith(b"Content-Length: 5\r\nX-Overlay-Replay: 1\r\nConnection: close\r\n\r\nhello")
            detail = await it.inspector.detail(made, secrets=False)
            assert detail.summary.replay_of == "r1" and detail.summary.status == 200
            assert detail.answer is not None and "X-Overlay-Replay: 1" in detail.answer.body.text
            assert "abc" not in str(detail.request.fields) and "abc" not in str(it.inspector.summaries())

    anyio.run(main)


def test_what_cannot_be_sent_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path, limit=3) as it:
            await it.ask(
                ASKED,
                CUT.replace(b"/cut", b"/ws").replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
            )
            for name, says in (
                ("r1", "of the 5 bytes of r1's body 3 were kept"),
                ("r2", "another protocol"),
                ("r9", "no request"),
            ):
                with pytest.raises(UserError, match=says):
                    await it.inspector.replay(name)
            await it.ask(b"POST /cut HTTP/1.1\r\nHost: app.test\r\nContent-Length: 9\r\n\r\nhe")
            await it.until("done", "done", "cut")
            with pytest.raises(UserError, match="r3 was cut off before its body ended"):
                await it.inspector.replay("r3")
            await it.ask(CUT)
            await it.exposures.remove("x1")
            with pytest.raises(UserError, match="no request"):
                await it.inspector.replay("r4")
            with pytest.raises(UserError, match="Only what speaks http"):
                await it.exposures.add(ExposeWish(target="tcp://127.0.0.1:1", inspect=1))
            with pytest.raises(UserError, match="At most 8 MiB"):
                await it.exposures.add(ExposeWish(target="1", inspect=1 << 30))

    anyio.run(main)


def test_a_target_that_is_away_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        it = Inspected(tmp_path)
        async with serving(it.exposures):
            async with tcp_service(it.target) as port:
                await it.exposures.add(ExposeWish(target=str(port), host="app.test", inspect=100))
                await it.ask(ASKED)
            with pytest.raises(UserError, match="target of x1 is not reachable"):
                await it.inspector.replay("r1")

    anyio.run(main)


# the page ------------------------------------------------------------------------------------------------------------


class Page:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1" and parts.port is not None
        self.port, self.path = parts.port, parts.path
        self.host = f"127.0.0.1:{self.port}"

    async def ask(
        self, path: str, method: str = "GET", host: str | None = None, **fields: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        return await anyio.to_thread.run_sync(self._ask, path, method, host or self.host, fields)

    def _ask(
        self, path: str, method: str, host: str, fields: dict[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"Host": host, **{name.replace("_", "-"): value for name, value in fields.items()}}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    async def status(self, path: str, method: str = "GET", host: str | None = None, **fields: str) -> int:
        return (await self.ask(path, method, host, **fields))[0]


def test_the_page_is_for_who_has_its_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            await it.ask(ASKED)
            url = await it.inspector.url()
            assert url == await it.inspector.url(), "one page for all"
            page = Page(url)
            status, headers, body = await page.ask(page.path)
            assert status == 200 and b"<script src=" in body and headers["Content-Type"].startswith("text/html")
            assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in str(headers)
            assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
            for name in ("page.js", "page.css"):
                assert await page.status(page.path + name) == 200
            for path in ("/", "/x/", "/x/page.js", page.path[:-2] + "/", page.path + "none", page.path + "..%2fapi.py"):
                assert await page.status(path) == 404, path
            for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", f"127.0.0.1:{page.port + 1}"):
                assert await page.status(page.path, host=host) == 404, host
            assert await page.status(page.path, host=f"localhost:{page.port}") == 200
            assert await page.status(page.path, Origin="http://evil.example") == 404

    anyio.run(main)


def test_the_page_shows_and_sends_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            await it.ask(ASKED)
            page = Page(await it.inspector.url())
            _, headers, body = await page.ask(f"{page.path}exchanges/r1")
            assert headers["Content-Type"] == "application/json" and b"Bearer abc" not in msgspec.json.encode(
                msgspec.json.decode(body)["request"]["fields"]
            )
            _, _, body = await page.ask(f"{page.path}exchanges/r1?secrets=1")
            assert b"Bearer abc" in body
            assert await page.status(f"{page.path}exchanges/r9") == 422
            again = f"{page.path}exchanges/r1/replay"
            assert await page.status(again, "POST") == 404, "a form of another page has no fields of its own"
            forged = {"X_Overlay_Inspector": "1", "Origin": "http://evil.example"}
            assert await page.status(again, "POST", **forged) == 404
            assert await page.status(again, X_Overlay_Inspector="1") == 405
            assert len(it.target.asked) == 1
            status, _, body = await page.ask(again, "POST", X_Overlay_Inspector="1", Origin=f"http://{page.host}")
            assert status == 200 and msgspec.json.decode(body) == {"id": "r2"} and len(it.target.asked) == 2

    anyio.run(main)


def test_watchers_hear_of_what_there_is_and_what_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with inspected(tmp_path) as it:
            await it.ask(ASKED)
            heard: list[dict[str, Any]] = []

            async def write(data: bytes | bytearray) -> None:
                if data.strip():
                    heard.append(msgspec.json.decode(data))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.inspector.watch("x1"), write)
                with anyio.fail_after(5):
                    while not heard:
                        await anyio.lowlevel.checkpoint()
                    await it.ask(ASKED)
                    while len(heard) < 4:
                        await anyio.lowlevel.checkpoint()
                await it.exposures.remove("x1")  # ends it
            assert [(each["id"], each["state"]) for each in heard] == [
                ("r1", "done"),
                ("r2", "open"),
                ("r2", "open"),
                ("r2", "done"),
            ]

    anyio.run(main)
