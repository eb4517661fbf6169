"""The local API over a real unix socket, called with the client that the commands use."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from overlay.daemon.client import LocalClient
from overlay.daemon.localapi import caller, json_object, may_use, on_user_error, serve_local_api
from overlay.errors import Exit, UserError


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"got": await json_object(request)})


async def whose(request: Request) -> JSONResponse:
    return JSONResponse({"uid": caller(request)})


async def refuse(_request: Request) -> JSONResponse:
    raise UserError("port-taken", "Port 9000 is taken by b.", "Choose another.", Exit.FAILED)


APP = Starlette(
    routes=[Route("/v1/echo", echo, methods=["POST"]), Route("/v1/refuse", refuse), Route("/v1/whose", whose)],
    exception_handlers={UserError: on_user_error},
)


def test_calls_errors_and_bad_requests(tmp_path: Path) -> None:
    async def main() -> None:
        client = LocalClient(tmp_path)
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, APP, tmp_path)
            assert stat.S_IMODE((tmp_path / "overlay.sock").stat().st_mode) & 0o007 == 0
            answer = await to_thread.run_sync(client.request, "POST", "/v1/echo", {"a": 1})
            assert answer == {"got": {"a": 1}}
            assert await to_thread.run_sync(client.request, "GET", "/v1/whose") == {"uid": os.geteuid()}
            with pytest.raises(UserError) as caught:
                await to_thread.run_sync(client.request, "GET", "/v1/refuse")
            assert (caught.value.code, caught.value.hint) == ("port-taken", "Choose another.")
            with pytest.raises(UserError) as caught:
                await to_thread.run_sync(client.request, "POST", "/v1/echo", [1])
            assert caught.value.exit_code is Exit.USAGE
            tasks.cancel_scope.cancel()
        assert not (tmp_path / "overlay.sock").exists()

    anyio.run(main)


def test_a_daemon_of_the_other_kind_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, APP, tmp_path)
            for method, path in (("GET", "/v1/tokens"), ("GET", "/v1/echo")):
                with pytest.raises(UserError, match="does not know this command") as caught:
                    await to_thread.run_sync(LocalClient(tmp_path).request, method, path)
                assert caught.value.code == "other-daemon" and "--state" in caught.value.hint
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_no_daemon_is_exit_code_three(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        LocalClient(tmp_path).request("GET", "/v1/status")
    assert caught.value.exit_code is Exit.NOT_RUNNING
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "overlay.sock"))  # nobody listens: a killed daemon's socket
    with pytest.raises(UserError) as caught:
        LocalClient(tmp_path).request("GET", "/v1/status")
    assert caught.value.exit_code is Exit.NOT_RUNNING


def test_root_and_the_owner_may_and_a_stranger_may_not() -> None:
    assert may_use(0, 0, 1000)
    assert may_use(1000, 1000, 1000)
    assert not may_use(65534, 65534, 1000)


_STRANGER = """
import http.client, os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"POST /v1/echo HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
data = b""
while chunk := s.recv(4096): data += chunk
sys.stdout.buffer.write(data)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_is_refused_even_where_the_mode_lets_him(tmp_path: Path) -> None:
    async def main() -> bytes:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, APP, tmp_path)
            for folder in (tmp_path, *tmp_path.parents):
                if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
                    folder.chmod(folder.stat().st_mode | 0o011)
            (tmp_path / "overlay.sock").chmod(0o666)
            command = ["/usr/bin/python3", "-c", _STRANGER, str(tmp_path / "overlay.sock")]
            answer = await to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, timeout=20))
            tasks.cancel_scope.cancel()
        return answer.stdout

    answer = anyio.run(main)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "no-permission"
