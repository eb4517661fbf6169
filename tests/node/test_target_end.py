"""Connections to targets, with the rights of who exposed them."""

import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener

from overlay.errors import Exit, UserError
from overlay.node import target_end
from overlay.node.target_end import TargetEnd, TargetStream
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions
from tests.carrier.programs import nginx
from tests.carrier.streams import Certificate

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take on another user's rights")


@asynccontextmanager
async def end_of(target: str, options: TargetOptions = NO_OPTIONS, *, owner: int = 0) -> AsyncIterator[TargetEnd]:
    inside = TargetEnd(Target.parse(target), options, owner=owner)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inside.run)
        yield inside
        inside.close()


@asynccontextmanager
async def who_service(path: Path) -> AsyncIterator[None]:
    """Says the uid that the kernel tells of whoever connects."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            raw = stream.extra(SocketAttribute.raw_socket)
            _, uid, _ = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            with suppress(anyio.BrokenResourceError):  # who has only looked is gone
                await stream.send(str(uid).encode())

    async with await anyio.create_unix_listener(path, mode=0o600) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield
        tasks.cancel_scope.cancel()


async def said(stream: TargetStream) -> bytes:
    data = b""
    with anyio.fail_after(5):
        async with stream:
            async for chunk in stream:
                data += chunk
    return data


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A folder that other users may look into; pytest's own are root's alone."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_unix_socket_with_our_own_rights(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with end_of(f"unix:{path}", owner=os.geteuid()) as inside:
            await inside.check()  # a service may come later
            with pytest.raises(FileNotFoundError):
                await inside.open()
            assert inside.trouble == "no such file or directory"
            async with who_service(path):
                assert await said(await inside.open()) == str(os.geteuid()).encode()
            assert inside.trouble == ""
            with pytest.raises(ConnectionRefusedError):
                await inside.open()

    anyio.run(main)


def test_a_service_whose_queue_is_full_is_waited_for_and_then_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_end, "CONNECT_TIMEOUT", 0.2)

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "s"))
            listening.listen(0)
            async with end_of(f"unix:{tmp_path / 's'}", owner=os.geteuid()) as inside:
                first = await inside.open()
                with pytest.raises(TimeoutError):
                    await inside.open()
                assert inside.trouble == "no answer within 0.2 s"
                listening.accept()[0].close()
                await (await inside.open()).aclose()
                await first.aclose()

    anyio.run(main)


@as_root
def test_a_member_of_the_group_reaches_what_he_may_open_as_himself_and_nothing_else(shared_path: Path) -> None:
    async def main() -> None:
        path = shared_path / "s"
        async with who_service(path), end_of(f"unix:{path}", owner=NOBODY) as inside:
            with pytest.raises(UserError) as caught:
                await inside.check()
            assert (caught.value.code, caught.value.exit_code) == ("target-forbidden", Exit.REFUSED)
            assert f"{path} is not published: nobody may not open it." == caught.value.message
            path.chmod(0o666)
            await inside.check()
            assert await said(await inside.open()) == b"65534"
            path.chmod(0o600)
            with pytest.raises(PermissionError):
                await inside.open()

    anyio.run(main)


@as_root
def test_a_deputy_that_dies_is_followed_by_another_and_none_is_left(shared_path: Path) -> None:
    def children() -> set[int]:
        lists = (each.read_text() for each in Path("/proc/self/task").glob("*/children"))
        return {int(pid) for each in lists for pid in each.split()}

    async def main() -> None:
        before = children()
        async with who_service(shared_path / "s"), end_of(f"unix:{shared_path / 's'}", owner=NOBODY) as inside:
            (shared_path / "s").chmod(0o666)
            await (await inside.open()).aclose()
            (deputy,) = children() - before
            os.kill(deputy, 9)
            assert await said(await inside.open()) == b"65534"
        assert children() <= before

    anyio.run(main)


def test_a_daemon_of_one_user_opens_no_files_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    async def main() -> None:
        async with end_of(f"unix:{tmp_path / 's'}", owner=NOBODY) as inside:
            with pytest.raises(UserError) as caught:
                await inside.check()
            assert "cannot open files for nobody" in caught.value.message

    anyio.run(main)


async def get(inside: TargetEnd, path: str) -> bytes:
    stream = await inside.open()
    await stream.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return (await said(stream)).partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("owner", [os.geteuid(), pytest.param(NOBODY, marks=as_root)])
def test_a_folder_is_served_with_the_rights_of_who_exposed_it(shared_path: Path, owner: int) -> None:
    for name in ("all", "root"):
        (shared_path / name).write_text(name)
    (shared_path / "all").chmod(0o644)
    (shared_path / "root").chmod(0o600)

    async def main() -> None:
        async with end_of(str(shared_path), owner=owner) as inside:
            await inside.check()
            assert await get(inside, "/all") == b"all"
            assert await get(inside, "/root") == (b"root" if owner == os.geteuid() else b"Not Found\n")
            inside.prefix = "/docs/"
            assert await get(inside, "/docs/all") == b"all"
            os.chmod(shared_path, 0o700)
            if owner == NOBODY:
                with pytest.raises(PermissionError):
                    await inside.open()
                with pytest.raises(UserError) as caught:
                    await inside.check()
                assert caught.value.code == "target-forbidden"

    anyio.run(main)


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "file").touch()
        for path, why in ((tmp_path / "missing", "No such file"), (tmp_path / "file", "Not a directory")):
            async with end_of(str(path), owner=os.geteuid()) as inside:
                with pytest.raises(UserError) as caught:
                    await inside.check()
                assert caught.value.code == "target-missing" and why.lower() in caught.value.message.lower()

    anyio.run(main)


def test_options_that_do_not_fit() -> None:
    for target, options in (
        ("3000", TargetOptions(listing=True)),
        ("3000", TargetOptions(insecure=True)),
        ("udp://a:1", TargetOptions(proxy="socks5://p")),
        ("unix:/run/s", TargetOptions(proxy="socks5://p")),
        ("/srv/www", TargetOptions(ca="x")),
        ("https://a", TargetOptions(ca="x", insecure=True)),
        ("https://a", TargetOptions(ca="x" * 600_000)),
    ):
        with pytest.raises(UserError) as caught:
            options.check(Target.parse(target))
        assert caught.value.exit_code is Exit.USAGE


def test_https_is_verified_unless_it_is_not_to_be(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    ca = TargetOptions(ca=Path(certificate.ca_file).read_text())

    async def main() -> None:
        async with nginx(tmp_path, certificate, 1) as (plain, secure):
            for host, options in (("127.0.0.1", ca), ("localhost", TargetOptions(insecure=True))):
                async with end_of(f"https://{host}:{secure}", options) as inside:
                    await inside.check()
                    assert await get(inside, "/") == b"a page\n"
            for target, options, why in (
                (f"https://127.0.0.1:{secure}", TargetOptions(), "is not trusted (unable to get local issuer"),
                (f"https://localhost:{secure}", ca, "is not trusted (hostname mismatch"),
                (f"https://127.0.0.1:{plain}", ca, "it does not speak TLS (wrong version number)"),
            ):
                async with end_of(target, options) as inside:
                    with pytest.raises(OSError):
                        await inside.open()
                    assert why in inside.trouble

    anyio.run(main)


def test_https_says_the_name_and_a_target_that_says_nothing_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_end, "CONNECT_TIMEOUT", 0.2)
    names: list[str] = []

    async def main() -> None:
        context = Certificate(tmp_path).context()
        context.sni_callback = lambda _connection, name, _context: names.append(name)
        tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = tcp.extra(SocketAttribute.local_port)
        async with TLSListener(tcp, context) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, lambda stream: stream.aclose())
            async with end_of(f"https://localhost:{port}", TargetOptions(insecure=True)) as inside:
                assert await said(await inside.open()) == b""
            tasks.cancel_scope.cancel()
        assert names == ["localhost"]
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with end_of(f"https://127.0.0.1:{silent.getsockname()[1]}") as inside:
                with pytest.raises(TimeoutError):
                    await inside.open()

    anyio.run(main)


def test_what_is_no_certificate_verifies_nothing() -> None:
    async def main() -> None:
        async with end_of("https://localhost", TargetOptions(ca="-----BEGIN")) as inside:
            with pytest.raises(UserError) as caught:
                await inside.check()
            assert (caught.value.code, caught.value.exit_code) == ("ca-invalid", Exit.USAGE)

    anyio.run(main)
