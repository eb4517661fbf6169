"""What stands between a home and the server: a router that lets little through, an HTTP proxy, a reverse proxy."""

import contextlib
import functools
import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

from tests.lab.netns import Namespace, wait_for
from tests.lab.topology import Machine
from tests.programs import nginx_command

USER, PASSWORD = "node", "not-in-any-list"
PROXY_PORT = 3128
PREFIX = "/some/where"
_FORWARDING = """
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_buffering off;"""


def restrict(router: Namespace, *rules: str) -> None:
    """Of what leaves its home, `router` forwards only what matches one of these nftables rules."""
    accepted = "\n".join(f'oifname "eth0" {rule} accept' for rule in rules)
    forward = f'type filter hook forward priority -20; policy accept;\n{accepted}\noifname "eth0" drop'
    router.rules(f"table inet overlay_lab_only {{\nchain forward {{\n{forward}\n}}\n}}\n")


@contextlib.contextmanager
def only(router: Namespace, *rules: str) -> Iterator[None]:
    """As `restrict`, for a while."""
    restrict(router, *rules)
    try:
        yield
    finally:
        router.rules("delete table inet overlay_lab_only\n")


@contextlib.contextmanager
def http_proxy(namespace: Namespace, folder: Path) -> Iterator[None]:
    """A real tinyproxy on all addresses there, with a user name and a password, that connects to port 443 alone."""
    folder.mkdir()
    lines = [f"Port {PROXY_PORT}", "Timeout 600", "MaxClients 50", f'LogFile "{folder}/log"']
    lines += [f"BasicAuth {USER} {PASSWORD}", "ConnectPort 443"]
    configuration = folder / "tinyproxy.conf"
    configuration.write_text("\n".join([*lines, ""]))
    with _serving(namespace, ["tinyproxy", "-d", "-c", str(configuration)], PROXY_PORT):
        yield


@contextlib.contextmanager
def reverse_proxy(namespace: Namespace, folder: Path, name: str, server: str) -> Iterator[Path]:
    """A real nginx on ports 80 and 443, under `name`, that passes what is below `PREFIX` on to `server` ("host:port"):
    in the open what came in the open, by TLS what came by TLS. → its authority's certificate, PEM"""
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "own.pem"))
    servers = "".join(
        f"""
    server {{
        listen {port};
        server_name {name};
        location / {{ return 200 "a page\\n"; }}
        location {PREFIX}/ {{
            proxy_pass {scheme}://{server}/;{_FORWARDING}
        }}
    }}"""
        for port, scheme in (("80", "http"), ("443 ssl", "https"))
    )
    own = f"    ssl_certificate {folder}/own.pem;\n    ssl_certificate_key {folder}/own.pem;\n"
    command = nginx_command(folder, own + servers)
    with _serving(namespace, command, 80, 443):
        yield folder / "authority.pem"


@contextlib.contextmanager
def _serving(namespace: Namespace, command: list[str], *ports: int) -> Iterator[None]:
    """From when all ports take connections until the process has ended."""
    process = namespace.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for port in ports:
            wait_for(functools.partial(_takes, namespace, port), f"{command[0]} listens on port {port}")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _takes(namespace: Namespace, port: int) -> bool:
    with namespace.enter(), socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# transfers ------------------------------------------------------------------------------------------------------------


def web_file(machine: Machine, name: str, size: int) -> Path:
    """Random bytes, where the machine's web server has its pages."""
    file = machine.state.with_name(f"www-{machine.name}") / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(os.urandom(size))
    return file


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Download:
    """A curl in the background, watched: when did its file not grow? `options` are curl's."""

    def __init__(self, machine: Machine, url: str, target: Path, *options: str) -> None:
        self.longest_pause = 0.0  # s
        self.target = target
        target.unlink(missing_ok=True)
        command = ["curl", "-sSf", "--max-time", "90", *options, "-o", str(target), url]
        self._process = machine.popen(*command, stderr=subprocess.PIPE)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def size(self) -> int:
        return self.target.stat().st_size if self.target.exists() else 0

    def finish(self) -> str:
        """Wait for its end. → SHA-256 of what came"""
        _, errors = self._process.communicate(timeout=100)
        self._watcher.join()
        assert self._process.returncode == 0, errors
        return digest(self.target)

    def _watch(self) -> None:
        size, grown = 0, time.monotonic()
        while self._process.poll() is None:
            now, current = time.monotonic(), self.size
            if current > size:
                size, grown = current, now
            self.longest_pause = max(self.longest_pause, now - grown)
            time.sleep(0.02)
