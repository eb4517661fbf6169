"""A folder as a website: what is served, and all that is not."""

import asyncio
import email
import os
import socket
from collections.abc import Callable, Coroutine
from email.message import Message
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.node import folder as folder_module
from overlay.node.folder import Folder, FolderServer, media_type

SECRET = b"secret"
PAGE = b"<h1>home</h1>"
DATA = bytes(range(256)) * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """dist/ to publish, and beside it what must not be seen."""
    dist = tmp_path / "dist"
    for path, content in {
        "dist/index.html": PAGE,
        "dist/data.bin": DATA,
        "dist/empty.txt": b"",
        "dist/a b/é&<.txt": b"odd",
        "dist/sub/page.html": b"page",
        "dist/100%25.txt": b"percent",
        "dist/.git/config": SECRET,
        "dist/.env": SECRET,
        "dist/sub/.hidden/x": SECRET,
        "dist/.well-known/security.txt": b"contact",
        "dist/sub/.well-known/x": SECRET,
        "outside/secret": SECRET,
        "dist-more/secret": SECRET,
        "secret": SECRET,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (dist / "inner").symlink_to("sub/page.html")
    (dist / "subs").symlink_to("sub")
    (dist / "out").symlink_to(tmp_path / "secret")
    (dist / "outs").symlink_to("../outside")
    (dist / "more").symlink_to(tmp_path / "dist-more")
    (dist / "env").symlink_to(".env")
    (dist / "git").symlink_to(".git")
    (dist / "round").symlink_to("round")
    (dist / "zero").symlink_to("/dev/zero")
    (dist / "self").symlink_to("/proc/self")
    os.mkfifo(dist / "fifo")
    os.mkfifo(dist / "sub" / "index.html")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dist / "sock"))
    return dist


Ask = Callable[[bytes], Coroutine[None, None, tuple[int, Message, bytes]]]


def serve(folder: Path, visit: Callable[[Ask], Coroutine[None, None, None]], *, listing: bool = False) -> None:
    async def main() -> None:
        server = FolderServer(str(folder), listing=listing)

        async def ask(request: bytes, prefix: str = "/") -> tuple[int, Message, bytes]:
            """A request line with fields; → status, fields and body of the answer."""
            with await server.connect(prefix) as connected:
                connected.setblocking(True)
                connected.sendall(request + b"\r\nHost: app.test\r\nConnection: close\r\n\r\n")
                return await anyio.to_thread.run_sync(_answer, connected)

        with anyio.fail_after(60):
            await visit(ask)
            await answered(server)

    anyio.run(main)


async def answered(server: FolderServer) -> None:
    """Until files are closed: that is after the last byte of an answer has come."""
    if tasks := server._state.tasks:
        await asyncio.wait(tasks)


def _answer(connected: socket.socket) -> tuple[int, Message, bytes]:
    data = b""
    while chunk := connected.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    return int(line.split()[1]), email.message_from_bytes(fields), body


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", *fields)).encode()


def test_files_index_types_and_what_is_said_of_them(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        for path in ("/", "/index.html", "/?x=/../../secret"):
            status, fields, body = await ask(get(path))
            assert (status, body, fields["content-type"]) == (200, PAGE, "text/html; charset=utf-8")
            assert fields["date"] and fields["etag"] and fields["last-modified"]
            assert (fields["x-content-type-options"], fields["server"]) == ("nosniff", None)
        for path, content in {
            "/data.bin": DATA,
            "/empty.txt": b"",
            "/a%20b/%C3%A9%26%3C.txt": b"odd",
            "/100%2525.txt": b"percent",
            "/%69nner": b"page",
            "/subs/page.html": b"page",
            "/.well-known/security.txt": b"contact",
        }.items():
            status, fields, body = await ask(get(path))
            assert (status, body, fields["content-length"]) == (200, content, str(len(content))), path
        status, fields, body = await ask(b"HEAD /data.bin HTTP/1.1")
        assert (status, fields["content-length"], fields["accept-ranges"], body) == (200, "1024", "bytes", b"")
        status, fields, _ = await ask(b"HEAD /data.bin HTTP/1.1\r\nRange: bytes=0-9")
        assert (status, fields["content-length"], fields["content-range"]) == (200, "1024", None)
        status, fields, body = await ask(b"HEAD /missing HTTP/1.1")
        assert (status, body) == (404, b"")

    serve(folder, visit)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "MOVE"])
def test_nothing_is_written(folder: Path, method: str) -> None:
    async def visit(ask: Ask) -> None:
        status, fields, _ = await ask(f"{method} /data.bin HTTP/1.1\r\nContent-Length: 0".encode())
        assert (status, fields["allow"]) == (405, "GET, HEAD")

    serve(folder, visit)


TRICKS = (
    """
/../secret /../../secret /sub/../../secret /sub/../../../etc/passwd /./index.html /sub/.. /.. /. /.../secret //secret
//etc/passwd ///etc/passwd /sub//page.html /index.html/ /data.bin/../secret /index.html/x /..;/secret /..\\secret
/%2e%2e/secret /%2E%2E/secret /.%2e/secret /%2e./secret /%2e%2e%2fsecret /..%2fsecret /..%5csecret /..%5Csecret
/sub%2fpage.html /%2fetc%2fpasswd /%2f/etc/passwd /%252e%252e/secret /%252e%252e%252fsecret /..%252fsecret
/%25252e%25252e/secret /%c0%ae%c0%ae/secret /%c0%af..%c0%afsecret /..%c0%afsecret /%e0%80%ae%e0%80%ae/secret
/%uff0e%uff0e/secret /%u002e%u002e/secret /%ef%bc%8e%ef%bc%8e/secret /..%ef%bc%8fsecret /..%e2%88%95secret
/index.html%00 /index.html%00.png /%00 /%00/index.html /sub/%00/../page.html /out%00 /..%00/secret
/out /outs /outs/ /outs/secret /more/secret /env /git/config /git/ /round /self/environ /self/root/etc/passwd
/self/cwd/secret /zero /fifo /sock /sub/ /sub/index.html
/.env /.git /.git/ /.git/config /%2egit/config /.%67it/config /sub/.hidden/x /sub/%2ehidden/x /sub/.well-known/x
/.well-known/ /.well-known/../.env /.well-known/.x /.htaccess /index.html~ /INDEX.HTML /index.html. /index.html%20
/index.html::$DATA /CON /sub/page.html%2f /%2f /% /%z /%2 /%e9 /~root/ /dist/index.html /C:/secret /file:///etc/passwd
/%5c%5chost%5cshare /%0d%0aX:%20y /%0a /%7f /index.html%0d%0aSet-Cookie:x /*
""".split()
    + ["/" + "a" * 300, "/" + "a/" * 4000, "/" + "%2e%2e/" * 1000 + "secret"]
)


def test_tricks_are_404_and_tell_nothing(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        for path in TRICKS:
            status, fields, body = await ask(get(path))
            assert (status, body) == (404, b"Not Found\n"), path
            assert fields["location"] is None and "x" not in fields

    serve(folder, visit)


def test_tricks_in_the_form_of_a_url_are_404(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        for target in ("http://app.test/index.html", "*", "index.html", "?", "file:///etc/passwd"):
            assert (await ask(get(target)))[0] in (400, 404), target

    serve(folder, visit)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(".. . / %2e %2f %00 %25 secret sub subs out outs .git ~ index.html".split())
        | st.binary(max_size=3).map(lambda data: "".join(f"%{byte:02x}" for byte in data)),
        max_size=12,
    ).map("".join)
)
def test_no_path_leads_to_what_is_not_published(folder: Path, path: str) -> None:
    async def visit(ask: Ask) -> None:
        status, _, body = await ask(get(f"/{path}"))
        assert status in (200, 307, 404) and SECRET not in body and b"root:" not in body

    serve(folder, visit)


def test_a_folder_without_its_slash_leads_to_that_with_it(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        for path, location in {
            "/sub": "./sub/",
            "/a%20b": "./a%20b/",
            "/subs?x": "./subs/",
        }.items():
            status, fields, _ = await ask(get(path))
            assert (status, fields["location"]) == (307, location)
        (folder / "x:y").mkdir()
        assert (await ask(get("/x:y")))[1]["location"] == "./x%3Ay/"

    serve(folder, visit)


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-9", 206, "bytes 0-9/1024", DATA[:10]),
        ("bytes=1000-", 206, "bytes 1000-1023/1024", DATA[1000:]),
        ("bytes=-24", 206, "bytes 1000-1023/1024", DATA[1000:]),
        ("bytes=0-99999", 206, "bytes 0-1023/1024", DATA),
        ("bytes=1024-", 416, "bytes */1024", None),
        ("bytes=-0", 416, "bytes */1024", None),
        ("bytes=0-1,4000-", 206, "bytes 0-1/1024", DATA[:2]),
        ("bytes=2000-,4000-", 416, "bytes */1024", None),
        ("bytes=5-2", 200, None, DATA),
        ("bytes=0-1,5-2", 200, None, DATA),
        ("bytes=0-" + "9" * 4000, 206, "bytes 0-1023/1024", DATA),
        ("bytes=-" + "9" * 4000, 206, "bytes 0-1023/1024", DATA),
        ("bytes=" + "9" * 4000 + "-", 416, "bytes */1024", None),
        ("BYTES=0-9", 206, "bytes 0-9/1024", DATA[:10]),
        ("bytes=, 0-9 ,", 206, "bytes 0-9/1024", DATA[:10]),
        ("bytes=" + ",".join(f"{at}-{at}" for at in range(0, 300, 2)), 200, None, DATA),
        ("bytes=" + ",".join(["0-"] * 90), 206, "bytes 0-1023/1024", DATA),
        ("lines=0-9", 200, None, DATA),
        ("bytes=x-y", 200, None, DATA),
        ("bytes=", 200, None, DATA),
        ("bytes=" + "0-0," * 3000 + "0-0", 200, None, DATA),
    ],
)
def test_one_range(folder: Path, wanted: str, status: int, content_range: str | None, body: bytes | None) -> None:
    async def visit(ask: Ask) -> None:
        answer = await ask(get("/data.bin", f"Range: {wanted}"))
        assert (answer[0], answer[1]["content-range"]) == (status, content_range)
        assert body is None or answer[2] == body

    serve(folder, visit)


def test_several_ranges_and_one_on_condition(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        status, fields, body = await ask(get("/data.bin", "Range: bytes=0-1,10-11"))
        assert status == 206 and len(body) == int(fields["content-length"])
        parts = email.message_from_bytes(b"Content-Type: " + fields["content-type"].encode() + b"\r\n\r\n" + body)
        contents = [part.get_payload(decode=True) for part in parts.walk() if not part.is_multipart()]
        assert contents == [DATA[:2], DATA[10:12]]
        tag = (await ask(get("/data.bin")))[1]["etag"]
        assert (await ask(get("/data.bin", "Range: bytes=0-1", f"If-Range: {tag}")))[2] == DATA[:2]
        assert (await ask(get("/data.bin", "Range: bytes=0-1", 'If-Range: "other"')))[2] == DATA

    serve(folder, visit)


def test_what_the_user_has_already_is_not_sent_again(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        _, fields, _ = await ask(get("/data.bin"))
        tag, date = fields["etag"], fields["last-modified"]
        for known in (
            f"If-None-Match: {tag}",
            f'If-None-Match: "x", W/{tag}',
            "If-None-Match: *",
            f"If-Modified-Since: {date}",
            "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",
        ):
            status, fields, body = await ask(get("/data.bin", known, "Range: bytes=0-1"))
            assert (status, body, fields["etag"]) == (304, b"", tag), known
        for other in (
            'If-None-Match: "x"',
            f'If-None-Match: "x"\r\nIf-Modified-Since: {date}',
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
            "If-Modified-Since: yesterday",
            "If-Modified-Since: Thu, 01 Jan 99999999999 00:00:00 GMT",
        ):
            assert (await ask(get("/data.bin", other)))[0] == 200, other
        os.utime(folder / "data.bin", (1, 1))
        assert (await ask(get("/data.bin", f"If-None-Match: {tag}")))[0] == 200

    serve(folder, visit)


def test_a_list_is_shown_if_wanted_and_of_what_can_be_had(folder: Path) -> None:
    async def visit(ask: Ask) -> None:
        status, fields, body = await ask(get("/a%20b/"))
        assert status == 200 and "default-src 'none'" in fields["content-security-policy"]
        assert b'<a href="./%C3%A9%26%3C.txt">\xc3\xa9&amp;&lt;.txt</a></td><td>3</td>' in body
        assert (await ask(get("/")))[2] == PAGE
        (folder / "index.html").unlink()
        body = (await ask(get("/")))[2]
        shown = {part.partition(b">")[2].partition(b"<")[0].decode() for part in body.split(b"<a ")[1:]}
        assert shown == {"data.bin", "empty.txt", "a b/", "sub/", "subs/", "100%25.txt", "inner"}
        assert (await ask(get("/sub/")))[0] == 200
        for path in ("/.git/", "/outs/", "/more/", "/sub/.hidden/", "/../"):
            assert (await ask(get(path)))[0] == 404

    serve(folder, visit, listing=True)


def test_below_a_path_and_a_folder_that_goes_and_comes(folder: Path) -> None:
    async def main() -> None:
        server = FolderServer(str(folder), listing=False)

        async def status(path: str) -> tuple[int, str | None]:
            with await server.connect("/docs/") as connected:
                connected.setblocking(True)
                connected.sendall(get(path, "Host: a", "Connection: close", "", ""))
                code, fields, _ = await anyio.to_thread.run_sync(_answer, connected)
                return code, fields["location"]

        assert await status("/docs/data.bin") == (200, None)
        assert await status("/docs/") == (200, None)
        assert await status("/docs") == (307, "./docs/")
        assert await status("/docs/sub") == (307, "./sub/")
        for path in ("/", "/data.bin", "/docsdata.bin", "/docs/docs/data.bin", "/docs//data.bin"):
            assert await status(path) == (404, None)
        os.rename(folder, folder.parent / "away")
        with pytest.raises(FileNotFoundError):
            await server.connect("/")
        os.rename(folder.parent / "away", folder)
        assert await status("/docs/data.bin") == (200, None)
        await answered(server)

    anyio.run(main)


def test_types() -> None:
    expected = {
        "a.html": "text/html",
        "a.js": "text/javascript",
        "a.mjs": "text/javascript",
        "a.css": "text/css",
        "a.wasm": "application/wasm",
        "a.svg": "image/svg+xml",
        "a.woff2": "font/woff2",
        "a.tar.gz": "application/gzip",
        "a.svgz": "application/gzip",
        "a.br": "application/octet-stream",
        "a": "application/octet-stream",
        "a.unknown": "application/octet-stream",
    }
    assert {name: media_type(name) for name in expected} == expected


def test_a_file_that_grows_meanwhile_is_sent_as_long_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log, say: what is said of it was looked at before it is read."""
    file = folder / "log"
    file.write_bytes(DATA)
    found_at_first = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        status = found_at_first(descriptor)
        if status.st_ino == file.stat().st_ino:
            with file.open("ab") as more:
                more.write(DATA)
        return status

    monkeypatch.setattr(os, "fstat", grow)

    async def visit(ask: Ask) -> None:
        status, fields, body = await ask(get("/log"))
        assert (status, fields["content-length"], body) == (200, "1024", DATA)

    serve(folder, visit)


def test_a_long_list_says_so_and_few_are_sent_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MOST_LISTED", 1000)
    monkeypatch.setattr(folder_module, "MOST_LISTS", 1)
    (folder / "long").mkdir()
    for number in range(1001):
        (folder / "long" / f"{number:0200}").touch()

    async def main() -> None:
        server = FolderServer(str(folder), listing=True)

        async def ask(path: str) -> socket.socket:
            connected = await server.connect("/")
            connected.setblocking(True)
            connected.sendall(get(path, "Host: a", "Connection: close", "", ""))
            return connected

        slow = await ask("/long/")
        await anyio.wait_readable(slow)  # and does not read it
        with await ask("/long/") as other:
            status, fields, _ = await anyio.to_thread.run_sync(_answer, other)
            assert (status, fields["retry-after"]) == (503, "5")
        with slow:
            status, _, body = await anyio.to_thread.run_sync(_answer, slow)
        assert status == 200 and body.count(b"<a ") == 1001 and b"There are more: 1000 are shown." in body
        await answered(server)
        with await ask("/long/") as other:
            assert (await anyio.to_thread.run_sync(_answer, other))[0] == 200
        await answered(server)

    anyio.run(main)


def test_a_folder_that_gives_way_to_a_link_while_it_is_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locate = Folder._locate

    def located(self: Folder, names: list[bytes]) -> bytes:
        where = locate(self, names)
        if names == [b"a b"]:
            os.rename(folder / "a b", folder / "was")
            (folder / "a b").symlink_to("../outside")
        return where

    monkeypatch.setattr(Folder, "_locate", located)

    async def visit(ask: Ask) -> None:
        assert (await ask(get("/a%20b/")))[0] == 404

    serve(folder, visit, listing=True)
