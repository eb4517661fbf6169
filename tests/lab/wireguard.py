"""A stock WireGuard machine for the lab: Debian's `wireguard-go`, driven by `wg`."""

import base64
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.lab.engines import Key
from tests.lab.netns import Namespace, wait_for

LISTENING: Final = 1 << 16  # __SO_ACCEPTCON, in the flags of /proc/net/unix


def is_controllable(namespace: Namespace, interface: str) -> bool:
    """Whether a user-space WireGuard of this namespace listens for `wg`.

    `wg` itself must not be asked before: it takes a socket that is bound but does not listen yet for the remains of a
    process that is gone and removes it, upon which wireguard-go ends.
    """
    with namespace.enter():
        lines = Path("/proc/thread-self/net/unix").read_text().splitlines()[1:]
    wanted = ("wireguard", f"{interface}.sock")
    rows = (line.split() for line in lines)
    # Some write two slashes between folder and file, as `Path` does not.
    return any(Path(row[-1]).parts[-2:] == wanted and int(row[3], 16) & LISTENING for row in rows)


class WireGuardGo:
    """One interface `wg0` in `namespace`."""

    def __init__(self, namespace: Namespace, key: Key, *, port: int = 51820, addresses: Sequence[str] = ()) -> None:
        self.namespace = namespace
        # wireguard-go names its control socket after the interface, in a folder that all namespaces share.
        self.interface = namespace.name[:15]
        said = namespace.lab.directory / f"{namespace.short_name}-wireguard.log"
        with said.open("w") as log:
            process = namespace.popen(
                ["wireguard-go", "--foreground", self.interface],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LOG_LEVEL": "error"},
            )
        try:
            wait_for(lambda: is_controllable(namespace, self.interface), "wireguard-go")
        except TimeoutError as error:
            error.add_note(f"exit status: {process.poll()}; it said: {said.read_text()}")
            raise
        self.namespace.run(
            ["wg", "set", self.interface, "listen-port", str(port), "private-key", "/dev/stdin"], input=key.private_text
        )
        for address in addresses:
            namespace.address(self.interface, address)
        namespace.run(["ip", "link", "set", self.interface, "mtu", "1420", "txqueuelen", "1000", "up"])

    def peer(self, key: Key, allowed: Sequence[str], *, endpoint: str = "", preshared_key: bytes | None = None) -> None:
        command = ["wg", "set", self.interface, "peer", key.public_text, "allowed-ips", ",".join(allowed)]
        if endpoint:
            command += ["endpoint", endpoint]
        given = ""
        if preshared_key is not None:
            command += ["preshared-key", "/dev/stdin"]
            given = base64.b64encode(preshared_key).decode()
        self.namespace.run(command, input=given)

    def remove_peer(self, key: Key) -> None:
        self.namespace.run(["wg", "set", self.interface, "peer", key.public_text, "remove"])

    def latest_handshake(self, key: Key) -> int:
        """Unix time in s; 0: none yet."""
        for line in self.namespace.run(["wg", "show", self.interface, "latest-handshakes"]).stdout.splitlines():
            public, _, when = line.partition("\t")
            if public == key.public_text:
                return int(when)
        return 0

    def endpoint(self, key: Key) -> str:
        for line in self.namespace.run(["wg", "show", self.interface, "endpoints"]).stdout.splitlines():
            public, _, endpoint = line.partition("\t")
            if public == key.public_text:
                return str(endpoint)
        return ""
