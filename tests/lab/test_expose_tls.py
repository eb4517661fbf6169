"""TLS by a name: carried to nginx as it comes, ended by the server before Redis, ended by the node; and HTTP/2."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.lab.netns import wait_for
from tests.lab.published import exposed, published_network, random_file
from tests.lab.topology import SERVER_ADDRESS, Network
from tests.programs import nginx_command

pytestmark = pytest.mark.lab

NAME = "app.test"
SIZE = 10_000_000
PLAIN, SECURE, REDIS = 3000, 3443, 6379  # ports on the node


class Site:
    """nginx on the node, by http and https, with a certificate that `ca` vouches for."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        (folder / "www").mkdir(parents=True)
        self.digest = random_file(folder / "www" / "large", SIZE)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(str(folder / "site.pem"))
        command = nginx_command(
            folder,
            f"""
    server {{
        listen 127.0.0.1:{PLAIN};
        listen 127.0.0.1:{SECURE} ssl http2;
        ssl_certificate {folder}/site.pem;
        ssl_certificate_key {folder}/site.pem;
        root {folder}/www;
        location = /who {{ return 200 "$server_protocol $http_x_forwarded_for\\n"; }}
    }}
""",
        )
        network["a"].namespace.popen(command)
        wait_for(lambda: f":{SECURE} " in network["a"].run("ss", "-Hltn").stdout, "nginx listens")

    def curl(self, *arguments: str) -> str:
        where = ("--resolve", f"{NAME}:443:{SERVER_ADDRESS}", "--max-time", "30")
        return str(self.network.lab.namespaces["user"].run(["curl", "-sS", *where, *arguments]).stdout)

    def large(self, *arguments: str) -> str:
        """→ its digest, as a user gets it"""
        copy = self.folder / "copy"
        self.curl("-o", str(copy), *arguments, f"https://{NAME}/large")
        with copy.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with published_network() as network:
        yield Site(network, network.lab.directory / "nginx")


@pytest.mark.parametrize("tunnel", ["single", "udp", "tcp", "tls", "ws", "wss"])
def test_carried_as_it_comes(site: Site, tunnel: str) -> None:
    verified = ("--cacert", str(site.folder / "ca.pem"))
    a = site.network["a"]
    with exposed(a, f"tls://localhost:{SECURE}", "--host", NAME, "--tunnel", tunnel) as made:
        assert (made["public"], made["url"]) == (f"{NAME}:443", None)
        assert site.curl(*verified, "--http2", f"https://{NAME}/who") == "HTTP/2.0 \n"
        assert site.large(*verified) == site.digest
        refused = a.overlay("expose", str(PLAIN), "--host", NAME, check=False)
        assert refused.returncode == 1 and "by TLS, https too, goes to node 'a'" in refused.stderr


def test_ended_by_the_server_before_redis(site: Site) -> None:
    a = site.network["a"]
    command = ["redis-server", "--port", str(REDIS), "--save", "", "--dir", str(site.folder)]
    server = a.namespace.popen(command, stdout=subprocess.DEVNULL)
    try:
        with exposed(a, f"tls://localhost:{REDIS}", "--host", NAME, "--tls-end", "server"):
            ask = ("redis-cli", "--tls", "--insecure", "--sni", NAME, "-h", SERVER_ADDRESS, "-p", "443")
            user = site.network.lab.namespaces["user"]
            wait_for(lambda: user.run([*ask, "ping"], check=False).stdout == "PONG\n", "it answers")
            user.run([*ask, "set", "key", "x" * 100_000])
            assert user.run([*ask, "strlen", "key"]).stdout == "100000\n"
    finally:
        server.terminate()
        server.wait()


def test_ended_by_the_node(site: Site) -> None:
    a = site.network["a"]
    with exposed(a, str(PLAIN), "--host", NAME, "--tls-end", "node", "--tunnel", "wss") as made:
        assert (made["url"], made["certificate"]) == (f"https://{NAME}/", "self-signed")
        met = site.curl("-k", "-v", "--stderr", "-", f"https://{NAME}/who")
        assert f"issuer: CN={NAME}" in met and "HTTP/1.1 \n" in met, met
        assert site.large("-k") == site.digest
        unseen = a.overlay("expose", "logs", made["id"], check=False)
        assert unseen.returncode == 1 and "the server sees no requests" in unseen.stderr


def test_http2(site: Site) -> None:
    with exposed(site.network["a"], str(PLAIN), "--host", NAME):
        met = site.curl("-k", "-v", "--stderr", "-", f"https://{NAME}/who", "-w", "%{http_version}")
        assert f"issuer: CN={NAME}" in met and "HTTP/1.1 198.51.100.90\n" in met and met.endswith("2"), met
        assert site.large("-k", "--http2") == site.digest
