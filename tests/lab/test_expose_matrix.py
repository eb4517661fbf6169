"""Every protocol of users over every kind of tunnel: 100 MB both ways, half-closes, crowds, restarts."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import wait_for
from tests.lab.published import ROOT, exposed, program, published_network, random_file
from tests.lab.topology import SERVER_ADDRESS, START_TIMEOUT, Network

pytestmark = pytest.mark.lab

TUNNELS = ("single", "udp", "tcp", "tls", "ws", "wss")
SHOUT, ECHO = 4000, 4001  # ports on the node
NAME = "app.test"
LARGE, MEDIUM = 100_000_000, 5_000_000
SLOW = ("udp",)  # QUIC in Python takes its time
USERS = 1000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with published_network() as made:
        folder = made.lab.directory
        for size in (LARGE, MEDIUM):
            random_file(folder / f"said-{size}", size)
            random_file(folder / f"answered-{size}", size)
            service = str(SHOUT + (size == MEDIUM) * 10)
            made["a"].namespace.popen(program("shout", service, str(folder / f"answered-{size}")), cwd=ROOT)
        made["a"].namespace.popen(program("echo", str(ECHO)), cwd=ROOT)
        wait_for(
            lambda: _listens(made, ECHO) and _listens(made, SHOUT) and _listens(made, SHOUT + 10), "services listen"
        )
        yield made


def _listens(network: Network, port: int) -> bool:
    return f":{port} " in network["a"].run("ss", "-Hltn").stdout


def user(network: Network, *command: str) -> str:
    done = network.lab.namespaces["user"].run(command, cwd=ROOT, timeout=90)
    return str(done.stdout).strip()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_100_mb_both_ways_around_a_half_close(network: Network, tunnel: str) -> None:
    folder, size = network.lab.directory, MEDIUM if tunnel in SLOW else LARGE
    port = SHOUT + (size == MEDIUM) * 10
    with exposed(network["a"], f"tcp://127.0.0.1:{port}", "--public", "9000", "--tunnel", tunnel) as made:
        assert made["tunnel"] == tunnel
        said = user(network, *program("exchange", "9000", str(folder / f"said-{size}"), str(folder / "received")))
        assert said == digest(folder / f"said-{size}")
        assert digest(folder / "received") == digest(folder / f"answered-{size}")


@pytest.mark.parametrize("tunnel", ["single", "tcp", "tls", "ws", "wss"])
def test_a_thousand_users_at_once(network: Network, tunnel: str) -> None:
    with exposed(network["a"], f"tcp://127.0.0.1:{ECHO}", "--public", "9000", "--tunnel", tunnel):
        assert user(network, *program("crowd", "9000", str(USERS))) == str(USERS)


@pytest.mark.parametrize(
    ("tunnel", "ends"),
    [
        ("single", ("server killed", "node killed", "both killed")),
        ("tls", ("server stopped", "node stopped", "both killed")),
        ("udp", ("server killed", "node killed")),
    ],
)
def test_users_are_back_after_restarts_of_either_end(network: Network, tunnel: str, ends: tuple[str, ...]) -> None:
    """And who was there meanwhile is told so."""
    a = network["a"]

    def works() -> bool:
        asked = ["busybox", "nc", "-w", "2", SERVER_ADDRESS, "9000"]
        done = network.lab.namespaces["user"].run(asked, input="hello", check=False)
        return bool(done.stdout == "hello")

    with exposed(a, f"tcp://127.0.0.1:{ECHO}", "--public", "9000", "--tunnel", tunnel) as made:
        wait_for(works, "it works")
        for end in ends:
            staying = network.lab.namespaces["user"].popen(program("stay", "9000"), cwd=ROOT, stdout=subprocess.PIPE)
            assert staying.stdout is not None and staying.stdout.readline() == "here\n"
            who, how = end.split()
            for machine in (network.server, a):
                if who in ("both", "node" if machine is a else "server"):
                    machine.kill_daemon() if how == "killed" else machine.overlay("down", "--quiet")
            if (tunnel, who) != ("single", "node"):  # where nothing is left that could say so: up to a minute
                assert staying.wait(15) == 0, f"{end}: a user hangs"
            if who != "node":
                network.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            if who != "server":
                a.overlay("up", "--quiet")
            assert staying.wait(15) == 0, f"{end}: a user hangs"
            staying.stdout.close()
            wait_for(works, f"{end}: it works again", START_TIMEOUT)
        assert [each["id"] for each in a.overlay_json("expose", "ls")["exposures"]] == [made["id"]]
