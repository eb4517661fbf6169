"""A server, a node that publishes and a user with nothing of ours: what tests of exposures have in common, and programs
that only these need. Each runs in a namespace as a process of its own: `python -m tests.lab.published NAME …`.
"""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from websockets.typing import Subprotocol

from tests.lab.conftest import tracked
from tests.lab.netns import Lab
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet

NODE_ADDRESS = "198.51.100.21"
USER_ADDRESS = "198.51.100.90"
ROOT = Path(__file__).resolve().parents[2]
CHAT: Final = Subprotocol("chat")
_PIECE = 1 << 18


@contextmanager
def exposed(machine: Machine, *arguments: str) -> Iterator[dict[str, Any]]:
    """What `overlay expose ARGUMENTS` says; given back at the end."""
    made = machine.overlay_json("expose", *arguments)
    try:
        yield made
    finally:
        machine.overlay("expose", "rm", made["id"])


@contextmanager
def published_network(*options: str) -> Iterator[Network]:
    """`server`, `a` and `user` on one switch; server and node are up. `options`: the server's."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "user")}
        public = {"server": SERVER_ADDRESS, "a": NODE_ADDRESS, "user": USER_ADDRESS}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", "a"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80", *options)
            made.join("a")
            yield made
            made.stop_all()


def program(name: str, *arguments: str) -> list[str]:
    """The command that runs one of the programs below."""
    return [sys.executable, "-m", "tests.lab.published", name, *arguments]


def shout(port: str, file: str) -> None:
    """A service: reads to the end, then says the digest of what it has read and all of `file`. Half-closes count."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        digest = hashlib.sha256()
        while piece := await reader.read(_PIECE):
            digest.update(piece)
        writer.write(digest.digest())
        await asyncio.get_running_loop().sendfile(writer.transport, opened)
        writer.close()

    with open(file, "rb") as opened:
        asyncio.run(_serve(serve, int(port)))


def echo(port: str) -> None:
    """A service: says what it hears, datagrams too."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.close()

    asyncio.run(_serve(serve, int(port)))


async def _serve(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object], port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=2048)  # type: ignore[arg-type]
    await server.serve_forever()


def exchange(port: str, sent: str, received: str) -> None:
    """A user: sends the file `sent`, ends this direction, and writes what comes to `received`, but for the digest that
    comes first, which it prints."""
    with socket.create_connection((SERVER_ADDRESS, int(port)), 60) as connected:
        with open(sent, "rb") as opened:
            connected.sendfile(opened)
        connected.shutdown(socket.SHUT_WR)
        sys.stdout.write(connected.recv(32, socket.MSG_WAITALL).hex())
        with open(received, "wb") as file:
            while piece := connected.recv(_PIECE):
                file.write(piece)


def crowd(port: str, count: str) -> None:
    """Users who are there at once: all come, all are answered, and only then does one go. Prints how many."""

    async def main() -> None:
        async def come() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(SERVER_ADDRESS, int(port))

        async def ask(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            said = number.to_bytes(4, "big")
            writer.write(said)
            return await reader.readexactly(4) == said

        users = await asyncio.gather(*(come() for _ in range(int(count))))
        for _ in range(2):
            answers = await asyncio.gather(*(ask(number, *user) for number, user in enumerate(users)))
        sys.stdout.write(str(sum(answers)))
        for _, writer in users:
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def stay(port: str) -> None:
    """A user who says something now and then until the connection ends, whichever way. Prints once that he is there."""
    with socket.create_connection((SERVER_ADDRESS, int(port)), 60) as connected, suppress(ConnectionError):
        said = b"here\n"
        while True:
            connected.sendall(said)
            heard = connected.recv(64)
            if not heard:
                return
            if said != b".":
                sys.stdout.write(heard.decode())
                sys.stdout.flush()
            said = b"."
            with suppress(TimeoutError):
                connected.settimeout(0.2)
                if not connected.recv(64):
                    return
            connected.settimeout(60)


PAGE = b"""<!doctype html><title>chat</title><p id="said">nothing</p>
<img src="/seen">
<script>
const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket", "chat");
socket.onopen = () => socket.send("hello from " + location.protocol);
socket.onmessage = event => {
  document.getElementById("said").textContent = "echo: " + event.data;
  socket.send("seen");  // the page is loaded when this is known
};
</script>
"""


def chat(port: str) -> None:
    """A service: a page, and a WebSocket that says what it hears."""
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.http11 import Request, Response

    async def answer(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/socket":
            return None
        if request.path == "/seen":
            await seen.wait()
        response = connection.respond(HTTPStatus.OK, PAGE.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html"
        return response

    async def say(connection: ServerConnection) -> None:
        async for message in connection:
            if message == "seen":
                seen.set()
                return
            await connection.send(message)

    seen = asyncio.Event()

    async def main() -> None:
        async with serve(say, "127.0.0.1", int(port), process_request=answer, subprotocols=[CHAT], max_size=None):
            await asyncio.get_running_loop().create_future()

    asyncio.run(main())


def talk(scheme: str, host: str) -> None:
    """A user by WebSocket: text, 5 MB, a ping, and the end in order. Prints what became of it, as JSON."""
    from websockets.asyncio.client import connect

    context = ssl.create_default_context() if scheme == "wss" else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def main() -> None:
        large = os.urandom(5_000_000)
        address, port = f"{scheme}://{host}/socket", 443 if context is not None else 80
        async with connect(
            address, host=SERVER_ADDRESS, port=port, ssl=context, subprotocols=[CHAT], max_size=None, proxy=None
        ) as socket_:
            answers = []
            for message in ("hello", large):
                await socket_.send(message)
                answers.append(await socket_.recv() == message)
            await (await socket_.ping())
            found = {"echo": all(answers), "protocol": socket_.subprotocol, "pong": True}
        sys.stdout.write(json.dumps({**found, "closed": socket_.close_code}))

    asyncio.run(asyncio.wait_for(main(), 60))


def random_file(path: Path, size: int) -> str:
    """→ its SHA-256, hex"""
    data = os.urandom(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


PROGRAMS = {each.__name__: each for each in (shout, echo, exchange, crowd, stay, chat, talk)}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
