"""Real programs between node and server: nginx as a reverse proxy, tinyproxy for CONNECT, microsocks for SOCKS5. Each
on a free port of loopback, in a process of its own, with a configuration of its own."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.programs import nginx_command, program

from .streams import Certificate


def free_port() -> int:
    """Nobody else takes it in the moment until the program does: the kernel hands such ports out in turns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(command: list[str], *ports: int) -> AsyncIterator[None]:
    """From when all ports take connections until the process has ended."""
    async with await anyio.open_process(command, stdout=None, stderr=None, stdin=None) as process:
        try:
            with anyio.fail_after(10):
                for port in ports:
                    while True:
                        try:
                            await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                            break
                        except OSError:
                            assert process.returncode is None, f"{command[0]} has ended"
                            await anyio.sleep(0.02)
            yield
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def nginx(folder: Path, certificate: Certificate, upstream: int) -> AsyncIterator[tuple[int, int]]:
    """→ its ports for HTTP and HTTPS. /vpn/ leads to the server as ws, /vpns/ as wss, / is a page of its own, and /old
    redirects."""
    plain, secure = free_port(), free_port()
    forwarding = """
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_read_timeout 60s;"""
    command = nginx_command(
        folder,
        f"""
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{secure} ssl;
        ssl_certificate {certificate.chain_file};
        ssl_certificate_key {certificate.key_file};
        location = / {{ return 200 "a page\\n"; }}
        location = /old {{ return 302 /vpn/; }}
        location /vpn/ {{
            proxy_pass http://127.0.0.1:{upstream};{forwarding}
        }}
        location /vpns/ {{
            proxy_pass https://127.0.0.1:{upstream}/;{forwarding}
        }}
    }}
""",
    )
    async with running(command, plain, secure):
        yield plain, secure


@asynccontextmanager
async def microsocks(*arguments: str) -> AsyncIterator[int]:
    """→ its port."""
    port = free_port()
    async with running([program("microsocks"), "-i", "127.0.0.1", "-p", str(port), *arguments], port):
        yield port


@asynccontextmanager
async def tinyproxy(folder: Path, *settings: str) -> AsyncIterator[int]:
    """→ its port."""
    path = program("tinyproxy")
    port = free_port()
    configuration = folder / "tinyproxy.conf"
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", "MaxClients 20", f'LogFile "{folder}/tinyproxy.log"']
    configuration.write_text("\n".join([*lines, *settings, ""]))
    async with running([path, "-d", "-c", str(configuration)], port):
        yield port
