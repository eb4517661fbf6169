"""A folder as a website: files to read, and nothing else. Runs in a deputy, with the rights of who exposed it.

What a request's path may lead to: a regular file below the folder, none of whose names begins with a dot (`.git`,
`.env`; `.well-known` of RFC 8615 is the exception), also behind links. Where it lies is looked at before it is opened,
and once more by what was opened, on the kernel's word. All else is 404, whatever the reason, which tells nothing.
"""

import asyncio
import errno
import html
import logging
import mimetypes
import os
import re
import resource
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import anyio
import anyio.to_thread
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MOST_LISTED: Final = 10_000  # entries of a folder
MOST_LISTS: Final = 32  # that are sent at once: users who read slowly hold a page of 1.5 MB each
_LIST_PIECE: Final = 64 * 1024  # bytes
KEEP_ALIVE: Final = 75  # s, as long as the server keeps a connection for a user's next request
_INDEX: Final = b"index.html"
_WELL_KNOWN: Final = b".well-known"
_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)")
_LONGEST_RANGES: Final = 4096  # characters; also fewer digits than Python refuses to read
_DESCRIPTORS: Final = 4096
_SECURITY: Final = {"x-content-type-options": "nosniff"}
_LISTING_POLICY: Final = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", **_SECURITY}

_TYPES: Final = mimetypes.MimeTypes()  # and not what this machine happens to have in /etc
for _suffix, _type in {
    ".avif": "image/avif",
    ".js": "text/javascript",  # RFC 9239
    ".json": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "text/xml",
}.items():
    _TYPES.add_type(_type, _suffix)
_COMPRESSED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


@dataclass(frozen=True, slots=True)
class Found:
    """`descriptor` is open, and whoever has this closes it; `name`: of the file, without folders."""

    descriptor: int
    status: os.stat_result
    name: str


class _List(HTMLResponse):
    """Sent in pieces, so that it ends when its user has nearly all of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for at in range(0, len(self.body), _LIST_PIECE):
            await send({"type": "http.response.body", "body": self.body[at : at + _LIST_PIECE], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Grown(Exception):
    """A file is longer than it was when the answer began; what it was then has been sent."""


class Folder:
    """An ASGI application. Reads the folder anew for each request: it may be replaced."""

    def __init__(self, path: str, prefix: str, lists: set[Response], *, listing: bool) -> None:
        """`prefix`: what stands before the names in all paths of requests; it begins and ends with a slash. `lists`:
        those that are being sent, on all connections."""
        self._path = os.fsencode(path)
        self._prefix = prefix.encode()
        self._lists = lists
        self._listing = listing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        left: int | None = None  # bytes of the answer that are still to be sent

        async def send_right(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["date"] = formatdate(usegmt=True)
                left = int(headers["content-length"]) if found is not None and "content-length" in headers else None
            elif left is not None and len(message["body"]) > left:
                await send({**message, "body": message["body"][:left], "more_body": False})
                raise _Grown
            elif left is not None:
                left -= len(message["body"])
            await send(message)

        found: Found | None = None
        listed: Response | None = None
        try:
            if scope["method"] not in ("GET", "HEAD"):
                response: Response = PlainTextResponse("Method Not Allowed\n", 405, {"allow": "GET, HEAD"})
            else:
                answer = await anyio.to_thread.run_sync(self._answer, scope["raw_path"])
                if isinstance(answer, Found):
                    found = answer
                    response = _file(found, Headers(scope=scope))
                    headers = _with_right_range(scope["headers"], scope["method"], found.status.st_size)
                    scope = {**scope, "headers": headers}
                elif isinstance(answer, _List) and len(self._lists) >= MOST_LISTS:
                    response = PlainTextResponse("Service Unavailable\n", 503, {"retry-after": "5"})
                else:
                    response = answer
            if isinstance(response, _List):
                self._lists.add(response)
                listed = response
            with suppress(_Grown):
                await response(scope, receive, send_right)
        finally:
            if found is not None:
                os.close(found.descriptor)
            if listed is not None:
                self._lists.discard(listed)

    def _answer(self, raw_path: bytes) -> Found | Response:
        if raw_path == self._prefix[:-1] != b"":
            return _to_folder(raw_path.rpartition(b"/")[2])
        names, is_folder = _names(raw_path.removeprefix(self._prefix))
        if names is None or not raw_path.startswith(self._prefix):
            return _nothing()
        try:
            where = self._locate(names)
            if stat.S_ISDIR(os.stat(where).st_mode):
                return self._folder(names, where, is_folder=is_folder)
            return _nothing() if is_folder else self._open(where)
        except (OSError, ValueError):
            return _nothing()

    def _locate(self, names: list[bytes]) -> bytes:
        """The real path. Raises `OSError` for one that is not to be seen."""
        root = os.path.realpath(self._path, strict=True)
        where = os.path.realpath(os.path.join(root, *names), strict=True)
        _check_below(root, where)
        return where

    def _folder(self, names: list[bytes], where: bytes, *, is_folder: bool) -> Found | Response:
        if not is_folder:
            return _to_folder(quote_from_bytes(names[-1]).encode())
        try:
            return self._open(self._locate([*names, _INDEX]))
        except OSError:
            if not self._listing:
                return _nothing()
        descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._check_opened(descriptor)
            return _list(descriptor, self._locate, names)
        finally:
            os.close(descriptor)

    def _open(self, where: bytes) -> Found:
        if not stat.S_ISREG(os.stat(where).st_mode):  # to open a device may do something already
            raise OSError(errno.EACCES, "no regular file")
        descriptor = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EACCES, "no regular file")
            self._check_opened(descriptor)
            return Found(descriptor, status, os.fsdecode(os.path.basename(where)))
        except BaseException:
            os.close(descriptor)
            raise

    def _check_opened(self, descriptor: int) -> None:
        """Between the look at a path and its opening a link may have taken its place."""
        opened = os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}"))
        _check_below(os.path.realpath(self._path, strict=True), opened)


def _names(raw_path: bytes) -> tuple[list[bytes] | None, bool]:
    """What of a request's path leads below the folder, percent-encoded as it came → the names in it (None: there can be
    no such file), and whether it is a folder's. Decoded once, after it was cut: an encoded slash is part of a name,
    which no file has."""
    parts = [unquote_to_bytes(part) for part in raw_path.split(b"/")]
    is_folder = not parts[-1]
    names = parts[:-1] if is_folder else parts
    for number, name in enumerate(names):
        if not name or b"/" in name or b"\0" in name or (_is_hidden(name) and (number or name != _WELL_KNOWN)):
            return None, is_folder
    return names, is_folder


def _is_hidden(name: bytes) -> bool:
    return name.startswith(b".")


def _check_below(root: bytes, where: bytes) -> None:
    """Raises `OSError` for what lies elsewhere, or behind a hidden name."""
    if where == root:
        return
    prefix = root if root.endswith(b"/") else root + b"/"
    if where.startswith(prefix):
        first, *rest = where[len(prefix) :].split(b"/")
        if not any(map(_is_hidden, rest)) and (not _is_hidden(first) or first == _WELL_KNOWN):
            return
    raise OSError(errno.EACCES, "not below the folder")


def _to_folder(name: bytes) -> Response:
    # Relative, as nobody here knows the scheme that the user speaks; "./", as a name may have a colon.
    return Response(status_code=307, headers={"location": f"./{name.decode('ascii')}/"})


def _nothing() -> Response:
    return PlainTextResponse("Not Found\n", 404)


def media_type(name: str) -> str:
    """By the name's end. What is compressed is that, and not what is in it: nobody said that it is to be unpacked."""
    found, compression = _TYPES.guess_type(name, strict=False)
    if compression is not None:
        return _COMPRESSED.get(compression, "application/octet-stream")
    return found or "application/octet-stream"


def _file(found: Found, request: Headers) -> Response:
    response = FileResponse(
        f"/proc/self/fd/{found.descriptor}",
        media_type=media_type(found.name),
        stat_result=found.status,
        headers={"cache-control": "no-cache", **_SECURITY},
    )
    if _is_known(request, response.headers, found.status.st_mtime):
        return NotModifiedResponse(response.headers)
    return response


def _is_known(request: Headers, response: Headers, modified: float) -> bool:
    """Whether the user has it already (RFC 9110 §13.2.2)."""
    tags = request.get("if-none-match")
    if tags is not None:
        known = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        return "*" in known or response["etag"] in known
    try:
        return int(modified) <= parsedate_to_datetime(request["if-modified-since"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return False


def _with_right_range(headers: list[tuple[bytes, bytes]], method: str, size: int) -> list[tuple[bytes, bytes]]:
    """With a Range, if any, that the library takes as RFC 9110 §14 means it: of GET alone."""
    right: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name == b"range":
            value = _right_range(value[: _LONGEST_RANGES + 1].decode("latin-1"), size) if method == "GET" else b""
        if value or name != b"range":
            right.append((name, value))
    return right


def _right_range(text: str, size: int) -> bytes:
    """Of a file of `size` bytes; empty: it has no meaning, and everything is sent, where the library answers 400. Parts
    that lie behind the end are left out, as long as another one does not."""
    unit, _, specs = text.partition("=")
    if unit.strip().lower() != "bytes" or len(text) > _LONGEST_RANGES:
        return b""
    wanted = [spec for each in specs.split(",") if (spec := each.strip(" \t"))]
    found = [_RANGE.fullmatch(spec) for spec in wanted]
    pairs = [(each[1], each[2]) for each in found if each is not None and each[0] != "-"]
    if not pairs or len(pairs) < len(wanted) or any(first and last and int(last) < int(first) for first, last in pairs):
        return b""
    there = [f"{first}-{last}" for first, last in pairs if (int(first) < size if first else int(last) and size)]
    return f"bytes={','.join(there) or f'{size}-'}".encode()


def _list(descriptor: int, locate: Callable[[list[bytes]], bytes], names: list[bytes]) -> Response:
    """A page of what can be had; folders first."""
    rows: list[tuple[bool, bytes, int, float]] = []
    more = False
    with os.scandir(descriptor) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if _is_hidden(name):
                continue
            if len(rows) >= MOST_LISTED:
                more = True
                break
            try:  # a link may lead to what is not to be seen; anything else is where the folder is
                status = os.stat(locate([*names, name])) if entry.is_symlink() else entry.stat(follow_symlinks=False)
            except OSError:
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if is_folder or stat.S_ISREG(status.st_mode):
                rows.append((not is_folder, name, status.st_size, status.st_mtime))
    title = html.escape("/" + "".join(f"{each.decode(errors='replace')}/" for each in names))
    lines = ['<tr><td><a href="../">../</a></td><td></td><td></td></tr>'] if names else []
    for is_file, name, size, modified in sorted(rows):
        slash = "" if is_file else "/"
        shown = html.escape(name.decode(errors="replace"))
        lines.append(
            f'<tr><td><a href="./{quote_from_bytes(name)}{slash}">{shown}{slash}</a></td>'
            f"<td>{size if is_file else ''}</td><td>{formatdate(modified, usegmt=True)}</td></tr>"
        )
    if more:
        lines.append(f"<tr><td>There are more: {MOST_LISTED} are shown.</td><td></td><td></td></tr>")
    return _List(_PAGE.format(title=title, rows="\n".join(lines)), headers=_LISTING_POLICY)


_PAGE: Final = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em}}td{{padding:.1em 1em .1em 0}}td+td{{color:#666}}</style></head>
<body><h1>{title}</h1>
<table>
{rows}
</table></body></html>
"""


class FolderServer:
    """HTTP on connections to itself."""

    def __init__(self, path: str, *, listing: bool) -> None:
        self._path, self._listing = path, listing
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what users send is no news
        self._state = ServerState()
        self._lists: set[Response] = set()
        self._config = uvicorn.Config(
            Folder("/", "/", self._lists, listing=False),  # each connection has its own
            http=H11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._config.load()

    async def connect(self, prefix: str) -> socket.socket:
        """One end of a connection; the other one is served until the user goes. Raises `OSError` if the folder cannot
        be read."""
        os.close(os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        users, ours = socket.socketpair()
        ours.setblocking(False)

        def protocol() -> H11Protocol:
            made = H11Protocol(self._config, self._state, {})
            made.app = Folder(self._path, prefix, self._lists, listing=self._listing)
            return made

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, ours)
        except BaseException:
            users.close()
            ours.close()
            raise
        return users
