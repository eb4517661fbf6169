"""Machines of the lab on which names are looked at: a server with a name server beside it, and a node.

The server's machine also runs the name server (dnsmasq) that the node's system had before.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from overlay.errors import Exit
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_node_daemon import PROGRAM, Host
from tests.lab.topology import start_dns

PROGRAMS = Path(__file__).parents[2] / ".venv/lab"
"""Debian packages, unpacked by scripts/setup: installed, they would take over this machine's names."""
LIBRARIES = os.pathsep.join(
    str(path) for below in ("usr/lib", "lib") for path in PROGRAMS.glob(f"*/{below}/*-linux-gnu")
)
SERVER, NODE = "203.0.113.1", "203.0.113.2"
FAR, FAR_ADDRESS = "far.example", "192.0.2.80"
OTHER_NETWORK = f"# by DHCP\nsearch home.example\nnameserver {SERVER}\noptions timeout:1\n"
FORMER = f"nameserver {SERVER}\n"
PATIENCE = 5.0  # seconds within which other names must resolve after a kill


class Machine(Host):
    """`environment`: of the daemon, beside what the tests have."""

    environment: dict[str, str] = {}

    def overlay(self, *arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", PROGRAM, *arguments, "--state", str(self.state)]
        done = self.namespace.run(command, check=False, env=os.environ | self.environment)
        return done.returncode, done.stdout, done.stderr

    def finds(self, name: str, address: str) -> bool:
        done = self.namespace.run(["getent", "ahostsv4", name], check=False, timeout=PATIENCE)
        return address in done.stdout.split()

    def kill(self) -> None:
        os.kill(self.daemon(), signal.SIGKILL)
        wait_for(lambda: self.overlay("status")[0] == Exit.NOT_RUNNING, "the daemon is gone")

    def first(self) -> str:
        lines = self.namespace.resolv_conf.read_text().splitlines()
        return next((line for line in lines if line.startswith("nameserver")), "")

    def own_address(self) -> str:
        """Of the server in the overlay, as this machine is told."""
        return str(self.client.request("GET", "/v1/status")["peers"][0]["addresses"][0])


@contextmanager
def server_and_node() -> Iterator[tuple[Machine, Machine]]:
    """A server that runs, and a node that was in its network and is down."""
    with Lab() as lab:
        switch, server, node = lab.namespace("switch"), lab.namespace("server"), lab.namespace("node")
        lab.bridge(switch, [], [(server, f"{SERVER}/24"), (node, f"{NODE}/24")])
        node.route("default", SERVER)
        server.set("net.ipv4.ip_forward", 0)  # a router that knows no way on, and does not say so
        start_dns(server, SERVER, 53, FAR, FAR_ADDRESS)
        server_host = Machine(server, lab.directory / "server")
        server_host.done("server", "--json")
        node_host = Machine(node, lab.directory / "node")
        node.resolv_conf.write_text(FORMER)
        node_host.done("up", server_host.done("invite").strip(), "--name", "a")
        node_host.done("down")
        try:
            yield server_host, node_host
        finally:
            server_host.overlay("down")


def as_found(node: Machine) -> Iterator[Machine]:
    """For a fixture: the node as it is without us, and down after."""
    node.environment = {}
    node.namespace.resolv_conf.write_text(FORMER)
    yield node
    node.overlay("down")


@contextmanager
def user(namespace: Namespace, name: str) -> Iterator[None]:
    """A machine that has a user and a group of that name, without rights."""
    files = [namespace.resolv_conf.with_name(file) for file in ("passwd", "group")]
    for file, line in zip(files, (f"{name}:x:996:996::/:/bin/false", f"{name}:x:996:"), strict=True):
        others = [each for each in Path("/etc", file.name).read_text().splitlines() if not each.startswith(f"{name}:")]
        file.write_text("\n".join([*others, line]) + "\n")
    try:
        yield
    finally:
        for file in files:
            file.unlink()


@contextmanager
def message_bus(namespace: Namespace, folder: Path) -> Iterator[str]:
    """A real message bus in a folder that all users may enter: its address."""
    bus, policy = folder / "bus", folder / "bus.conf"
    policy.write_text(
        f"<busconfig><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>'
        '<allow receive_sender="*"/></policy></busconfig>'
    )
    daemon = namespace.popen(
        ["dbus-daemon", f"--config-file={policy}", "--nofork", "--nopidfile"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(bus.is_socket, "the bus listens")
        bus.chmod(0o777)
        yield f"unix:path={bus}"
    finally:
        daemon.terminate()
        daemon.wait(10)
        bus.unlink(missing_ok=True)


class Inside(Namespace):
    """The machine of a namespace with the mounts that the process `pid` there has."""

    pid: int = 0

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", *command]


def inside(namespace: Namespace, pid: int) -> Inside:
    found = Inside(namespace.lab, namespace.short_name, namespace.name)
    found.pid = pid
    return found
