"""What a node publishes, by HTTP and by ports, with real programs: nginx behind it and curl before it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet, start_dns
from tests.programs import nginx_command

pytestmark = pytest.mark.lab

NAME = "app.test"
PORT = 3000  # of nginx on the node
DNS_PORT = 5300  # of dnsmasq there
SIZE = 100_000_000
SLOW = ("udp",)  # QUIC in Python takes its time
NOBODY = 65534


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with nginx on it, and a user without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "b", "user")}
        public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "b": "198.51.100.22", "user": "198.51.100.90"}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", "a", "b"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join("a")
            start_nginx(lab, spaces["a"])
            start_dns(spaces["a"], "127.0.0.1", DNS_PORT, "lan.test", "192.0.2.9")
            wait_for(lambda: made["a"].run("curl", "-s", f"127.0.0.1:{PORT}/", check=False).stdout, "nginx answers")
            yield made
            made.stop_all()


def start_nginx(lab: Lab, space: Namespace) -> None:
    """Random bytes at /large and /medium; /up takes a body and forgets it, /who tells what it was told."""
    folder = lab.directory / "nginx"
    (folder / "www").mkdir(parents=True)
    (folder / "www" / "large").write_bytes(os.urandom(SIZE))
    (folder / "www" / "medium").write_bytes(os.urandom(SIZE // 16))
    (folder / "www" / "sink").write_text("taken\n")
    command = nginx_command(
        folder,
        f"""
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{PORT};
        root {folder}/www;
        location = / {{ return 200 "home\\n"; }}
        location = /who {{
            return 200 "$http_x_forwarded_for $http_x_forwarded_proto $http_host $server_protocol\\n";
        }}
        location = /up {{
            client_body_in_file_only on;
            proxy_pass http://127.0.0.1:{PORT}/sink;
            proxy_method GET;
        }}
    }}
""",
    )
    space.popen(command)


@pytest.fixture
def published(network: Network) -> Iterator[str]:
    """nginx of a under `NAME`. → the exposure's id"""
    exposure = network["a"].overlay_json("expose", str(PORT), "--host", NAME)
    assert exposure["url"] == f"https://{NAME}/" and exposure["target"] == f"http://127.0.0.1:{PORT}"
    yield exposure["id"]
    network["a"].overlay("expose", "rm", exposure["id"])


def curl(network: Network, *arguments: str) -> str:
    resolve = [each for port in (80, 443) for each in ("--resolve", f"{NAME}:{port}:{SERVER_ADDRESS}")]
    done = network.lab.namespaces["user"].run(["curl", "-ksS", "--max-time", "30", *resolve, *arguments])
    return str(done.stdout)


def status_of(network: Network, *arguments: str) -> str:
    return curl(network, "-o", "/dev/null", "-w", "%{http_code}", *arguments)


def test_a_site_by_name_over_http_and_https(network: Network, published: str) -> None:
    assert curl(network, f"http://{NAME}/who", "-H", "X-Forwarded-For: 6.6.6.6") == (
        f"198.51.100.90 http {NAME} HTTP/1.1\n"
    )
    assert curl(network, f"https://{NAME}/who", "--http1.0") == f"198.51.100.90 https {NAME} HTTP/1.1\n"
    twice = curl(network, "-v", "--stderr", "-", f"http://{NAME}/", f"http://{NAME}/")
    assert twice.count("home\n") == 2 and "Re-using existing connection" in twice
    head = curl(network, "--head", f"http://{NAME}/large")
    assert "200 OK" in head and f"Content-Length: {SIZE}" in head
    assert status_of(network, f"http://{NAME}/missing") == "404"
    assert status_of(network, f"http://{SERVER_ADDRESS}/") == status_of(
        network, f"http://{SERVER_ADDRESS}/", "-H", "Host: other.test"
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_100_mb_both_ways(network: Network, published: str, scheme: str) -> None:
    large = network.lab.directory / "nginx" / "www" / "large"
    copy = network.lab.directory / "copy"
    curl(network, "-o", str(copy), f"{scheme}://{NAME}/large")
    assert digest(copy) == digest(large)
    for chunked in ([], ["-H", "Transfer-Encoding: chunked"]):
        assert curl(network, "-T", str(large), "-X", "POST", *chunked, f"{scheme}://{NAME}/up") == "taken\n"
        assert taken(network) == digest(large)


def taken(network: Network) -> str:
    """→ the digest of the body that nginx took last"""
    (body,) = [each for each in (network.lab.directory / "nginx" / "client_body").rglob("*") if each.is_file()]
    found = digest(body)
    body.unlink()
    return found


@pytest.mark.parametrize("tunnel", ["udp", "tcp", "tls", "ws", "wss"])
def test_each_dynamic_tunnel_carries_a_site_and_ports(network: Network, tunnel: str) -> None:
    a = network["a"]
    site = a.overlay_json("expose", str(PORT), "--host", NAME, "--tunnel", tunnel)
    assert site["tunnel"] == tunnel
    size = "medium" if tunnel in SLOW else "large"
    copy, original = network.lab.directory / "copy", network.lab.directory / "nginx" / "www" / size
    curl(network, "-o", str(copy), f"http://{NAME}/{size}")
    assert digest(copy) == digest(original)
    assert curl(network, "-T", str(original), "-X", "POST", f"https://{NAME}/up") == "taken\n"
    assert taken(network) == digest(original)
    port = a.overlay_json("expose", f"tcp://127.0.0.1:{PORT}", "--public", "9000", "--tunnel", tunnel)
    assert curl(network, f"http://{SERVER_ADDRESS}:9000/") == "home\n"
    names = a.overlay_json("expose", f"udp://127.0.0.1:{DNS_PORT}", "--public", "5353", "--tunnel", tunnel)
    asked = network.lab.namespaces["user"].run(["dig", "+short", f"@{SERVER_ADDRESS}", "-p", "5353", "lan.test"])
    assert asked.stdout == "192.0.2.9\n"
    for each in (site, port, names):
        a.overlay("expose", "rm", each["id"])


def digest(path: os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_without_a_name_it_gets_a_port_and_the_log_shows_who_asks(network: Network) -> None:
    a: Machine = network["a"]
    log = network.lab.directory / "log"
    with log.open("w") as file:
        staying = a.popen(OVERLAY, "expose", str(PORT), "--foreground", stdout=file, stderr=subprocess.STDOUT)
    wait_for(lambda: "→" in log.read_text(), "it is published")
    found = re.search(rf"http://{SERVER_ADDRESS}:(\d+)/ ", log.read_text())
    assert found is not None, log.read_text()

    def asked() -> bool:
        curl(network, f"http://{SERVER_ADDRESS}:{found.group(1)}/who?x=1")
        return bool(re.search(r"GET +200 .* 198\.51\.100\.90 +/who\?x=1", log.read_text()))

    wait_for(asked, "the request is in the log")
    staying.send_signal(signal.SIGINT)
    assert staying.wait(10) == 130
    assert a.overlay_json("expose", "ls")["exposures"] == []


def test_a_name_has_one_holder_and_a_target_that_is_away_is_a_502(network: Network, published: str) -> None:
    taken = network["a"].overlay("expose", str(PORT), "--host", NAME, check=False)
    assert taken.returncode == 1 and "held by node 'a'" in taken.stderr
    below = network["a"].overlay_json("expose", "1", "--host", f"{NAME}/below")
    assert status_of(network, f"http://{NAME}/below/x") == "502"
    assert status_of(network, f"http://{NAME}/") == "200"
    network["a"].overlay("expose", "rm", below["id"])
    assert status_of(network, f"http://{NAME}/below/x") == "404", "nginx has no such page"


def test_the_name_outlives_a_restart_of_the_server(network: Network, published: str) -> None:
    network.server.overlay("down", "--quiet")
    network.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
    wait_for(lambda: status_of(network, f"http://{NAME}/") == "200", "the site is back")


def test_an_ordinary_user_publishes_without_the_network_being_up(network: Network) -> None:
    """Nothing is on the machine beforehand; what was started for the exposure ends with it."""
    b = network["b"]
    www = network.lab.directory / "www-of-b"
    www.mkdir()
    (www / "index.html").write_text("b's home\n")
    b.state.mkdir(mode=0o700)
    os.chown(b.state, NOBODY, NOBODY)
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
    target = b.namespace.popen([sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", str(www), "3000"])
    try:
        wait_for(lambda: b.run("curl", "-s", "127.0.0.1:3000", check=False).stdout, "the target answers")
        bare = b.run(*user, OVERLAY, "expose", "3000", check=False)
        assert bare.returncode == 3 and "--invite" in bare.stderr
        log = network.lab.directory / "requests-of-b"
        with log.open("w") as file:
            expose = ("expose", "3000", "--host", "b.test", "--foreground", "--invite", network.invite())
            staying = b.popen(*user, OVERLAY, *expose, stdout=file, stderr=subprocess.STDOUT)
        wait_for(lambda: "→" in log.read_text(), "it is published")
        asked = ("--resolve", f"b.test:443:{SERVER_ADDRESS}", "https://b.test/")
        assert curl(network, *asked) == "b's home\n"
        shown = json.loads(b.run(*user, OVERLAY, "status", "--json").stdout)
        assert shown["interface"] is None and shown["exposures"][0]["tunnel"] == "tls"
        staying.send_signal(signal.SIGINT)
        assert staying.wait(10) == 130
        wait_for(b.is_still, "what was started for it has ended")
        again = json.loads(b.run(*user, OVERLAY, "expose", "3000", "--host", "b.test", "--json").stdout)
        assert again["tunnel"] == "tls", "without an invite: it has joined"
        assert curl(network, *asked) == "b's home\n"
        b.run(*user, OVERLAY, "down")
        wait_for(b.is_still, "it ends")
    finally:
        target.terminate()
        target.wait()
