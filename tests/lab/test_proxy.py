"""The nodes' ssh over the server's one port, by HTTP CONNECT: real openssh and curl, with a token and without."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet, start_web

pytestmark = pytest.mark.lab

TOKEN_FILE = "token"
WEB = f"http://{SERVER_ADDRESS}:80"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, two nodes of which b has an sshd and a web server, and a machine that is in no network."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "b", "outside")}
        public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "b": "198.51.100.22", "outside": "198.51.100.90"}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for space in spaces.values():
            made.machine(space)
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join("a", "b")
            start_sshd(lab.directory, made["b"])
            folder = lab.directory / "www"
            folder.mkdir()
            (folder / "index.html").write_text("b's home")
            start_web(spaces["b"], folder, 8080)
            yield made
            made.stop_all()


def start_sshd(directory: Path, machine: Machine) -> None:
    folder = directory / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "authorized").chmod(0o600)
    (folder / "config").write_text(
        f"Port 22\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nPidFile none\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    machine.popen("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config"), stderr=subprocess.DEVNULL)
    wait_for(lambda: ":22 " in machine.run("ss", "-ltn").stdout, "sshd listens")


def ssh(
    network: Network, machine: Machine, proxy: str, command: str = "echo hello"
) -> "subprocess.CompletedProcess[str]":
    folder = network.lab.directory / "ssh"
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
    return machine.run(
        *("ssh", "-F", "none", "-i", str(folder / "user"), "-o", f"ProxyCommand={proxy}"),
        *(word for option in options for word in ("-o", option)),
        *("root@b.local.test", command),
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def token(network: Network) -> str:
    """For b alone."""
    made = network.server.overlay("token", "add", "--for", "b").stdout.strip()
    (network.lab.directory / TOKEN_FILE).write_text(made + "\n")
    return made


def test_ssh_over_the_one_port_and_through_the_overlay(network: Network, token: str) -> None:
    file = network.lab.directory / TOKEN_FILE
    outside = network["outside"]
    through = ssh(network, outside, f"{OVERLAY} proxy %h %p --token-file {file}")
    assert through.stdout == "hello\n", through.stderr
    large = ssh(
        network, outside, f"{OVERLAY} proxy %h %p --token-file {file}", "head -c 20000000 /dev/zero | sha256sum"
    )
    assert (
        large.stdout
        == subprocess.run(
            "head -c 20000000 /dev/zero | sha256sum", shell=True, capture_output=True, text=True, check=True
        ).stdout
    )
    straight = ssh(network, network["a"], f"{OVERLAY} proxy %h %p")
    assert straight.stdout == "hello\n", straight.stderr
    without = outside.overlay("proxy", "b.local.test", "22", check=False)
    assert without.returncode == 3 and "overlay token add" in without.stderr


def curl(network: Network, *arguments: str) -> str:
    done = network["outside"].run(
        "curl", "-sS", "--max-time", "20", "--proxytunnel", "-w", "\n%{http_connect}", *arguments, check=False
    )
    return done.stdout.strip()


@pytest.mark.parametrize("proxy", [WEB, f"https://{SERVER_ADDRESS}:443"])
def test_any_client_of_http_connect(network: Network, token: str, proxy: str) -> None:
    by = ("--proxy", proxy, "--proxy-insecure")
    ask = (*by, "http://b.local.test:8080/")
    assert curl(network, "--proxy-user", f"anybody:{token}", *ask) == "b's home\n200"
    assert curl(network, "--proxy-header", f"Proxy-Authorization: Bearer {token}", *ask) == "b's home\n200"
    user = ("--proxy-user", f"anybody:{token}", *by)
    assert curl(network, *user, "http://b:8080/") == "b's home\n200"
    for place in ("a.local.test:22", "server.local.test:443", "127.0.0.1:80", "198.51.100.1:443", "nobody:22"):
        assert curl(network, *user, f"http://{place}/") == "403", place
    assert curl(network, *user, "http://b.local.test:9/") == "502"
    stranger = curl(network, *ask)
    assert stranger == curl(network, "--proxy-user", "anybody:wrong", *ask) == "404"


def test_where_users_of_exposures_are_waited_for_nobody_gets_past_the_gate(network: Network, token: str) -> None:
    shown = network["b"].overlay_json("expose", "http://127.0.0.1:8080", "--public", "9000", "--bearer", "new")
    address = network.address("b")
    ends = [line.split()[3] for line in network["b"].run("ss", "-ltnH").stdout.splitlines()]
    (port,) = {end.rpartition(":")[2] for end in ends if end.startswith(f"{address}:")} - {"53"}
    user = ("--proxy", WEB, "--proxy-user", f"anybody:{token}")
    assert curl(network, *user, f"http://b:{port}/") == "403"
    network["b"].overlay("expose", "rm", shown["id"])


def test_a_token_that_is_taken_back(network: Network, token: str) -> None:
    listed = network.server.overlay_json("token", "ls")["tokens"]
    assert [each["nodes"] for each in listed] == [["b"]] and token not in str(listed)
    assert token not in (network.server.state / "registry.sqlite").read_bytes().decode("latin-1")
    outside = network["outside"]
    short = network.server.overlay("token", "add", "--expires", "1s").stdout.strip()

    def refused() -> "subprocess.CompletedProcess[str]":
        return outside.overlay("proxy", "b", "22", "--token-file", "-", check=False, given=short)

    wait_for(lambda: "has expired" in refused().stderr, "it has expired")
    assert refused().returncode == 4
    environment = dict(os.environ, OVERLAY_TOKEN=token, OVERLAY_STATE=str(outside.state))
    running = outside.namespace.popen(
        [OVERLAY, "proxy", "b", "22"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stdout is not None and running.stdout.readline().startswith("SSH-2.0-")
    network.server.overlay("token", "rm", listed[0]["id"])
    assert running.wait(10) == 5, "what goes through ends with its token"
    running.communicate()
    gone = outside.namespace.run([OVERLAY, "proxy", "b", "22"], check=False, env=environment, stdin=subprocess.DEVNULL)
    assert gone.returncode == 4 and "does not know the token" in gone.stderr
