"""Engines in namespaces, for the lab's tests: starts `engine_host` children and talks to them."""

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from overlay.wire.endpoint import Endpoint
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.lab.netns import Namespace, wait_for

HOST = Path(__file__).with_name("engine_host.py")
ROOT = Path(__file__).resolve().parents[2]


class Key:
    """A node key for a test."""

    def __init__(self) -> None:
        self.private = clamp(os.urandom(32))
        self.public = public_key(self.private)

    @property
    def private_text(self) -> str:
        return base64.b64encode(self.private).decode()

    @property
    def public_text(self) -> str:
        return base64.b64encode(self.public).decode()


class EngineHost:
    """One engine in its own process. Lines that it says are kept; `drops` and the rest come from a snapshot."""

    def __init__(
        self,
        namespace: Namespace,
        key: Key,
        number: int,
        *,
        port: int = 41641,
        addresses: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.key = key
        self.number = number
        self.port = port
        command = [sys.executable, str(HOST), "--key", key.private_text, "--number", str(number), "--port", str(port)]
        for address in addresses:
            command += ["--address", address]
        self._log = namespace.lab.directory / f"{namespace.short_name}-{number}.log"
        with self._log.open("a") as log:
            self.process: subprocess.Popen[str] = namespace.popen(
                [*command, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=1,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self._wait("ready")

    def _read(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                said = json.loads(line)
                if said["kind"] == "event":
                    self.events.append(said)
                else:
                    self._lines.put(said)

    def _wait(self, kind: str, timeout: float = 10.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                said = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"engine {self.number} did not say '{kind}': {self.log()}") from None
            if said["kind"] == kind:
                return said

    def log(self) -> str:
        """What it wrote to its standard error."""
        return self._log.read_text()

    def order(self, do: str, **values: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()

    def peer(
        self, key: Key, number: int, allowed: Sequence[str], endpoints: Sequence[Endpoint] = (), **more: Any
    ) -> None:
        self.order(
            "peer", number=number, public_key=key.public_text, allowed=list(allowed), endpoints=list(endpoints), **more
        )
        self.inspect()  # orders are done in turn: the peer is known when this is answered

    def inspect(self) -> dict[str, Any]:
        self.order("inspect")
        return self._wait("snapshot")

    def socket_option(self, level: int, name: int, value: int) -> None:
        """Set an option of the engine's IPv4 socket."""
        self.order("socket_option", level=level, name=name, value=value)
        self._wait("done")

    def blocked(self) -> bool:
        """Does it wait for room in a socket's buffer?"""
        self.order("blocked")
        return bool(self._wait("blocked")["blocked"])

    def path_kind(self, number: int) -> str | None:
        for peer in self.inspect()["peers"]:
            if peer["number"] == number and peer["path"] is not None:
                return str(peer["path"]["kind"])
        return None

    def stop(self) -> dict[str, Any]:
        self.order("stop")
        said = self._wait("stopped")
        self.process.wait(10)
        return said


def ping(namespace: Namespace, address: str, count: int = 3, *extra: str) -> bool:
    """Did all pings come back?"""
    done = namespace.run(["ping", "-c", str(count), "-i", "0.2", "-W", "2", *extra, address], check=False)
    return done.returncode == 0 and " 0% packet loss" in done.stdout


def wait_for_ping(namespace: Namespace, address: str, timeout: float = 10.0) -> None:
    wait_for(lambda: ping(namespace, address, 1), f"ping {address}", timeout)


_RECEIVE = """
import hashlib, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("listening", flush=True)
connection, _ = listener.accept()
digest, size = hashlib.sha256(), 0
while data := connection.recv(1 << 16):
    digest.update(data)
    size += len(data)
print(size, digest.hexdigest(), flush=True)
"""

_SEND = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
    connection.sendall(data)
print(len(data), hashlib.sha256(data).hexdigest(), flush=True)
"""


def transfer(
    sender: Namespace,
    receiver: Namespace,
    address: str,
    size: int = 10_000_000,
    *,
    during: Callable[[], None] | None = None,
) -> tuple[str, str]:
    """Send `size` random bytes by TCP; what either end says of them (size and SHA-256), which should be equal."""
    listening = receiver.popen(
        [sys.executable, "-c", _RECEIVE, address, "5001"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listening.stdout is not None
    assert listening.stdout.readline().strip() == "listening"
    sending = sender.popen([sys.executable, "-c", _SEND, address, "5001", str(size)], stdout=subprocess.PIPE)
    if during is not None:
        during()
    sent, _ = sending.communicate(timeout=60)
    received, _ = listening.communicate(timeout=60)
    return sent.strip(), received.strip()
