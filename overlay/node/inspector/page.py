"""The inspector's page, for browsers of this machine: http on 127.0.0.1, below a path that nobody can guess.

Whoever has the path may see everything; nobody else is told anything. A page of somebody else's in the same browser
cannot use it: it does not know the path, a name of its own that leads here (DNS rebinding) does not match Host, and
what changes something needs a field that no form can send. What is shown is text and never part of the page.
"""

import hmac
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overlay.daemon.localapi import Streamed, on_user_error
from overlay.errors import UserError

if TYPE_CHECKING:
    from overlay.node.inspector.inspector import Inspector

_FILES: Final = Path(__file__).parent / "files"
_KINDS: Final = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_FIELD: Final = b"x-overlay-inspector"  # its presence says that a script of this origin asks
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class _Events(Streamed):
    media_type = "text/event-stream"


def make_page(inspector: "Inspector", port: int, secret: str) -> ASGIApp:
    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in _KINDS:
            return PlainTextResponse("Not found\n", 404)
        return Response((_FILES / name).read_bytes(), media_type=_KINDS[name])

    async def events(_request: Request) -> Response:
        return _Events(inspector.watch("", lambda line: b"data: " + line + b"\n\n"))

    async def exchange(request: Request) -> Response:
        secrets = request.query_params.get("secrets") == "1"
        return JSONResponse(msgspec.to_builtins(await inspector.detail(request.path_params["id"], secrets=secrets)))

    async def replay(request: Request) -> Response:
        return JSONResponse({"id": await inspector.replay(request.path_params["id"])})

    base = f"/{secret}"
    app = Starlette(
        routes=[
            Route(f"{base}/", file),
            Route(f"{base}/events", events),
            Route(f"{base}/exchanges/{{id}}", exchange),
            Route(f"{base}/exchanges/{{id}}/replay", replay, methods=["POST"]),
            Route(f"{base}/{{name}}", file),
        ],
        exception_handlers={UserError: on_user_error},
    )
    app.router.redirect_slashes = False
    return _Guarded(app, port, secret)


class _Guarded:
    """Lets in who knows the secret and came by this address."""

    def __init__(self, app: ASGIApp, port: int, secret: str) -> None:
        self._app = app
        self._hosts = (f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode())
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await (self._app if self._may_enter(scope) else _NOT_FOUND)(scope, receive, send_guarded)

    def _may_enter(self, scope: Scope) -> bool:
        fields: dict[bytes, bytes] = dict(scope["headers"])
        host, origin = fields.get(b"host", b""), fields.get(b"origin")
        given = scope["path"].encode().split(b"/")[1:2]
        if host not in self._hosts or not given or not hmac.compare_digest(given[0], self._secret):
            return False
        if origin is not None and origin != b"http://" + host:
            return False
        return scope["method"] in ("GET", "HEAD") or _FIELD in fields


_NOT_FOUND: Final = PlainTextResponse("Not found\n", 404)
