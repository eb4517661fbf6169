"""`python -m overlay.node` as people start it, on machines of their own, with a real server."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.daemon.client import LocalClient
from overlay.errors import Exit
from tests.lab.netns import Lab, Namespace, wait_for

pytestmark = pytest.mark.lab

PROGRAM = "from overlay_cli.main import main; import sys; sys.exit(main())"
FORMER = "nameserver 192.0.2.53\n"


class Host:
    """One machine with a state folder."""

    def __init__(self, namespace: Namespace, state: Path) -> None:
        self.namespace = namespace
        self.state = state
        self.client = LocalClient(state)

    def overlay(self, *arguments: str) -> tuple[int, str, str]:

        command = [sys.executable, "-c", PROGRAM, *arguments, "--state", str(self.state)]
        done = self.namespace.run(command, check=False)
        return done.returncode, done.stdout, done.stderr

    def done(self, *arguments: str) -> str:
        code, output, errors = self.overlay(*arguments)
        assert code == 0, errors
        return output

    def daemon(self) -> int:
        """Process id of the daemon, which holds the lock of the state folder."""
        for process in self.namespace.run(["ip", "netns", "pids", self.namespace.name]).stdout.split():
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            if b"overlay.node" in command:
                return int(process)
        raise AssertionError("no daemon")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """A server that runs, and a machine beside it."""
    with Lab() as lab:
        switch, server, node = lab.namespace("switch"), lab.namespace("server"), lab.namespace("node")
        lab.bridge(switch, [], [(server, "203.0.113.1/24"), (node, "203.0.113.2/24")])
        server_host = Host(server, lab.directory / "server")
        server_host.done("server", "--json")
        try:
            yield server_host, Host(node, lab.directory / "node")
        finally:
            server_host.overlay("down")


@pytest.fixture
def node(hosts: tuple[Host, Host]) -> Iterator[Host]:
    """The machine, in the network."""
    server, node = hosts
    node.namespace.resolv_conf.write_text(FORMER)
    node.done("up", server.done("invite").strip(), "--name", "a")
    yield node
    node.overlay("down")


def test_up_down_and_what_is_left(hosts: tuple[Host, Host], node: Host) -> None:
    status = node.client.request("GET", "/v1/status")
    assert (status["state"], status["name"]) == ("connected", "a")
    assert status["warnings"] == []
    assert "overlay0" in node.namespace.run(["ip", "link"]).stdout
    assert node.namespace.resolv_conf.read_text().count("nameserver") == 2
    answer = node.namespace.run(["getent", "ahostsv4", "server.local.test"]).stdout
    assert answer.split()[0] == status["peers"][0]["addresses"][0]
    node.done("down")
    assert "overlay0" not in node.namespace.run(["ip", "link"]).stdout
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_a_second_up_is_refused(node: Host) -> None:
    code, _, errors = node.overlay("up")
    assert code == Exit.FAILED
    assert "already running" in errors


def test_memory_stays_below_the_aim(node: Host) -> None:
    status = Path(f"/proc/{node.daemon()}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 90 * 1024


def test_after_a_kill_the_next_start_mends_the_system(node: Host) -> None:

    os.kill(node.daemon(), signal.SIGKILL)
    wait_for(lambda: node.overlay("status")[0] == Exit.NOT_RUNNING, "the daemon is gone")
    assert node.namespace.resolv_conf.read_text() != FORMER
    node.done("up")
    node.done("down")
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_sigterm_is_an_orderly_stop(node: Host) -> None:

    os.kill(node.daemon(), signal.SIGTERM)
    wait_for(lambda: node.overlay("status")[0] == Exit.NOT_RUNNING, "the daemon is gone")
    assert node.namespace.resolv_conf.read_text() == FORMER


def test_the_server_away_and_back(hosts: tuple[Host, Host], node: Host) -> None:
    server, _ = hosts
    interface = node.namespace.run(["ip", "-o", "link", "show", "overlay0"]).stdout
    server.done("down")
    wait_for(lambda: node.client.request("GET", "/v1/status")["state"] == "offline", "the loss is noticed")
    server.done("server")
    wait_for(lambda: node.client.request("GET", "/v1/status")["state"] == "connected", "it is back", timeout=15)
    assert node.namespace.run(["ip", "-o", "link", "show", "overlay0"]).stdout == interface


@pytest.mark.parametrize("invite", ["nonsense", "ov1_abc"])
def test_wrong_invites(hosts: tuple[Host, Host], invite: str) -> None:
    _, machine = hosts
    code, _, errors = Host(machine.namespace, machine.state.with_name("other")).overlay("up", invite)
    assert code == Exit.REFUSED
    assert "nvite" in errors
    assert "Traceback" not in errors


def test_a_used_up_invite(hosts: tuple[Host, Host], node: Host) -> None:
    server, _ = hosts
    invite = server.done("invite", "--uses", "1").strip()
    node.done("down")  # two nodes of one network in one machine would share a range
    first = Host(node.namespace, node.state.with_name("first"))
    first.done("up", invite, "--name", "first")
    first.done("down")
    code, _, errors = Host(node.namespace, node.state.with_name("second")).overlay("up", invite)
    assert code == Exit.REFUSED
    assert "Traceback" not in errors
