"""Targets that learn who a user is: nginx, haproxy and unbound behind an exposure, users of both families before it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab

SERVER_6 = "2001:db8::1"
USERS = {"user": ("198.51.100.90", "2001:db8::90"), "other": ("198.51.100.91", "2001:db8::91")}
NGINX, HAPROXY, UNBOUND = 3001, 3002, 3053  # on a, with the PROXY protocol
NAME = "real.test"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with services on it, and two users without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", *USERS)}
        addresses = {"server": (SERVER_ADDRESS, SERVER_6), "a": ("198.51.100.21", "2001:db8::21"), **USERS}
        internet = build_internet(lab, [(spaces[name], address) for name, (address, _) in addresses.items()])
        for name, (_, address) in addresses.items():
            spaces[name].address("eth0", f"{address}/64")
        made = Network(lab, internet)
        for name in ("server", "a"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server()
            made.join("a")
            start_services(lab, spaces["a"])
            yield made
            made.stop_all()


def start_services(lab: Lab, space: Namespace) -> None:
    """Each answers with who asks, as the header says."""
    folder = lab.directory
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; user root; pid {folder}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{NGINX} proxy_protocol;
        return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port $remote_addr\\n";
    }}
}}
""")
    (folder / "haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout client 10s
    timeout connect 10s
    timeout server 10s
frontend who
    bind 127.0.0.1:{HAPROXY} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[fc_pp_authority]\\n"
""")
    (folder / "unbound.conf").write_text(f"""
server:
    interface: 127.0.0.1@{UNBOUND}
    proxy-protocol-port: {UNBOUND}
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    do-daemonize: no
    chroot: ""
    username: ""
    pidfile: ""
    directory: "{folder}"
    use-syslog: no
    log-queries: yes
    verbosity: 1
    local-data: "{NAME}. A 192.0.2.7"
""")
    space.popen(["nginx", "-p", str(folder), "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"])
    space.popen(["haproxy", "-f", f"{folder}/haproxy.cfg"])
    with (folder / "unbound.log").open("w") as log:
        space.popen(["unbound", "-dd", "-c", f"{folder}/unbound.conf"], stdout=log, stderr=log)
    for port in (NGINX, HAPROXY):
        listening = ("ss", "-Hltn", f"sport = :{port}")
        wait_for(lambda: space.run(listening).stdout, f"port {port} is listened at")  # noqa: B023
    wait_for(lambda: "start of service" in (folder / "unbound.log").read_text(), "unbound serves")


def curl(network: Network, user: str, port: int, address: str, *arguments: str) -> str:
    host = f"[{address}]" if ":" in address else address
    asked = ["curl", "-sS", "--max-time", "10", *arguments, f"http://{host}:{port}/"]
    return str(network.lab.namespaces[user].run(asked).stdout)


@pytest.mark.parametrize(("kind", "tunnel"), [("v1", "single"), ("v2", "tls")])
def test_nginx_knows_the_users_address_and_port(network: Network, kind: str, tunnel: str) -> None:
    a: Machine = network["a"]
    target = ("expose", f"tcp://127.0.0.1:{NGINX}", "--public", "9001", "--tunnel", tunnel, "--proxy-protocol", kind)
    exposure = a.overlay_json(*target)
    for user, addresses in USERS.items():
        for server, address in zip((SERVER_ADDRESS, SERVER_6), addresses, strict=True):
            answer, port = curl(network, user, 9001, server, "-w", "%{local_port}").splitlines()
            assert answer == f"{address} {port} 9001 127.0.0.1"
    a.overlay("expose", "rm", exposure["id"])


def test_haproxy_takes_a_checksum_and_the_name_that_was_asked_for(network: Network) -> None:
    a: Machine = network["a"]
    target = ("expose", f"http://127.0.0.1:{HAPROXY}", "--public", "9002", "--proxy-protocol", "v2-crc32c")
    exposure = a.overlay_json(*target)
    answer = curl(network, "user", 9002, SERVER_ADDRESS, "-H", "Host: docs.example.com")
    assert re.fullmatch(rf"198\.51\.100\.90 \d+ {re.escape(SERVER_ADDRESS)} docs\.example\.com\n", answer), answer
    a.overlay("expose", "rm", exposure["id"])


@pytest.mark.parametrize("tunnel", ["single", "udp"])
def test_unbound_knows_who_sends_a_datagram(network: Network, tunnel: str) -> None:
    a: Machine = network["a"]
    wanted = ("expose", f"udp://127.0.0.1:{UNBOUND}", "--public", "9053", "--tunnel", tunnel, "--proxy-protocol", "v2")
    exposure = a.overlay_json(*wanted)
    log = Path(network.lab.directory / "unbound.log")
    for user, addresses in USERS.items():
        for server, address in zip((SERVER_ADDRESS, SERVER_6), addresses, strict=True):
            asked = f"{tunnel}-{user}-{'6' if ':' in address else '4'}.{NAME}"
            dig = ["dig", f"@{server}", "-p", "9053", "+short", "+tries=3", "+time=3", asked, "TXT"]
            network.lab.namespaces[user].run(dig)
            wait_for(lambda: f"{address} {asked}." in log.read_text(), f"{address} is in unbound's log")  # noqa: B023
    a.overlay("expose", "rm", exposure["id"])


def test_what_cannot_be_is_said(network: Network) -> None:
    refused = network["a"].overlay("expose", "udp://127.0.0.1:53", "--proxy-protocol", "v1", "--json", check=False)
    assert refused.returncode == 2
    assert "--proxy-protocol v2" in json.loads(refused.stdout)["error"]["message"]
