"""Serves a daemon's local API: a Starlette application on a unix socket, for root and the group `overlay` alone.

The socket's mode keeps others out (0660, root:overlay). The kernel's word on who is at the other end (`SO_PEERCRED`) is
asked as well, because a state folder may lie where the mode is not enforced.
"""

import asyncio
import grp
import json
import logging
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from overlay.daemon.application import serve_application
from overlay.daemon.launch import error_document
from overlay.daemon.state import SOCKET_NAME
from overlay.errors import Exit, UserError

GROUP = "overlay"
_HTTP_STATUS = {Exit.USAGE: 400, Exit.REFUSED: 403, Exit.NOT_RUNNING: 409, Exit.UNREACHABLE: 504}
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_CALLER = "overlay.caller"  # in an ASGI scope
_LARGEST_BODY = 1 << 20
_log = logging.getLogger(__name__)


def error_response(error: UserError) -> JSONResponse:
    """What the local API answers for an error."""
    return JSONResponse({"error": error_document(error)}, _HTTP_STATUS.get(error.exit_code, 422))


async def on_user_error(_request: Request, error: Exception) -> Response:
    """Exception handler for applications: `Starlette(exception_handlers={UserError: on_user_error})`."""
    assert isinstance(error, UserError)
    return error_response(error)


async def json_object(request: Request) -> dict[str, Any]:
    """The request's body, which must be a JSON object. Raises `UserError` ("bad-request")."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BODY:
            raise UserError("bad-request", "The request is too large.", exit_code=Exit.USAGE)
    try:
        document = json.loads(body or b"{}")
    except ValueError as error:
        raise UserError("bad-request", f"The request is not JSON: {error}.", exit_code=Exit.USAGE) from error
    if not isinstance(document, dict):
        raise UserError("bad-request", "The request is not a JSON object.", exit_code=Exit.USAGE)
    return document


def text_in(document: dict[str, Any], key: str, default: str | None = None) -> str:
    """A text of a request. Raises `UserError` ("bad-request")."""
    value = document.get(key, default)
    if not isinstance(value, str):
        raise UserError("bad-request", f"The request must have the text '{key}'.", exit_code=Exit.USAGE)
    return value


def caller(request: Request) -> int:
    """Whose request it is: a uid, on the kernel's word."""
    uid: int = request.scope[_CALLER]
    return uid


Write = Callable[[bytes | bytearray], Awaitable[None]]
Produce = Callable[[Write], Coroutine[Any, Any, None]]


class Streamed(Response):
    """Answers with what `produce` writes; cancels it when the caller goes away."""

    media_type = "application/octet-stream"

    def __init__(self, produce: Produce) -> None:
        super().__init__()
        del self.headers["content-length"]  # nobody knows
        self._produce = produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes | bytearray) -> None:
            # Returns when the caller's buffer takes more: here a slow one holds up what produces.
            await send({"type": "http.response.body", "body": data, "more_body": True})
            await anyio.lowlevel.checkpoint()  # otherwise it need not wait at all, and nobody else had a turn

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._produce(write)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


def may_use(uid: int, gid: int, owner: int) -> bool:
    """Whether a process of this user may call the API: root, the daemon's own user, members of the group `overlay`."""
    if uid in (0, owner):
        return True
    try:
        group = grp.getgrnam(GROUP)
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return False
    return gid == group.gr_gid or name in group.gr_mem


async def serve_local_api(
    app: Starlette, state: Path, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve `app` on `state/overlay.sock` until cancelled. Signals `started` once callers can connect."""
    path = state / SOCKET_NAME
    listener = _listen(path)
    try:
        await serve_application(app, listener, http=_PeerProtocol, task_status=task_status)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class _PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol, for those callers alone whom `may_use` allows."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        credentials = transport.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size
        )
        _, uid, gid = _PEERCRED.unpack(credentials)
        super().connection_made(transport)
        app = self.app

        async def with_caller(scope: Scope, receive: Receive, send: Send) -> None:
            scope[_CALLER] = uid
            await app(scope, receive, send)

        self.app = with_caller
        if not may_use(uid, gid, os.geteuid()):
            _log.warning("refused a local API caller with user id %d", uid)
            self.app = error_response(
                _NOT_ALLOWED
            )  # a response is an ASGI application that answers everything with itself


_NOT_ALLOWED = UserError(
    "no-permission",
    "You may not talk to this daemon.",
    "Run the command with sudo, or join the group 'overlay'.",
    Exit.REFUSED,
)


def _listen(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        path.unlink()  # left by a daemon that was killed: the state folder's lock says that none is running
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        with suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
            os.chown(path.parent, -1, grp.getgrnam(GROUP).gr_gid)
            path.chmod(0o660)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        message = f"Cannot open the local API's socket {path}: {error.strerror or error}."
        raise UserError(
            "state-write-failed", message, "Choose a shorter or writable folder with --state DIR."
        ) from error
    return listener
