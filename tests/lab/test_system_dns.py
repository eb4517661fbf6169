"""The system's names while the network is up, with the real systems that look after them, and after a `kill -9`.

systemd-resolved, openresolv and the message bus are the real programs, on a machine of the lab: none of this machine's
is touched.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import wait_for
from tests.lab.resolvers import (
    FAR,
    FAR_ADDRESS,
    FORMER,
    OTHER_NETWORK,
    PROGRAMS,
    SERVER,
    Machine,
    message_bus,
    user,
)
from tests.lab.test_node_daemon import PROGRAM
from tests.lab.topology import start_dns

pytestmark = pytest.mark.lab


def test_a_plain_file_and_a_kill(node: Machine) -> None:
    node.done("up")
    address = node.own_address()
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    assert "a mount of its own" in node.done("dns", "status"), "as the lab's files are, like a container's"
    assert "server.local.test" in node.namespace.run(["ping", "-c", "1", "-W", "5", "server.local.test"]).stdout
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS), "the system's own name server stands behind ours"
    node.done("up")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_what_dhcp_writes_meanwhile_counts(node: Machine) -> None:
    node.done("up")
    address, ours = node.own_address(), node.first()
    node.namespace.resolv_conf.write_text(OTHER_NETWORK)
    wait_for(lambda: node.first() == ours, "our name server is first again")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    assert "options timeout:1" in node.namespace.resolv_conf.read_text()
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == OTHER_NETWORK


def test_after_a_reboot_with_the_file_as_we_left_it(node: Machine) -> None:
    node.done("up")
    address = node.own_address()
    node.kill()
    reboot(node)
    assert node.first() != FORMER.strip() and node.finds(FAR, FAR_ADDRESS), "it is found without us"
    node.done("up")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_after_a_reboot_on_another_network(node: Machine) -> None:
    node.done("up")
    node.kill()
    reboot(node)
    node.namespace.resolv_conf.write_text(OTHER_NETWORK)  # by DHCP, before we start
    node.done("up")
    assert node.first() != f"nameserver {SERVER}" and "home.example" in node.namespace.resolv_conf.read_text()
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == OTHER_NETWORK


def reboot(node: Machine) -> None:
    """What a reboot leaves of us: the state folder without what ends with the machine, and /etc."""
    for name in ("lock", "overlay.sock"):
        (node.state / name).unlink(missing_ok=True)
    assert "overlay" not in node.namespace.run(["ip", "-o", "link"]).stdout


def test_a_file_that_cannot_be_written_is_a_warning_with_the_way_out(node: Machine) -> None:
    prefix = "mount -o remount,ro,bind /etc/resolv.conf && exec "
    command = prefix + shlex.join([sys.executable, "-c", PROGRAM, "up", "--state", str(node.state)])
    node.namespace.run(["sh", "-c", command])
    (warning,) = node.client.request("GET", "/v1/status")["warnings"]
    assert "read-only" in warning and "--dns" in warning
    assert "cannot be written" in node.done("dns", "status")
    assert node.finds(FAR, FAR_ADDRESS)
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == FORMER


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
    (tmp_path / "resolvconf.conf").write_text(f"resolv_conf=/etc/resolv.conf\nlist_resolv='{program} -l'\n")
    node.environment = {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def resolvconf(*arguments: str, given: str = "") -> str:
        done = node.namespace.run([str(program), *arguments], input=given, env=os.environ | node.environment)
        return str(done.stdout)

    resolvconf("-a", "eth0.dhcp", given=FORMER)
    before = node.namespace.resolv_conf.read_text()
    assert "resolvconf" in before and node.first() == FORMER.strip()
    node.done("up")
    address, ours = node.own_address(), node.first()
    assert ours != FORMER.strip() and "tun0.overlay" in resolvconf("-l")
    assert node.finds("server.local.test", address) and node.finds(FAR, FAR_ADDRESS)
    resolvconf("-a", "eth0.dhcp", given=OTHER_NETWORK)  # a new lease: openresolv itself keeps us first
    assert node.first() == ours
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS)
    node.done("up")
    node.done("down")
    assert node.first() == FORMER.strip() and "tun0.overlay" not in resolvconf("-l")
    node.done("up")
    node.kill()
    shutil.rmtree(tmp_path / "run")  # which a reboot empties
    resolvconf("-a", "eth0.dhcp", given=FORMER)
    assert node.first() == FORMER.strip()
    node.done("up")
    assert node.first() == ours
    node.done("down")
    assert node.first() == FORMER.strip()


@pytest.fixture
def resolved(hosts: tuple[Machine, Machine], node: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The node with systemd-resolved on a bus of its own."""
    namespace, configuration = node.namespace, node.namespace.resolv_conf.parent
    (configuration / "systemd").mkdir(exist_ok=True)
    (configuration / "systemd/resolved.conf").write_text(
        f"[Resolve]\nDNS={SERVER}\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\n"
    )
    with user(namespace, "systemd-resolve"), message_bus(namespace, hosts[0].state.parent) as bus:
        node.environment = {"DBUS_SYSTEM_BUS_ADDRESS": bus}
        installed = Path("/usr/lib/systemd/systemd-resolved")
        program = installed if installed.exists() else PROGRAMS / "systemd-resolved/lib/systemd/systemd-resolved"
        command = f"mount -t tmpfs tmpfs /run/systemd && exec {shlex.quote(str(program))}"
        service = namespace.popen(
            ["sh", "-c", command],
            env=os.environ | node.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        namespace.resolv_conf.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n")
        wait_for(lambda: node.finds(FAR, FAR_ADDRESS), "resolved answers")
        yield node
        node.overlay("down")
        service.terminate()
        service.wait(10)


def test_systemd_resolved_splits(hosts: tuple[Machine, Machine], resolved: Machine) -> None:
    server, node = hosts[0], resolved
    before = node.namespace.resolv_conf.read_text()
    node.done("up")
    assert node.client.request("GET", "/v1/status")["warnings"] == []
    assert node.namespace.resolv_conf.read_text() == before, "the file is resolved's"
    address = node.own_address()
    wait_for(lambda: node.finds("server.local.test", address), "our names are ours")
    assert node.finds(FAR, FAR_ADDRESS)
    found = node.namespace.run(["dig", "+short", "@127.0.0.53", "-x", address]).stdout
    assert found == "server.local.test.\n"
    server.namespace.hosts.write_text(f"{SERVER} app.example.org\n")  # in place of the public DNS
    exposure = json.loads(node.done("expose", "tcp://127.0.0.1:1", "--known-as", "app.example.org", "--json"))
    own = node.client.request("GET", "/v1/status")["addresses"][0]
    wait_for(lambda: node.finds("app.example.org", own), "resolved asks us for the exposure's public name")
    node.done("expose", "rm", exposure["id"])
    node.kill()
    assert node.finds(FAR, FAR_ADDRESS)
    assert not node.finds("server.local.test", address), "resolved forgets a link that is gone"
    node.done("up")
    assert node.finds("server.local.test", address)
    node.done("down")
    assert node.finds(FAR, FAR_ADDRESS) and not node.finds("server.local.test", address)
    other = start_dns(hosts[0].namespace, SERVER, 5300, FAR, "192.0.2.99")
    node.done("up", "--upstream", f"{SERVER}:5300")
    assert "for all names\n" in node.done("dns", "status")
    wait_for(lambda: node.finds(FAR, "192.0.2.99"), "all names are asked of whom a person chose")
    assert node.finds("server.local.test", address)
    node.done("down")
    assert node.finds(FAR, FAR_ADDRESS)
    other.terminate()
    other.wait(10)
