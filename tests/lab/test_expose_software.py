"""What people publish, with the programs they use: openssh, PostgreSQL, Redis, WebSockets, a browser, wrk."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netns import wait_for
from tests.lab.published import ROOT, exposed, program, published_network
from tests.lab.topology import SERVER_ADDRESS, START_TIMEOUT, Network

pytestmark = pytest.mark.lab

NAME = "app.test"
NOBODY = 65534  # PostgreSQL does not run as root
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
SSH, POSTGRES, REDIS, WEB = 2222, 5432, 6379, 8000  # ports on the node


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with published_network() as made:
        yield made


def user(network: Network, *command: str, check: bool = True) -> str:
    done = network.lab.namespaces["user"].run(command, cwd=ROOT, timeout=60, check=check)
    return str(done.stdout)


def listens(network: Network, port: int) -> bool:
    return f":{port} " in network["a"].run("ss", "-Hltn").stdout


@pytest.mark.parametrize("tunnel", ["single", "wss"])
def test_openssh(network: Network, tunnel: str) -> None:
    folder = network.lab.directory / f"ssh-{tunnel}"
    folder.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd goes before it has a user
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nPidFile none\n"
        f"ListenAddress 127.0.0.1:{SSH}\nPermitRootLogin yes\nUsePAM no\nSubsystem sftp internal-sftp\n"
    )
    sshd = network["a"].namespace.popen(["/usr/sbin/sshd", "-D", "-q", "-f", str(folder / "sshd_config")])
    try:
        wait_for(lambda: listens(network, SSH), "sshd listens")
        (folder / "known").write_text(f"[{SERVER_ADDRESS}]:9022 {(folder / 'host.pub').read_text()}")
        options = ("-i", str(folder / "user"), "-o", f"UserKnownHostsFile={folder}/known", "-o", "BatchMode=yes")
        (folder / "sent").write_bytes(os.urandom(5_000_000))
        with exposed(network["a"], f"tcp://localhost:{SSH}", "--public", "9022", "--tunnel", tunnel):
            asked = ("ssh", *options, "-p", "9022", f"root@{SERVER_ADDRESS}", "echo $SSH_CONNECTION; exit 7")
            done = network.lab.namespaces["user"].run(asked, check=False, timeout=30)
            assert done.returncode == 7 and done.stdout.startswith("127.0.0.1 ")
            user(network, "scp", "-q", *options, "-P", "9022", f"{folder}/sent", f"root@{SERVER_ADDRESS}:{folder}/copy")
        assert (folder / "copy").read_bytes() == (folder / "sent").read_bytes()
    finally:
        sshd.terminate()
        sshd.wait()


def test_postgresql(network: Network) -> None:
    (bin_folder,) = list(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    folder = network.lab.directory / "postgres"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    a = network["a"]
    made = (f"{bin_folder}/initdb", "-D", f"{folder}/data", "-U", "alice", "--auth=trust", "--no-sync", "--locale=C")
    a.run(*AS_NOBODY, *made, cwd=folder)
    settings = ("-c", "fsync=off", "-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1")
    command = [*AS_NOBODY, f"{bin_folder}/postgres", "-D", f"{folder}/data", "-p", str(POSTGRES), *settings]
    with (folder / "log").open("w") as log:
        server = a.namespace.popen(command, cwd=folder, stderr=log)
    psql = (str(bin_folder / "psql"), "-h", SERVER_ADDRESS, "-p", "9432", "-U", "alice", "-d", "postgres", "-XAtqc")
    try:
        with exposed(a, f"tcp://localhost:{POSTGRES}", "--public", "9432", "--tunnel", "tls") as made_of_it:
            assert made_of_it["service"] == "postgresql"
            wait_for(lambda: user(network, *psql, "SELECT 1", check=False) == "1\n", "it answers", START_TIMEOUT)
            query = "SELECT sum(length(t)), count(*) FROM (SELECT repeat('x', 100) t FROM generate_series(1, 50000)) s"
            assert user(network, *psql, query) == "5000000|50000\n"
            rows = user(network, *psql, "COPY (SELECT g, repeat('y', 50) FROM generate_series(1, 20000) g) TO STDOUT")
            assert len(rows.splitlines()) == 20000
    finally:
        server.terminate()
        server.wait()


def test_redis(network: Network) -> None:
    command = ["redis-server", "--port", str(REDIS), "--save", "", "--dir", str(network.lab.directory)]
    server = network["a"].namespace.popen(command, stdout=subprocess.DEVNULL)
    try:
        with exposed(network["a"], f"tcp://localhost:{REDIS}", "--public", "9379"):
            ask = ("redis-cli", "-h", SERVER_ADDRESS, "-p", "9379")
            wait_for(lambda: user(network, *ask, "ping", check=False) == "PONG\n", "it answers")
            user(network, *ask, "set", "key", "x" * 100_000)
            assert user(network, *ask, "strlen", "key") == "100000\n"
            loaded = user(
                network, "redis-benchmark", "-h", SERVER_ADDRESS, "-p", "9379", "-q", "-n", "2000", "-t", "set"
            )
            assert "requests per second" in loaded
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def chat(network: Network) -> Iterator[None]:
    """A page with a WebSocket, and the server for both, on the node."""
    server = network["a"].namespace.popen(program("chat", str(WEB)), cwd=ROOT)
    wait_for(lambda: listens(network, WEB), "it listens")
    yield
    server.terminate()
    server.wait()


@pytest.mark.parametrize("tunnel", ["single", "udp", "tcp", "tls", "ws", "wss"])
def test_websockets(network: Network, chat: None, tunnel: str) -> None:
    with exposed(network["a"], str(WEB), "--host", NAME, "--tunnel", tunnel):
        for scheme in ("ws", "wss"):
            said = user(network, *program("talk", scheme, NAME))
            assert json.loads(said) == {"echo": True, "protocol": "chat", "pong": True, "closed": 1000}


def test_a_browser_with_a_page_that_has_a_websocket(network: Network, chat: None) -> None:
    """The WebSocket takes the page's own connection, by HTTP/2."""
    profile, log = network.lab.directory / "chromium", network.lab.directory / "chromium.json"
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    with exposed(network["a"], str(WEB), "--host", NAME, "--tunnel", "tls"):
        dom = user(
            network,
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet),
            *(f"--user-data-dir={profile}", f"--log-net-log={log}", "--ignore-certificate-errors"),
            *(f"--host-resolver-rules=MAP {NAME} {SERVER_ADDRESS}", "--dump-dom", f"https://{NAME}/page"),
        )
    assert '<p id="said">echo: hello from https:</p>' in dom, dom
    logged = log.read_text()
    assert ":protocol: websocket" in logged and "Upgrade: websocket" not in logged


def test_wrk(network: Network, chat: None) -> None:
    with exposed(network["a"], str(WEB), "--public", "9080", "--tunnel", "tcp"):
        told = user(network, "wrk", "-t", "1", "-c", "20", "-d", "1", f"http://{SERVER_ADDRESS}:9080/")
    assert "Requests/sec" in told and "Socket errors" not in told and "Non-2xx" not in told, told
