"""Several nodes behind one name or port, with real programs, and what users notice when one of them dies: nothing."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import SERVER_ADDRESS, Network, build_internet, start_dns, start_web

pytestmark = pytest.mark.lab

NODES = ("a", "b", "c")
NAME = "app.test"
PORT = 3000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, three nodes with a web server each that says whose it is, and a user without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", *NODES, "user")}
        public = {"server": SERVER_ADDRESS, "user": "198.51.100.90"}
        public |= {name: f"198.51.100.2{number}" for number, name in enumerate(NODES)}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", *NODES):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join(*NODES)
            for name in NODES:
                start_target(made, name)
            yield made
            made.stop_all()


_targets: "dict[str, subprocess.Popen[str]]" = {}


def start_target(network: Network, name: str) -> None:
    folder = network.lab.directory / f"www-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(name)
    _targets[name] = start_web(network[name].namespace, folder, PORT)


@contextmanager
def group(network: Network, *options: str, target: str = str(PORT)) -> Iterator[dict[str, str]]:
    """Of all nodes. → ids by node"""
    ids = {
        name: network[name].overlay_json("expose", target, "--group", "web", "--health", "tcp", *options)["id"]
        for name in NODES
    }
    yield ids
    for name, each in ids.items():
        network[name].overlay("expose", "rm", each)


def user(network: Network) -> str:
    """Asks once; whose answer it was, or how it failed."""
    ask = ("curl", "-sS", "--max-time", "20", "--resolve", f"{NAME}:80:{SERVER_ADDRESS}", f"http://{NAME}/")
    done = network.lab.namespaces["user"].run(ask, check=False)
    return str(done.stdout) if done.returncode == 0 else f"failed: {done.stderr}"


@contextmanager
def users(network: Network) -> Iterator[list[tuple[float, str]]]:
    """Two who ask again and again meanwhile. → when they asked, and what came of it"""
    answers: list[tuple[float, str]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            began = time.monotonic()
            answers.append((began, user(network)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def kill_node(network: Network, name: str) -> Callable[[], None]:
    network[name].kill_daemon()
    return lambda: network.join(name)


def freeze_node(network: Network, name: str) -> Callable[[], None]:
    """The kernel goes on taking what is sent to it."""
    pid = network[name].daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def unplug(network: Network, name: str) -> Callable[[], None]:
    machine = network[name].namespace
    machine.link_state("eth0", up=False)
    return lambda: machine.link_state("eth0", up=True)


def kill_target(network: Network, name: str) -> Callable[[], None]:
    _targets[name].kill()
    _targets[name].wait()
    return lambda: start_target(network, name)


def states(network: Network) -> dict[str, str]:
    members = network.server.status()["exposures"][0]["members"]
    return {each["node"]: each["state"] for each in members}


@pytest.mark.parametrize(
    ("tunnel", "die"), [("single", kill_node), ("tls", kill_target), ("single", unplug), ("tcp", freeze_node)]
)
def test_a_member_that_dies_is_out_and_no_request_fails(
    network: Network, tunnel: str, die: Callable[[Network, str], Callable[[], None]]
) -> None:
    with group(network, "--host", NAME, "--tunnel", tunnel):
        wait_for(lambda: states(network) == dict.fromkeys(NODES, "up"), "all are well")
        assert {user(network) for _ in range(6)} == set(NODES)
        with users(network) as answers:
            wait_for(lambda: len(answers) > 10, "users ask")
            began = time.monotonic()
            again = die(network, "b")
            wait_for(lambda: states(network)["b"] != "up", "it is out")
            out = time.monotonic()
            print(f"out after {out - began:.1f} s")  # noqa: T201
            more = len(answers) + 10
            wait_for(lambda: len(answers) > more, "users go on")
        assert Counter(answer for _, answer in answers if answer not in NODES) == {}
        assert not [at for at, answer in answers if answer == "b" and at > out]
        again()
        wait_for(lambda: states(network) == dict.fromkeys(NODES, "up"), "it is back", timeout=60)
        wait_for(lambda: user(network) == "b", "it serves again")


def test_a_port_and_always_the_same_member_for_a_user(network: Network) -> None:
    with group(network, "--public", "9000", "--balance", "sticky", target=f"tcp://127.0.0.1:{PORT}") as ids:
        wait_for(lambda: len(states(network)) == 3, "all are in")
        web = ("curl", "-sS", "--max-time", "20", f"http://{SERVER_ADDRESS}:9000/")
        served = {network.lab.namespaces["user"].run(web).stdout for _ in range(6)}
        assert len(served) == 1 and served < set(NODES)
        wait_for(lambda: len(network["a"].overlay_json("expose", "ls")["exposures"][0]["members"]) == 3, "a knows all")
        shown = network["a"].overlay("expose", "ls").stdout
        assert "● a" in shown and "● c" in shown
        refused = network["a"].overlay("expose", "tcp://127.0.0.1:22", "--public", "9000", check=False)
        assert refused.returncode == 1 and f"exposure {ids['a']}" in refused.stderr
        other = network["b"].overlay(
            *("expose", f"tcp://127.0.0.1:{PORT}", "--public", "9000", "--group", "web", "--balance", "least"),
            check=False,
        )
        assert "opened by node 'a' with other options" in other.stderr


def test_datagrams_go_to_a_member_that_is_there(network: Network) -> None:
    ids = {}
    servers = []
    for number, name in enumerate(("a", "b"), 1):
        servers.append(start_dns(network[name].namespace, "127.0.0.1", 5353, "who.test", f"192.0.2.{number}"))
        options = ("--public", "9053", "--group", "dns", "--balance", "round-robin")
        ids[name] = network[name].overlay_json("expose", "udp://127.0.0.1:5353", *options)["id"]
    dig = ("dig", "+short", "+tries=1", "+time=5", f"@{SERVER_ADDRESS}", "-p", "9053", "who.test")

    def answer() -> str:
        return str(network.lab.namespaces["user"].run(dig, check=False).stdout.strip())

    wait_for(lambda: {answer(), answer()} == {"192.0.2.1", "192.0.2.2"}, "each serves in turn")
    network["a"].kill_daemon()
    wait_for(lambda: states(network)["a"] != "up", "it is out")
    assert [answer() for _ in range(3)] == ["192.0.2.2"] * 3
    network.join("a")
    for name, each in ids.items():
        network[name].overlay("expose", "rm", each)
    for server in servers:
        server.terminate()
        server.wait()
