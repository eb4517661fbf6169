"""Standard input and output to a node's port: straight through the overlay where it is up, else by HTTP CONNECT through
the server, for who has a token. Runs in the process of who asked for it, as ssh's ProxyCommand say.
"""

import errno
import os
import re
import sys
from typing import Final

import anyio
import anyio.to_thread

from overlay.carrier.http import read_head
from overlay.carrier.look_up import system_look_up
from overlay.carrier.port import UserStream
from overlay.carrier.stream import TcpStream, connect
from overlay.carrier.streams import CodecStream
from overlay.carrier.tls import ALPN_WEBSOCKET, client_context, client_handshake
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.wire.control.address import parse_server_address
from overlay.wire.control.proxy_token import ProxyToken
from overlay.wire.endpoint import Endpoint, format_endpoint
from overlay.wire.ingress.http1 import parse_response

TIMEOUT: Final = 15.0  # s to be through: the server gives up on a node after 10
_HOST: Final = re.compile(r"[0-9A-Za-z_.:-]{1,253}")
_CHUNK: Final = 64 * 1024
_WORDS: Final = {
    400: ("proxy-refused", "does not take this host and port", Exit.USAGE),
    403: ("proxy-refused", "does not let this token through to there", Exit.REFUSED),
    404: ("proxy-refused", "does not know the token", Exit.REFUSED),
    407: ("token-expired", "says that the token has expired", Exit.REFUSED),
    502: ("proxy-unreachable", "does not reach it: it is offline, or nothing listens there", Exit.UNREACHABLE),
    503: ("proxy-full", "is through with too many already", Exit.UNREACHABLE),
    504: ("proxy-unreachable", "gets no answer from it", Exit.UNREACHABLE),
}


async def open_directly(endpoint: Endpoint) -> TcpStream:
    """Through the overlay. Raises `UserError` ("proxy-unreachable")."""
    try:
        with anyio.fail_after(TIMEOUT):
            return await connect(endpoint)
    except OSError as error:  # TimeoutError is one
        why = error.strerror or "no answer"
        raise UserError(
            "proxy-unreachable", f"{format_endpoint(endpoint)} is not reached: {why}.", "", Exit.UNREACHABLE
        ) from error


async def open_through(token_text: str, host: str, port: int, *, ca_file: str | None = None) -> UserStream:
    """By the server that the token names. Raises `UserError`."""
    token = ProxyToken.parse(token_text)
    if not _HOST.fullmatch(host):
        raise UserError("host-invalid", f"'{host[:100]}' is no name of a node.", "As in b.local.test.", Exit.USAGE)
    problems: list[str] = []
    with anyio.move_on_after(TIMEOUT):
        for address in token.addresses:
            server = parse_server_address(address)
            try:
                for endpoint in await system_look_up(server.host, server.port):
                    stream = await open_secured(endpoint, server.host, token.pin, ca_file)
                    try:
                        return await _let_through(stream, token_text.strip(), host, port, address)
                    except BaseException:
                        stream.close()
                        raise
            except (OSError, RemoteProtocolError) as error:
                problems.append(f"{address}: {error}")
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                problems.append(f"{address}: it closed the connection")
    raise UserError(
        "server-unreachable",
        f"The server is not reached ({'; '.join(problems) or 'no answer'}).",
        "See whether this machine is online, and whether the server runs.",
        Exit.UNREACHABLE,
    )


async def open_secured(endpoint: Endpoint, host: str, pin: bytes, ca_file: str | None = None) -> CodecStream:
    """By TLS to the server of this name. One that shows no pin has a certificate that authorities vouch for. Raises
    `OSError`, `RemoteProtocolError`, and as streams do."""
    tcp = await connect(endpoint)
    try:
        context = client_context(ALPN_WEBSOCKET, authorities=not pin, ca_file=ca_file)
        return await client_handshake(tcp, context, host, pin)
    except BaseException:
        tcp.close()
        raise


async def _let_through(stream: UserStream, token: str, host: str, port: int, server: str) -> UserStream:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = (f"CONNECT {place} HTTP/1.1", f"Host: {place}", f"Proxy-Authorization: Bearer {token}", "", "")
    await stream.send("\r\n".join(lines).encode("ascii"))
    head, behind = await read_head(stream)
    status = parse_response(head, b"CONNECT").status
    if status != 200:
        code, words, exit_code = _WORDS.get(status, ("proxy-refused", f"answers {status}", Exit.FAILED))
        hint = "'overlay token add' on the server makes a token." if status in (403, 404, 407) else ""
        raise UserError(code, f"{place}: the server at {server} {words}.", hint, exit_code)
    if behind:
        if isinstance(stream, TcpStream):
            raise RemoteProtocolError("bad_answer", "more than an answer")
        stream.unread(behind)
    return stream


async def carry(stream: UserStream) -> None:
    """Between standard input and output and the stream, until that ends; closes it. Raises `UserError`
    ("connection-lost")."""
    failure: str = ""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_input, stream)
            try:
                while True:
                    await anyio.to_thread.run_sync(_write, await stream.receive(_CHUNK))
            except anyio.EndOfStream:
                pass
            except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                failure = str(error.__cause__ or error)
            except BrokenPipeError:
                pass  # nobody reads any more
            tasks.cancel_scope.cancel()
    finally:
        stream.close()
    if failure:
        raise UserError("connection-lost", f"The connection broke: {failure}.", "", Exit.UNREACHABLE)


async def _send_input(stream: UserStream) -> None:
    descriptor = sys.stdin.fileno()
    try:
        while True:
            try:
                await anyio.wait_readable(descriptor)
            except OSError as error:
                if error.errno != errno.EPERM:  # an ordinary file: it never makes anybody wait
                    raise
            data = os.read(descriptor, _CHUNK)
            if not data:
                await stream.send_eof()
                return
            await stream.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # whoever receives says so


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
