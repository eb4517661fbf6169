"""Names beside the network's: multicast names of the LAN, other C libraries, name servers that a person chose."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.netns import wait_for
from tests.lab.resolvers import FAR, FAR_ADDRESS, LIBRARIES, PROGRAMS, SERVER, Machine, as_found, server_and_node, user

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Machine, Machine]]:
    with server_and_node() as both:
        yield both


@pytest.fixture
def node(hosts: tuple[Machine, Machine]) -> Iterator[Machine]:
    yield from as_found(hosts[1])


@contextmanager
def avahi(machine: Machine, name: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A real mDNS responder, with a /run of its own."""
    configuration = folder / f"{name}.conf"
    configuration.write_text(f"[server]\nhost-name={name}\nuse-ipv6=no\nallow-interfaces=eth0\nenable-dbus=no\n")
    program = PROGRAMS / "avahi-daemon/usr/sbin/avahi-daemon"
    command = f"{program} --file={configuration} --no-drop-root --no-chroot --no-rlimits"
    multicast = ["224.0.0.0/4", "dev", "eth0"]
    machine.namespace.run(["ip", "route", "add", *multicast])
    with user(machine.namespace, "avahi"):
        process = machine.namespace.popen(
            ["sh", "-c", f"mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && exec {command}"],
            env=os.environ | {"LD_LIBRARY_PATH": LIBRARIES},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # Before that, the process is perhaps not in its namespaces yet, and who follows it there neither.
            wait_for(Path(f"/proc/{process.pid}/root/run/avahi-daemon/socket").is_socket, f"{name} listens")
            yield process
        finally:
            process.terminate()
            process.wait(10)
            machine.namespace.run(["ip", "route", "del", *multicast])


def test_multicast_names_are_found_as_before(hosts: tuple[Machine, Machine], node: Machine, tmp_path: Path) -> None:
    nsswitch = node.namespace.resolv_conf.with_name("nsswitch.conf")
    former = nsswitch.read_text()
    nsswitch.write_text("hosts: files mdns4_minimal [NOTFOUND=return] dns\n")
    with avahi(hosts[0], "printer", tmp_path), avahi(node, "here", tmp_path) as here:

        def found(name: str) -> list[str]:
            """By a program beside the node's Avahi, which sees its socket."""
            command = ["nsenter", f"--target={here.pid}", "--mount", "--net", "getent", "ahostsv4", name]
            environment = os.environ | {"LD_LIBRARY_PATH": LIBRARIES}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
            return done.stdout.split()[:1]

        def by_dns(server: str) -> str:
            return str(node.namespace.run(["dig", "+noall", "+comments", f"@{server}", "printer.local"]).stdout)

        wait_for(lambda: found("printer.local") == [SERVER], "the printer says its name")
        node.done("up")
        address, ours = node.own_address(), node.first().split()[1]
        assert ours != SERVER
        assert found("printer.local") == [SERVER] and found("server.local.test") == [address]
        assert found(FAR) == [FAR_ADDRESS]
        for server in (SERVER, ours):  # who knows no multicast hears what the system's name server says
            assert "status: REFUSED" in by_dns(server)
        node.done("down")
        assert found("printer.local") == [SERVER]
    nsswitch.write_text(former)
