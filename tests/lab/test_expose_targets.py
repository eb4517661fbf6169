"""What a node publishes beyond ports of its own, with real programs: nginx on a unix socket, on TLS, on a peer and on
several ports, microsocks, and files; curl is the user."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_expose import NAME, curl, digest, status_of
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet
from tests.programs import nginx_command

pytestmark = pytest.mark.lab

PLAIN, TLS = (3000, 3001, 3002), 3443
PROXY = 1080
SIZE = 20_000_000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with nginx and microsocks, a peer with nginx, and a user without anything of ours."""
    with Lab() as lab:
        public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "b": "198.51.100.22", "user": "198.51.100.90"}
        spaces = {name: lab.namespace(name) for name in public}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", "a", "b"):
            made.machine(spaces[name])
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(lab.directory / "ca.pem"))
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(lab.directory / "tls.pem")
        )
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join("a", "b")
            for name in ("a", "b"):
                start_nginx(lab, spaces[name], name)
            spaces["a"].popen(["microsocks", "-i", "127.0.0.1", "-p", str(PROXY), "-u", "alice", "-P", "s3cret"])
            yield made
            made.stop_all()


def start_nginx(lab: Lab, space: Namespace, name: str) -> None:
    """It says whose it is and at which port, and tells the host and name that it was asked for."""
    folder = lab.directory / f"nginx-{name}"
    folder.mkdir()
    listens = "\n".join(f"listen {port};" for port in PLAIN)
    command = nginx_command(
        folder,
        f"""
    server {{
        {listens}
        listen unix:{folder}/nginx.sock;
        listen {TLS} ssl;
        ssl_certificate {lab.directory}/tls.pem;
        ssl_certificate_key {lab.directory}/tls.pem;
        location / {{ return 200 "{name} $server_port $scheme $http_host $ssl_server_name\\n"; }}
    }}
""",
    )
    space.popen(command)
    wait_for(
        lambda: space.run(["curl", "-s", f"127.0.0.1:{PLAIN[0]}/"], check=False).stdout, f"nginx of {name} answers"
    )


@pytest.fixture
def a(network: Network) -> Iterator[Machine]:
    """The node; what a test publishes is given back."""
    yield network["a"]
    for exposure in network["a"].overlay_json("expose", "ls")["exposures"]:
        network["a"].overlay("expose", "rm", exposure["id"])


def test_nginx_on_a_unix_socket_by_name_and_at_a_port(network: Network, a: Machine) -> None:
    path = network.lab.directory / "nginx-a" / "nginx.sock"
    shown = a.overlay_json("expose", f"unix:{path}", "--host", NAME)
    assert shown["target"] == f"unix:{path}"
    assert curl(network, f"https://{NAME}/").startswith("a ")
    a.overlay("expose", "unix:nginx.sock", "--public", "9000", "--tunnel", "tls", cwd=path.parent)
    assert curl(network, f"http://{SERVER_ADDRESS}:9000/").startswith("a ")


def test_a_folder_with_ranges_conditions_and_tricks(network: Network, a: Machine) -> None:
    dist = network.lab.directory / "dist"
    (dist / "sub").mkdir(parents=True)
    (dist / "index.html").write_text("<h1>home</h1>")
    (dist / "large").write_bytes(os.urandom(SIZE))
    (dist / ".env").write_text("secret")
    (network.lab.directory / "secret").write_text("secret")
    (dist / "out").symlink_to("../secret")
    (dist / "sub" / "page").write_text("page")
    shown = a.overlay_json("expose", "./dist", "--host", f"{NAME}/docs", cwd=network.lab.directory)
    assert shown["target"] == str(dist)
    base = f"https://{NAME}/docs"
    assert curl(network, f"{base}/") == "<h1>home</h1>"
    assert curl(network, "-L", base) == "<h1>home</h1>"
    copy = network.lab.directory / "copy"
    curl(network, "-o", str(copy), f"{base}/large")
    assert digest(copy) == digest(dist / "large")
    curl(network, "-r", "1000-", "-o", str(copy), f"{base}/large")
    assert copy.read_bytes() == (dist / "large").read_bytes()[1000:]
    tag = curl(network, "-o", "/dev/null", "-w", "%header{etag}", f"{base}/large")
    assert status_of(network, "-H", f"If-None-Match: {tag}", f"{base}/large") == "304"
    assert status_of(network, "-T", str(dist / "index.html"), f"{base}/new") == "405"
    for path in ("/.env", "/../secret", "/%2e%2e/secret", "/..%2fsecret", "/%252e%252e/secret", "/out", "/sub/", "/x"):
        assert status_of(network, "--path-as-is", base + path) == "404", path
    a.overlay("expose", "rm", shown["id"])
    a.overlay("expose", "dist", "--listing", "--host", NAME, cwd=network.lab.directory)
    assert '<a href="./page">page</a>' in curl(network, f"https://{NAME}/sub/")


def test_a_folder_is_served_after_a_restart_and_no_process_is_left(network: Network, a: Machine) -> None:
    folder = network.lab.directory / "site"
    folder.mkdir()
    (folder / "index.html").write_text("here")
    a.overlay("expose", str(folder), "--host", NAME)
    assert curl(network, f"https://{NAME}/") == "here"
    daemon = a.daemon_pid()
    assert daemon is not None and len(deputies(daemon)) == 1
    (deputy,) = deputies(daemon)
    os.kill(deputy, signal.SIGKILL)
    assert curl(network, f"https://{NAME}/") == "here", "another process serves it"
    (deputy,) = deputies(daemon)
    a.kill_daemon()
    wait_for(lambda: not Path(f"/proc/{deputy}/cmdline").exists(), "it ends with the daemon")
    a.overlay("up")
    wait_for(lambda: curl(network, f"https://{NAME}/") == "here", "it is served again")


def deputies(daemon: int) -> set[int]:
    found = (
        Path(f"/proc/{each}")
        for path in Path(f"/proc/{daemon}/task").glob("*/children")
        for each in path.read_text().split()
    )
    return {int(each.name) for each in found if b"overlay.node.deputy" in (each / "cmdline").read_bytes()}


def test_https_verified_and_not(network: Network, a: Machine) -> None:
    ca = str(network.lab.directory / "ca.pem")
    target = f"https://localhost:{TLS}"
    for options in (["--target-ca", ca], ["--insecure-target"]):
        shown = a.overlay_json("expose", target, "--host", NAME, *options)
        assert curl(network, f"http://{NAME}/") == f"a {TLS} https {NAME} localhost\n"
        a.overlay("expose", "rm", shown["id"])
    a.overlay("expose", target, "--host", NAME)
    assert status_of(network, f"http://{NAME}/") == "502"
    assert curl(network, f"http://{NAME}/") == "Bad Gateway\n"
    for owner in (network["a"], network["b"]):  # a by the address that it has in any case, b is nobody to it
        page = owner.run("curl", "-s", "--resolve", f"{NAME}:80:{SERVER_ADDRESS}", f"http://{NAME}/").stdout
        assert ("certificate is not trusted" in page) == (owner is network["a"])
    (shown,) = a.overlay_json("expose", "ls")["exposures"]
    assert "not trusted" in shown["trouble"] and "--target-ca" in shown["trouble"]
    assert "not reached" in a.overlay("expose", "ls").stdout


def test_a_range_of_ports(network: Network, a: Machine) -> None:
    target, public = f"tcp://127.0.0.1:{PLAIN[0]}-{PLAIN[-1]}", "9000-9002"
    shown = a.overlay_json("expose", target, "--public", public)
    assert (shown["target"], shown["public"]) == (target, f"{SERVER_ADDRESS}:{public}")
    for number, port in enumerate(PLAIN):
        assert curl(network, f"http://{SERVER_ADDRESS}:{9000 + number}/").startswith(f"a {port} ")
    overlapping = a.overlay("expose", f"tcp://127.0.0.1:{PLAIN[0]}-{PLAIN[1]}", "--public", "8999-9000", check=False)
    assert overlapping.returncode == 1 and "held by node 'a'" in overlapping.stderr
    assert len(a.overlay_json("expose", "ls")["exposures"]) == 3
    a.overlay("expose", "rm", shown["id"])
    assert a.overlay_json("expose", "ls")["exposures"] == []


def test_a_peers_service_by_its_name_and_no_circle(network: Network, a: Machine) -> None:
    a.overlay("expose", f"http://b.local.test:{PLAIN[0]}", "--host", NAME)
    wait_for(lambda: curl(network, f"http://{NAME}/").startswith("b "), "the peer's nginx answers")
    shown = a.overlay_json("expose", f"tcp://127.0.0.1:{PLAIN[0]}", "--public", "9000")
    refused = a.overlay("expose", f"{SERVER_ADDRESS}:9000", check=False)
    assert refused.returncode == 2 and f"exposure {shown['id']} of this machine itself" in refused.stderr


def test_through_socks(network: Network, a: Machine) -> None:
    auth = network.lab.directory / "auth"
    auth.write_text("alice:s3cret\n")
    proxy = ("--target-proxy", f"socks5://127.0.0.1:{PROXY}", "--target-proxy-auth", str(auth))
    a.overlay("expose", f"https://127.0.0.1:{TLS}", "--insecure-target", "--host", NAME, *proxy)
    assert curl(network, f"http://{NAME}/").startswith(f"a {TLS} https ")
    daemon = a.daemon_pid()
    assert b"s3cret" not in Path(f"/proc/{daemon}/cmdline").read_bytes()
    assert "s3cret" not in a.run("cat", str(a.state / "overlay.log")).stdout
