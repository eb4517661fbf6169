"""A TCP port as the server's: one for TLS with the server's certificate and for plain HTTP, told apart by a peek."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio

from overlay.carrier.stream import TcpStream
from overlay.wire.ingress.client_hello import RECORD_HEADER, ClientHello, parse_client_hello

PATIENCE = 30.0  # s; a test that waits longer has failed


class Shown(Protocol):
    """What the port asks `Certificates` for."""

    def context(self, hello: ClientHello) -> ssl.SSLContext: ...
    def http_answer(self, path: str) -> bytes | None: ...


@asynccontextmanager
async def tls_port(certificates: Shown) -> AsyncIterator[int]:
    """Served on loopback until the block ends; the port's number."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_accept, listening, certificates)
            yield listening.getsockname()[1]
            tasks.cancel_scope.cancel()


async def _accept(listening: socket.socket, certificates: Shown) -> None:
    loop = asyncio.get_running_loop()
    async with anyio.create_task_group() as tasks:
        while True:
            connection, _ = await loop.sock_accept(listening)
            tasks.start_soon(_serve, connection, certificates)


async def _serve(connection: socket.socket, certificates: Shown) -> None:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    await anyio.wait_readable(connection)
    first = connection.recv(1, socket.MSG_PEEK)
    context = certificates.context(await _hello(connection)) if first == b"\x16" else None
    opened: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = loop.create_future()

    def protocol() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(
            asyncio.StreamReader(), lambda reader, writer: opened.set_result((reader, writer))
        )

    try:
        await loop.connect_accepted_socket(protocol, connection, ssl=context)
    except (OSError, ssl.SSLError):
        connection.close()
        return
    reader, writer = await opened
    try:
        if context is None:
            _, path, _ = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            body = certificates.http_answer(path.decode("ascii"))
            status = "404 Not Found" if body is None else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body or b'')}\r\n\r\n".encode() + (body or b""))
            await writer.drain()
        else:
            await reader.read()  # until the client leaves
    except (OSError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


async def _hello(connection: socket.socket) -> ClientHello:
    stream = TcpStream(connection)
    needed = RECORD_HEADER
    while True:
        found = parse_client_hello(await stream.peek(needed))
        if isinstance(found, ClientHello):
            return found
        needed = found


def trusting_nobody() -> ssl.SSLContext:
    """A client's context that takes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def handshake(
    port: int, name: str | None, context: ssl.SSLContext | None = None, protocols: tuple[str, ...] = ("http/1.1",)
) -> tuple[bytes, str | None, str | None]:
    """Meet the port as a client: the certificate it shows (DER), the protocol agreed, the TLS version."""
    context = context or trusting_nobody()
    context.set_alpn_protocols(list(protocols))

    def meet() -> tuple[bytes, str | None, str | None]:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as raw:
            with context.wrap_socket(raw, server_hostname=name) as connection:
                shown = connection.getpeercert(binary_form=True)
                assert shown is not None
                return shown, connection.selected_alpn_protocol(), connection.version()

    return await anyio.to_thread.run_sync(meet)
