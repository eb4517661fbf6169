"""What goes wrong, on whole networks: one clear sentence each, with a way out and an exit code, or a counted drop."""

import contextlib
import errno
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlay.errors import Exit
from overlay.wire.control.invite import Invite
from tests.lab.netns import wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network

pytestmark = pytest.mark.lab

NOBODY = 65534


@pytest.fixture
def newcomer(network: Network, tmp_path: Path) -> Iterator[Machine]:
    """A machine on the internet that has not joined, with a state folder of its own per test."""
    machine = Machine(network["stranger"].namespace, tmp_path / "state")
    yield machine
    if machine.state_word() != "stopped":
        machine.overlay("down", "--quiet")
    wait_for(machine.is_still, "no daemon is left")


def failure(machine: Machine, *command: str, given: str | None = None, code: str, exit_code: Exit) -> dict[str, Any]:
    """The command fails as the contract says, with --json and without; returns the error's document."""
    return check_failure(lambda *more: machine.overlay(*command, *more, check=False, given=given), code, exit_code)


def check_failure(run: Any, code: str, exit_code: Exit) -> dict[str, Any]:
    done = run("--json")
    assert done.returncode == exit_code, done
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert error["code"] == code, error
    assert error["message"].rstrip().endswith((".", "?", ")")) and "\n" not in error["message"], error
    assert error["hint"], error
    plain = run()
    assert plain.returncode == exit_code, plain
    assert plain.stdout == "" and "Traceback" not in plain.stderr, plain
    assert len(plain.stderr.splitlines()) == 2, plain.stderr
    return error


def answers(machine: Machine, target: str) -> bool:
    return machine.run("ping", "-n", "-c", "1", "-W", "1", target, check=False).returncode == 0


# invites -------------------------------------------------------------------------------------------------------------


def test_a_node_without_an_invite(newcomer: Machine) -> None:
    failure(newcomer, "up", code="not-joined", exit_code=Exit.USAGE)


def test_a_truncated_invite(network: Network, newcomer: Machine) -> None:
    failure(newcomer, "up", network.invite()[:-20], code="invite-truncated", exit_code=Exit.REFUSED)


def test_a_damaged_invite(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    changed = invite[:30] + ("A" if invite[30] != "A" else "B") + invite[31:]
    failure(newcomer, "up", changed, code="invite-malformed", exit_code=Exit.REFUSED)


def test_not_an_invite_at_all(newcomer: Machine) -> None:
    failure(newcomer, "up", "-", given="hello\n", code="invite-malformed", exit_code=Exit.REFUSED)
    failure(newcomer, "up", "-", given="", code="invite-empty", exit_code=Exit.USAGE)


def test_an_invite_that_the_server_never_made(network: Network, newcomer: Machine) -> None:
    true = Invite.parse(network.invite())
    forged = Invite(true.addresses, true.server_key, os.urandom(16), true.domain).encode()
    failure(newcomer, "up", "-", given=forged, code="invite-unknown", exit_code=Exit.REFUSED)


def test_an_invite_of_another_servers_key(network: Network, newcomer: Machine) -> None:
    true = Invite.parse(network.invite())
    forged = Invite(true.addresses, os.urandom(32), true.secret, true.domain).encode()
    done = newcomer.overlay("up", "-", given=forged, check=False)
    assert done.returncode in (Exit.REFUSED, Exit.UNREACHABLE) and "Traceback" not in done.stderr


def test_an_invite_that_has_expired(network: Network, newcomer: Machine) -> None:
    invite = network.invite("--expires", "1s")
    expires = time.time() + 1
    wait_for(lambda: time.time() > expires, "the invite's second is over")
    failure(newcomer, "up", "-", given=invite, code="invite-expired", exit_code=Exit.REFUSED)


def test_an_invite_that_is_used_up(network: Network, newcomer: Machine, tmp_path: Path) -> None:
    invite = network.invite()
    newcomer.overlay("up", "-", "--quiet", given=invite)
    newcomer.overlay("down", "--quiet")
    second = Machine(newcomer.namespace, tmp_path / "second")
    failure(second, "up", "-", given=invite, code="invite-used-up", exit_code=Exit.REFUSED)


def test_the_invite_shows_in_no_process_list(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    process = newcomer.popen(OVERLAY, "up", "-", "--quiet", stdin=-1)
    assert process.stdin is not None
    process.stdin.write(invite)
    process.stdin.close()
    seen = ""
    while process.poll() is None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen += entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
    assert process.returncode == 0 and invite not in seen


# machines that cannot ------------------------------------------------------------------------------------------------


def test_the_server_is_unreachable(network: Network, newcomer: Machine) -> None:
    true = Invite.parse(network.invite())
    nobody_there = Invite((f"{SERVER_ADDRESS}:444",), true.server_key, true.secret, true.domain).encode()
    failure(newcomer, "up", "-", given=nobody_there, code="server-unreachable", exit_code=Exit.UNREACHABLE)


def test_a_server_that_swallows_packets(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    newcomer.namespace.block("meta l4proto { tcp, udp } th dport 443")
    try:
        started = time.monotonic()
        done = newcomer.overlay("up", "-", given=invite, check=False)
        assert done.returncode == Exit.UNREACHABLE and time.monotonic() - started < 30, done
    finally:
        newcomer.namespace.unblock()


def as_nobody(machine: Machine, *command: str, **options: Any) -> Any:
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
    return machine.run(*user, OVERLAY, *command, check=False, **options)


def test_no_permission(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    folder = network.lab.directory / "of-nobody"
    folder.mkdir(exist_ok=True)
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o700)
    given = Machine(newcomer.namespace, folder)
    done = as_nobody(given, "up", "-", "--json", input=invite)
    assert done.returncode == Exit.REFUSED, done
    error = json.loads(done.stdout)["error"]
    assert "sudo" in error["hint"], error
    other = as_nobody(network["a"], "status", "--json")
    assert other.returncode == Exit.REFUSED, other
    assert json.loads(other.stdout)["error"]["code"] == "no-permission"
    down = as_nobody(network["a"], "down")
    assert down.returncode == Exit.REFUSED and network["a"].state_word() == "connected"


def test_no_tun(network: Network, newcomer: Machine) -> None:
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"', OVERLAY)
    invite = network.invite()
    check_failure(
        lambda *more: newcomer.run(*hidden, "up", "-", *more, check=False, input=invite), "tun-missing", Exit.FAILED
    )


def test_the_range_overlaps_a_route_of_the_machine(network: Network, newcomer: Machine) -> None:
    inside = network.server.status()["networks"][0].replace(".0.0/16", ".7.0/24")
    newcomer.namespace.route(inside, "198.51.100.90")
    try:
        error = failure(newcomer, "up", "-", given=network.invite(), code="range-overlaps", exit_code=Exit.FAILED)
        assert inside in error["message"], error
    finally:
        newcomer.run("ip", "route", "del", inside)


def test_a_name_that_is_taken(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    failure(newcomer, "up", "-", "--name", "b", given=invite, code="name-taken", exit_code=Exit.REFUSED)
    newcomer.overlay("up", "-", "--name", "spare", "--quiet", given=invite)
    assert newcomer.status()["name"] == "spare", "the invite was not used up by the failure"


def test_a_second_up(network: Network) -> None:
    failure(network["a"], "up", code="already-running", exit_code=Exit.FAILED)
    assert network["a"].state_word() == "connected"


# state ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node-key.json", "joined.json", "welcome.json", "map.json"])
def test_a_damaged_state_file(network: Network, newcomer: Machine, name: str) -> None:
    newcomer.overlay("up", "-", "--quiet", given=network.invite())
    newcomer.overlay("down", "--quiet")
    file = newcomer.state / name
    good = file.read_bytes()
    for content in (b"", good[:-10], os.urandom(64)):
        file.write_bytes(content)
        done = newcomer.overlay("up", "--json", check=False)
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["code"]) == (Exit.FAILED, "state-corrupt"), done
        assert name in error["message"] and error["hint"], error
        assert file.read_bytes() == content, "what is damaged is left for its owner to look at"
    file.write_bytes(good)
    newcomer.overlay("up", "--quiet")


def test_a_full_disk(network: Network, newcomer: Machine) -> None:
    """A full disk refuses the start and damages nothing; with room again all is as before."""
    newcomer.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", newcomer.state], check=True)
    try:
        newcomer.overlay("up", "-", "--quiet", given=network.invite())
        name = newcomer.status()["name"]
        newcomer.overlay("down", "--quiet")
        filler = newcomer.state / "filler"
        with pytest.raises(OSError, match="space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        kept = {path.name: path.read_bytes() for path in newcomer.state.glob("*.json")}
        done = newcomer.overlay("up", "--json", check=False)
        if done.returncode != 0:
            assert json.loads(done.stdout)["error"]["code"] == "state-write-failed", done
        else:
            newcomer.overlay("down", "--quiet")
        assert set(kept) <= {path.name for path in newcomer.state.glob("*.json")}, "a state file is lost"
        assert all(json.loads((newcomer.state / each).read_bytes()) for each in kept), "a state file is damaged"
        filler.unlink()
        newcomer.overlay("up", "--quiet")
        assert newcomer.status()["name"] == name
        newcomer.overlay("down", "--quiet")
    finally:
        subprocess.run(["umount", "--lazy", newcomer.state], check=True)


@pytest.mark.parametrize("jump", ["+400d", "-400d"])
def test_the_clock_jumps(network: Network, newcomer: Machine, jump: str) -> None:
    """A node whose clock is far off talks to peers, and does so again once its clock is right (or off again)."""
    newcomer.overlay("up", "-", "--name", "off", "--quiet", given=network.invite())
    address = network.address("b")
    wait_for(lambda: answers(newcomer, address), "b answers", 20)
    for clock in (jump, "+0"):
        newcomer.overlay("down", "--quiet")
        newcomer.run("faketime", "-f", clock, OVERLAY, "up", "--quiet")
        wait_for(lambda: answers(newcomer, address), f"b answers a node whose clock is {clock}", 10)
    newcomer.overlay("down", "--quiet")
    network.server.overlay("node", "rm", "off")


def test_a_killed_node_leaves_nothing_that_the_next_start_does_not_mend(network: Network) -> None:
    a = network["a"]
    a.overlay("down", "--quiet")
    before = a.resolv_conf()
    a.overlay("up", "--quiet")
    assert a.resolv_conf() != before
    a.kill_daemon()
    wait_for(lambda: "overlay" not in a.run("ip", "-o", "link").stdout, "the kernel has taken the interface away")
    assert a.overlay("status", check=False).returncode == Exit.NOT_RUNNING
    a.overlay("up", "--quiet")
    assert a.run("dig", "+short", "b.local.test").stdout == f"{network.address('b')}\n"
    a.overlay("down", "--quiet")
    assert a.resolv_conf() == before, "what was there before the crash is back"
    a.overlay("up", "--quiet")


def test_a_killed_server_comes_back_with_all_it_knew(network: Network) -> None:
    nodes = {node["name"]: node["addresses"] for node in network.server.overlay_json("node", "ls")["nodes"]}
    network.server.kill_daemon()
    network.start_server()
    again = {node["name"]: node["addresses"] for node in network.server.overlay_json("node", "ls")["nodes"]}
    assert again == nodes
    for name in ("a", "b"):
        network[name].wait_for_state("connected")


# hostile input -------------------------------------------------------------------------------------------------------


def test_garbage_at_every_port(network: Network) -> None:
    """Random, truncated and reflected bytes at all ports: everything works on, and nothing grows."""
    chance = random.Random(3)
    a, b, server = network["a"], network["b"], network.server
    wait_for(lambda: answers(a, network.address("b")), "b answers", 25)
    memory = {machine.name: machine.memory_mb() for machine in (a, server)}
    dropped = sum(server.status()["drops"].values())
    gateway = a.namespace.lab.namespaces["a-nat"]
    targets = [
        (network["stranger"].namespace, SERVER_ADDRESS, 443),
        (gateway, "192.168.1.10", a.status()["port"]),
        (b.namespace, network.address("a"), 53),
    ]
    for namespace, address, port in targets:
        with namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((address, port))
            sender.setblocking(False)
            for _ in range(3000):
                kind = chance.randrange(0, 9)
                datagram = bytes([kind, 0, 0, 0]) + chance.randbytes(chance.choice((0, 1, 12, 28, 60, 88, 144, 1400)))
                try:
                    sender.send(datagram)
                    sender.send(sender.recv(65536))  # whatever it answers goes back to it
                except (BlockingIOError, ConnectionRefusedError):
                    continue
    with network["stranger"].namespace.enter():
        for size in (0, 1, 2, 100, 70_000):
            with socket.create_connection((SERVER_ADDRESS, 443), 5) as connection:
                connection.settimeout(10)
                try:
                    connection.sendall(chance.randbytes(size))
                    connection.shutdown(socket.SHUT_WR)
                    assert connection.recv(65536) == b"", "a stranger hears nothing"
                except OSError as error:  # it may be reset before, while or after we say something
                    assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN), error
    assert sum(server.status()["drops"].values()) > dropped, "the drops are counted"
    assert answers(a, network.address("b")) and a.run("dig", "+short", "b.local.test").stdout
    for machine in (a, server):
        assert machine.memory_mb() < memory[machine.name] + 15, f"{machine.name} grew"


def test_idle_strangers_do_not_keep_a_node_out(network: Network, newcomer: Machine) -> None:
    """Connections that say nothing are closed, and meanwhile others get in."""
    with newcomer.namespace.enter():
        idle = [socket.create_connection((SERVER_ADDRESS, 443), 5) for _ in range(40)]
    try:
        other = Machine(network["c"].namespace, newcomer.state)
        other.overlay("up", "-", "--name", "late", "--quiet", given=network.invite())
        other.overlay("down", "--quiet")
        for connection in idle:
            connection.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(65536):  # it may say that it is busy; what counts is that it ends
                    continue
    finally:
        for connection in idle:
            connection.close()
        network.server.overlay("node", "rm", "late")


def test_an_interrupted_up_leaves_no_daemon(network: Network, newcomer: Machine) -> None:
    invite = network.invite()
    newcomer.namespace.block("meta l4proto { tcp, udp } th dport 443")  # so that it takes its time
    try:
        process = newcomer.popen(OVERLAY, "up", "-", stdin=-1, stderr=-1)
        assert process.stdin is not None
        process.stdin.write(invite)
        process.stdin.close()
        wait_for(newcomer.daemon_pid, "the daemon is starting")
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == Exit.INTERRUPTED
        assert process.stderr is not None and not re.search("Traceback", process.stderr.read())
        wait_for(newcomer.is_still, "no daemon is left", timeout=10)
    finally:
        newcomer.namespace.unblock()
