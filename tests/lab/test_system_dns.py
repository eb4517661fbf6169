"""The system's names while the network is up, with the real systems that look after them, and after a `kill -9`.

The server's machine also runs the name server (dnsmasq) that the node's system had before. systemd-resolved, openresolv
and the message bus are the real programs, on a machine of the lab: none of this machine's is touched.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.errors import Exit
from tests.lab.netns import Lab, wait_for
from tests.lab.test_node_daemon import PROGRAM, Host
from tests.lab.topology import start_dns

pytestmark = pytest.mark.lab

PROGRAMS = Path(__file__).parents[2] / ".venv/lab"
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


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Machine, Machine]]:
    with Lab() as lab:
        switch, server, node = lab.namespace("switch"), lab.namespace("server"), lab.namespace("node")
        lab.bridge(switch, [], [(server, f"{SERVER}/24"), (node, f"{NODE}/24")])
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


@pytest.fixture
def node(hosts: tuple[Machine, Machine]) -> Iterator[Machine]:
    node = hosts[1]
    node.environment = {}
    node.namespace.resolv_conf.write_text(FORMER)
    yield node
    node.overlay("down")


def own_address(node: Machine) -> str:
    return str(node.client.request("GET", "/v1/status")["peers"][0]["addresses"][0])


def test_a_plain_file_and_a_kill(node: Machine) -> None:
    node.done("up")
    address = own_address(node)
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    assert "server.local.test" in node.namespace.run(["ping", "-c", "1", "-W", "5", "server.local.test"]).stdout
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS), "the system's own name server stands behind ours"
    node.done("up")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_what_dhcp_writes_meanwhile_counts(node: Machine) -> None:
    node.done("up")
    address, ours = own_address(node), node.first()
    node.namespace.resolv_conf.write_text(OTHER_NETWORK)
    wait_for(lambda: node.first() == ours, "our name server is first again")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    assert "options timeout:1" in node.namespace.resolv_conf.read_text()
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == OTHER_NETWORK


def test_an_immutable_file_is_a_warning_with_the_way_out(node: Machine) -> None:
    file = str(node.namespace.resolv_conf)
    subprocess.run(["chattr", "+i", file], check=True)
    try:
        node.done("up")
        assert any("chattr -i" in warning for warning in node.client.request("GET", "/v1/status")["warnings"])
        assert node.finds(FAR, FAR_ADDRESS)
        node.done("down")
        assert node.namespace.resolv_conf.read_text() == FORMER
    finally:
        subprocess.run(["chattr", "-i", file], check=True)


def test_openresolv_keeps_the_file(node: Machine, tmp_path: Path) -> None:
    # The real program, with its folders in ours: on the machine itself it would take the machine's file.
    script = (PROGRAMS / "openresolv/sbin/resolvconf").read_text()
    for name, folder in (
        ("SYSCONFDIR", tmp_path),
        ("LIBEXECDIR", PROGRAMS / "openresolv/lib/resolvconf"),
        ("VARDIR", tmp_path / "run"),
    ):
        lines = [f"{name}={folder}" if line.startswith(f"{name}=") else line for line in script.splitlines()]
        script = "\n".join(lines) + "\n"
    program = tmp_path / "bin/resolvconf"
    program.parent.mkdir()
    program.write_text(script)
    program.chmod(0o755)
    (tmp_path / "resolvconf.conf").write_text("resolv_conf=/etc/resolv.conf\n")
    node.environment = {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def resolvconf(*arguments: str, given: str = "") -> str:
        done = node.namespace.run([str(program), *arguments], input=given, env=os.environ | node.environment)
        return str(done.stdout)

    resolvconf("-a", "eth0.dhcp", given=FORMER)
    before = node.namespace.resolv_conf.read_text()
    assert "resolvconf" in before and node.first() == FORMER.strip()
    node.done("up")
    address, ours = own_address(node), node.first()
    assert ours != FORMER.strip() and "tun0.overlay" in resolvconf("-l")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    resolvconf("-a", "eth0.dhcp", given=OTHER_NETWORK)  # a new lease: openresolv itself keeps us first
    assert node.first() == ours
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS)
    node.done("up")
    node.done("down")
    assert node.first() == FORMER.strip() and "tun0.overlay" not in resolvconf("-l")


@pytest.fixture
def resolved(hosts: tuple[Machine, Machine], node: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The node with systemd-resolved on a bus of its own."""
    namespace, configuration = node.namespace, node.namespace.resolv_conf.parent
    for name, line in (("passwd", "systemd-resolve:x:996:996::/:/bin/false"), ("group", "systemd-resolve:x:996:")):
        others = [each for each in Path("/etc", name).read_text().splitlines() if "systemd-resolve" not in each]
        (configuration / name).write_text("\n".join([*others, line]) + "\n")
    (configuration / "systemd").mkdir(exist_ok=True)
    (configuration / "systemd/resolved.conf").write_text(
        f"[Resolve]\nDNS={SERVER}\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\n"
    )
    folder = hosts[0].state.parent  # which another user may enter, as resolved does
    bus, policy = folder / "bus", tmp_path / "bus.conf"
    policy.write_text(
        f"<busconfig><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>'
        '<allow receive_sender="*"/></policy></busconfig>'
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemon = namespace.popen(["dbus-daemon", f"--config-file={policy}", "--nofork", "--nopidfile"], **quiet)
    wait_for(bus.is_socket, "the bus listens")
    bus.chmod(0o777)
    node.environment = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
    installed = Path("/usr/lib/systemd/systemd-resolved")
    program = installed if installed.exists() else PROGRAMS / "systemd-resolved/lib/systemd/systemd-resolved"
    command = f"mount -t tmpfs tmpfs /run/systemd && exec {shlex.quote(str(program))}"
    service = namespace.popen(["sh", "-c", command], env=os.environ | node.environment, **quiet)
    namespace.resolv_conf.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n")
    wait_for(lambda: node.finds(FAR, FAR_ADDRESS), "resolved answers")
    yield node
    node.overlay("down")
    for process in (service, daemon):
        process.terminate()
        process.wait(10)
    for name in ("passwd", "group"):
        (configuration / name).unlink()


def test_systemd_resolved_splits(resolved: Machine) -> None:
    node = resolved
    before = node.namespace.resolv_conf.read_text()
    node.done("up")
    assert node.client.request("GET", "/v1/status")["warnings"] == []
    assert node.namespace.resolv_conf.read_text() == before, "the file is resolved's"
    address = own_address(node)
    wait_for(lambda: node.finds("server.local.test", address), "our names are ours")
    assert node.finds(FAR, FAR_ADDRESS)
    found = node.namespace.run(["dig", "+short", "@127.0.0.53", "-x", address]).stdout
    assert found == "server.local.test.\n"
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS)
    assert not node.finds("server.local.test", address), "resolved forgets a link that is gone"
    node.done("up")
    assert node.finds("server.local.test", address)
    node.done("down")
    assert node.finds(FAR, FAR_ADDRESS) and not node.finds("server.local.test", address)
