"""Private exposures between nodes: who gets in, by which path, and with real programs."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet, start_dns, start_web

pytestmark = pytest.mark.lab

NAME = "www"
PORT = 3000
SIZE = 20_000_000
NOBODY = 65534
USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with a web server, one of the team, one that is not, and two machines with ordinary users."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", *"abcde")}
        public = {"server": SERVER_ADDRESS} | {name: f"198.51.100.2{number}" for number, name in enumerate("abcde")}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for space in spaces.values():
            made.machine(space)
        with tracked(made):
            made.start_server()
            made.join("a", "c")
            made["b"].overlay("up", "-", "--name", "b", "--quiet", given=made.invite("--tag", "team"))
            folder = lab.directory / "www"
            folder.mkdir()
            (folder / "index.html").write_text("a's own")
            (folder / "large").write_bytes(os.urandom(SIZE))
            for name in "ad":
                start_web(spaces[name], folder, PORT)
            yield made
            made.stop_all()


@contextmanager
def connected(machine: Machine, *arguments: str, user: Sequence[str] = (), **options: str) -> Iterator[str]:
    """While `overlay connect` runs. → where it listens"""
    environment = dict(os.environ) | machine._environment() | options
    running = machine.namespace.popen(
        [*user, OVERLAY, "connect", *arguments, "--quiet"], stdout=subprocess.PIPE, env=environment
    )
    assert running.stdout is not None
    yield running.stdout.readline().strip()
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130
    running.stdout.close()


def is_online(network: Network, name: str) -> bool:
    return any(each["name"] == name and each["online"] for each in network.server.overlay_json("node", "ls")["nodes"])


def fetch(machine: Machine, where: str) -> str:
    return machine.run("curl", "-sS", "--max-time", "10", f"http://{where}/", check=False).stdout


def test_peers_with_the_tag_or_the_token_and_nobody_else(network: Network) -> None:
    a, b, c = (network[name] for name in "abc")
    shown = a.overlay_json("expose", f"tcp://127.0.0.1:{PORT}", "--private", NAME, "--for-tag", "team", "--token")
    token = shown["secrets"]["token"]
    assert shown["public"] == f"private: {NAME}" and token not in str(a.overlay_json("expose", "ls"))
    assert token not in (network.server.state / "registry.sqlite").read_bytes().decode("latin-1")
    with connected(b, NAME, "--listen", "4000") as where:
        assert where == "127.0.0.1:4000" and fetch(b, where) == "a's own"
        wait_for(lambda: network.both_go_by("a", "b", "lan", "udp"), "they find the direct path")
        assert fetch(b, where) == "a's own"
        # The exposing node forgets whom it has let in, and has not to be waited for.
        a.overlay("down", "--quiet")
        a.overlay("up", "--quiet")
        wait_for(lambda: fetch(b, where) == "a's own", "it is reached again")
    address = network.address("a")
    port = [line.split()[3].rpartition(":")[2] for line in a.run("ss", "-ltnH").stdout.splitlines() if address in line]
    assert fetch(c, f"{address}:{port[0]}") == "", "nobody comes to the listener itself whom the server has not let in"
    assert c.overlay("connect", NAME, check=False).returncode == 4
    wrong = c.overlay("connect", NAME, "--token-file", "-", check=False, given="wrong\n")
    unknown = c.overlay("connect", "nothing", check=False)
    assert wrong.stderr.replace(NAME, "") == unknown.stderr.replace("nothing", "")
    with connected(c, NAME, OVERLAY_TOKEN=token) as where:
        assert fetch(c, where) == "a's own"
        a.overlay("expose", "rm", shown["id"])
        assert fetch(c, where) == ""
    assert b.overlay("connect", NAME, check=False).returncode == 4


def test_in_the_background_it_stays_through_a_restart_until_it_is_ended(network: Network) -> None:
    a, b = network["a"], network["b"]
    shown = a.overlay_json("expose", f"tcp://127.0.0.1:{PORT}", "--private", NAME, "--for-tag", "team")
    assert "no connections" in b.overlay("connect", "ls").stdout
    made = b.overlay("connect", NAME, "--listen", "4001", "--background").stdout
    assert made == f"c1  127.0.0.1:4001 → {NAME} of a\n" and fetch(b, "127.0.0.1:4001") == "a's own"
    again = b.overlay("connect", NAME, "--listen", "4001", "--background", check=False)
    assert again.returncode == 1 and "Cannot listen at 127.0.0.1:4001: Address already in use." in again.stderr
    b.kill_daemon()
    b.overlay("up", "--quiet")
    wait_for(lambda: fetch(b, "127.0.0.1:4001") == "a's own", "it is connected again")
    (listed,) = b.overlay_json("connect", "ls")["connections"]
    assert (listed["id"], listed["listen"], listed["node"], listed["problem"]) == ("c1", "127.0.0.1:4001", "a", "")
    a.overlay("expose", "rm", shown["id"])
    assert fetch(b, "127.0.0.1:4001") == "" and "is not reached" in b.overlay("connect", "ls").stdout
    assert b.overlay_json("connect", "rm", NAME) == {"removed": "c1"}
    assert b.overlay("connect", "rm", "c1", check=False).returncode == 1


def test_ordinary_users_without_the_network_being_up(network: Network) -> None:
    """d exposes, e connects; and each with a machine where the network is up. The way leads through the server."""
    a, b, d, e = (network[name] for name in "abde")
    for machine in (d, e):
        machine.state.mkdir(mode=0o700)
        os.chown(machine.state, NOBODY, NOBODY)
    bare = e.run(*USER, OVERLAY, "connect", "attic", check=False)
    assert bare.returncode == 3 and "overlay connect NAME --invite" in bare.stderr
    expose = ("expose", f"tcp://127.0.0.1:{PORT}", "--private", "attic", "--for-tag", "team", "--token", "--json")
    shown = json.loads(d.run(*USER, OVERLAY, *expose, "--invite", network.invite()).stdout)
    options = {"user": USER, "OVERLAY_TOKEN": shown["secrets"]["token"], "OVERLAY_INVITE": network.invite()}
    original = (network.lab.directory / "www" / "large").read_bytes()
    copy = network.lab.directory / "copy"
    with connected(e, "attic", "--listen", "4000", **options) as where:
        assert fetch(e, where) == "a's own"
        e.run("curl", "-sS", "--max-time", "30", "-o", str(copy), f"http://{where}/large")
        assert copy.read_bytes() == original
        with connected(b, "attic") as of_b:
            assert fetch(b, of_b) == "a's own", "b has the tag, and an overlay address"
        network.server.kill_daemon()
        network.start_server()
        wait_for(lambda: fetch(e, where) == "a's own", "it is reached after a crash of the server")
        open_one = e.popen("busybox", "nc", *where.split(":"), stdin=subprocess.PIPE)
        wait_for(lambda: network.server.status()["exposures"][0]["connections"] == 1, "one is open")
        d.run(*USER, OVERLAY, "expose", "rm", shown["id"])
        assert open_one.wait(10) is not None, "what was open ends with it"
        open_one.communicate()
        assert fetch(e, where) == ""
    wait_for(e.is_still, "what was started for it has ended")
    wait_for(lambda: is_online(network, "a"), "a has noticed that the server started anew")
    of_a = a.overlay_json("expose", f"tcp://127.0.0.1:{PORT}", "--private", "up", "--token")
    with connected(e, "up", user=USER, OVERLAY_TOKEN=of_a["secrets"]["token"]) as where:
        assert fetch(e, where) == "a's own", "without an invite: it has joined"
    a.overlay("expose", "rm", of_a["id"])
    d.run(*USER, OVERLAY, "down")


def test_datagrams(network: Network) -> None:
    a, b = network["a"], network["b"]
    dns = start_dns(a.namespace, "127.0.0.1", 5353, "who.test", "192.0.2.9")
    shown = a.overlay_json("expose", "udp://127.0.0.1:5353", "--private", "dns", "--for-tag", "team")
    with connected(b, "dns") as where:
        port = where.rpartition(":")[2]
        dig = ("dig", "+short", "+tries=3", "+time=2", "@127.0.0.1", "-p", port, "who.test")
        assert b.run(*dig).stdout.strip() == "192.0.2.9"
    a.overlay("expose", "rm", shown["id"])
    dns.terminate()
    dns.wait()


def test_what_does_not_go_together_is_said(network: Network) -> None:
    a = network["a"]
    for options, words in (
        ((), "say who may reach it"),
        (("--token", "--public", "9000"), "no public place"),
        (("--token", "--tunnel", "tls"), "the best way there is"),
    ):
        failed = a.overlay("expose", "22", "--private", "ssh", *options, check=False)
        assert failed.returncode and words in failed.stderr, failed.stderr
