"""Targets that learn who a user is: nginx, haproxy, varnish, unbound and dnsdist behind an exposure, users of both
families before it."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet
from tests.programs import nginx_command

pytestmark = pytest.mark.lab

SERVER_6 = "2001:db8::1"
USERS = {"user": ("198.51.100.90", "2001:db8::90"), "other": ("198.51.100.91", "2001:db8::91")}
NGINX, HAPROXY, VARNISH, UNBOUND, DNSDIST = 3001, 3002, 3003, 3053, 3056  # on a, with the PROXY protocol
STREAM = 3004  # nginx's module for anything by tcp
PLAIN, DNSMASQ, NAIVE = 3000, 3054, 3055  # on a, which go by where a connection or datagram comes from
LAN, LAN_6 = "192.168.5.9", "fd05::9"  # behind a
OWN = "198.51.100.21"  # of a
PORTS = ("9007", "9008")  # public, of two exposures with one target
NAME = "real.test"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with services on it, and two users without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "lan", *USERS)}
        addresses = {"server": (SERVER_ADDRESS, SERVER_6), "a": (OWN, "2001:db8::21"), **USERS}
        internet = build_internet(lab, [(spaces[name], address) for name, (address, _) in addresses.items()])
        for name, (_, address) in addresses.items():
            spaces[name].address("eth0", f"{address}/64")
        made = Network(lab, internet)
        for name in ("server", "a"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server()
            made.join("a")
            lab.link(spaces["a"], ["192.168.5.1/24", "fd05::1/64"], spaces["lan"], [f"{LAN}/24", f"{LAN_6}/64"])
            spaces["lan"].route("default", "192.168.5.1")
            spaces["lan"].route("default", "fd05::1")
            spaces["a"].set("net.ipv4.conf.all.rp_filter", 1)  # the strictest
            start_services(lab, spaces["a"])
            start_plain_services(lab, spaces["a"], spaces["lan"])
            yield made
            made.stop_all()


WHO_BY_VARNISH = """
vcl 4.1;
import proxy;
backend none none;
sub vcl_recv { return (synth(200)); }
sub vcl_synth {
    synthetic(client.ip + " " + proxy.authority() + " " + proxy.alpn() + " " + proxy.is_ssl() + " " +
        proxy.ssl_version() + " " + proxy.ssl_cipher());
    return (deliver);
}
"""
WHO_BY_DNSDIST = f"""
setLocal("127.0.0.1:{DNSDIST}")
setProxyProtocolACL({{"127.0.0.1/32"}})
setACL({{"0.0.0.0/0", "::/0"}})
addAction(AllRule(), LuaAction(function(query)
    return DNSAction.Spoof, query.remoteaddr:toString()
end))
"""
"""Each query is answered with whom it comes from."""


def start_services(lab: Lab, space: Namespace) -> None:
    """Each answers with who asks, as the header says."""
    folder = lab.directory
    nginx = nginx_command(
        folder,
        f"""
    server {{
        listen 127.0.0.1:{PLAIN};
        listen [::1]:{PLAIN};
        listen {OWN}:{PLAIN};
        access_log {folder}/access.log;
        return 200 "$remote_addr $remote_port\\n";
    }}
    server {{
        listen 127.0.0.1:{NGINX} proxy_protocol;
        return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port $remote_addr\\n";
    }}
""",
        stream=f"""
    server {{
        listen 127.0.0.1:{STREAM} proxy_protocol;
        return "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port\\n";
    }}
""",
    )
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
    (folder / "who.vcl").write_text(WHO_BY_VARNISH)
    varnish = ("-a", f"127.0.0.1:{VARNISH},PROXY", "-f", f"{folder}/who.vcl", "-n", f"{folder}/varnish", "-T", "none")
    space.popen(["varnishd", "-F", *varnish, "-s", "default,4m"], stdout=subprocess.DEVNULL)
    (folder / "dnsdist.conf").write_text(WHO_BY_DNSDIST)
    space.popen(["dnsdist", "--supervised", "-C", f"{folder}/dnsdist.conf"], stdout=subprocess.DEVNULL)
    space.popen(nginx)
    space.popen(["haproxy", "-f", f"{folder}/haproxy.cfg"])
    with (folder / "unbound.log").open("w") as log:
        space.popen(["unbound", "-dd", "-c", f"{folder}/unbound.conf"], stdout=log, stderr=log)
    for port in (NGINX, HAPROXY, STREAM, VARNISH):
        listening = ("ss", "-Hltn", f"sport = :{port}")
        wait_for(lambda: space.run(listening).stdout, f"port {port} is listened at")  # noqa: B023
    wait_for(lambda: "start of service" in (folder / "unbound.log").read_text(), "unbound serves")


NAIVE_SERVER = """
import socket, sys
served = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
served.bind(("::", int(sys.argv[1])))
while True:
    datagram, source = served.recvfrom(2048)
    served.sendto(f"{source[0]} {source[1]}".encode(), source)
"""
"""It leaves the source of its answers to the system, as many servers do."""


def start_plain_services(lab: Lab, space: Namespace, lan: Namespace) -> None:
    """dnsmasq, a UDP service bound to all addresses, and a web server on the machine behind a."""
    folder = lab.directory
    dns = (
        *("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file=", "--user=root"),
        *(f"--port={DNSMASQ}", f"--host-record={NAME},192.0.2.7", "--log-queries=extra"),
        f"--log-facility={folder}/dnsmasq.log",
    )
    space.popen(dns)
    for each in (space, lan):
        each.popen([sys.executable, "-c", NAIVE_SERVER, str(NAIVE)])
    with (folder / "lan.log").open("w") as log:
        web = [sys.executable, "-u", "-m", "http.server", "-b", "::", str(PLAIN)]
        lan.popen(web, stdout=log, stderr=log, cwd=folder)
    wait_for(lambda: "Serving HTTP" in (folder / "lan.log").read_text(), "the web server behind a serves")
    for where, port in ((space, DNSMASQ), (space, NAIVE), (lan, NAIVE)):
        bound = ("ss", "-Hlun", f"sport = :{port}")
        wait_for(lambda: where.run(bound).stdout, f"port {port} is bound")  # noqa: B023


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


def test_nginx_knows_it_whatever_is_spoken(network: Network) -> None:
    a: Machine = network["a"]
    exposure = a.overlay_json("expose", f"tcp://127.0.0.1:{STREAM}", "--public", "9001", "--proxy-protocol", "v2")
    for server, address in zip((SERVER_ADDRESS, SERVER_6), USERS["user"], strict=True):
        with network.lab.namespaces["user"].enter():
            user = socket.create_connection((server, 9001), timeout=10)
        with user, user.makefile() as said:
            assert said.read() == f"{address} {user.getsockname()[1]} 9001\n"
    a.overlay("expose", "rm", exposure["id"])


def test_haproxy_takes_a_checksum_and_the_name_that_was_asked_for(network: Network) -> None:
    a: Machine = network["a"]
    target = ("expose", f"http://127.0.0.1:{HAPROXY}", "--public", "9002", "--proxy-protocol", "v2-crc32c")
    exposure = a.overlay_json(*target)
    answer = curl(network, "user", 9002, SERVER_ADDRESS, "-H", "Host: docs.example.com")
    assert re.fullmatch(rf"198\.51\.100\.90 \d+ {re.escape(SERVER_ADDRESS)} docs\.example\.com\n", answer), answer
    a.overlay("expose", "rm", exposure["id"])


def test_varnish_knows_the_tls_that_has_ended_before(network: Network) -> None:
    a: Machine = network["a"]
    kinds: dict[str, tuple[str, ...]] = {
        f"http://127.0.0.1:{VARNISH}": (),
        f"tls://127.0.0.1:{VARNISH}": ("--tls-end", "server"),
        f"127.0.0.1:{VARNISH}": ("--tls-end", "node", "--tunnel", "wss"),
    }
    for target, more in kinds.items():
        exposure = a.overlay_json("expose", target, "--host", "app.test", "--proxy-protocol", "v2", *more)
        asked = ["curl", "-ksS", "--max-time", "10", "--resolve", f"app.test:443:{SERVER_ADDRESS}", "https://app.test/"]
        said = network.lab.namespaces["user"].run(asked).stdout
        assert said == "198.51.100.90 app.test http/1.1 true TLSv1.3 TLS_AES_256_GCM_SHA384", (target, said)
        a.overlay("expose", "rm", exposure["id"])
    exposure = a.overlay_json("expose", f"http://127.0.0.1:{VARNISH}", "--public", "9008", "--proxy-protocol", "v2")
    assert curl(network, "user", 9008, SERVER_ADDRESS) == f"198.51.100.90 {SERVER_ADDRESS} (null) false (null) (null)"
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


@pytest.mark.parametrize("tunnel", ["single", "tls"])
def test_dnsdist_answers_who_asks(network: Network, tunnel: str) -> None:
    a: Machine = network["a"]
    wanted = ("expose", f"udp://127.0.0.1:{DNSDIST}", "--public", "9054", "--tunnel", tunnel, "--proxy-protocol", "v2")
    exposure = a.overlay_json(*wanted)
    for user, addresses in USERS.items():
        for server, address in zip((SERVER_ADDRESS, SERVER_6), addresses, strict=True):
            kind = "AAAA" if ":" in address else "A"
            dig = ["dig", f"@{server}", "-p", "9054", "+short", "+tries=3", "+time=3", NAME, kind]
            assert network.lab.namespaces[user].run(dig).stdout == f"{address}\n"
    a.overlay("expose", "rm", exposure["id"])


def test_what_cannot_be_is_said(network: Network) -> None:
    refused = network["a"].overlay("expose", "udp://127.0.0.1:53", "--proxy-protocol", "v1", "--json", check=False)
    assert refused.returncode == 2
    assert "--proxy-protocol v2" in json.loads(refused.stdout)["error"]["message"]


# --transparent --------------------------------------------------------------------------------------------------------


def routing(machine: Machine) -> str:
    """The rules of this machine that are the program's."""
    rules = "".join(machine.run("ip", family, "rule").stdout for family in ("-4", "-6"))
    return "".join(line for line in rules.splitlines() if line.startswith("5100:"))


def ask_at_once(network: Network, server: str, port: int, own_port: int) -> dict[str, str]:
    """Both users, from the same port, while the other's connection is open. → what each is told"""
    open_now: dict[str, socket.socket] = {}
    for user, (address, address_6) in USERS.items():
        six = ":" in server
        with network.lab.namespaces[user].enter():
            made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(10)
        made.bind((address_6 if six else address, own_port))
        made.connect((server, port))
        open_now[user] = made
    answers = {}
    for connection in open_now.values():
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    for user, connection in open_now.items():
        with connection.makefile("rb") as file:
            answers[user] = file.read().decode().rpartition("\r\n\r\n")[2].strip()
        connection.close()
    return answers


def whom(network: Network, user: str, server: str, port: int, own_port: int) -> str:
    """What the UDP service says of where this user's datagram comes from."""
    six = ":" in server
    with network.lab.namespaces[user].enter():
        made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(10)
        made.bind((USERS[user][six], own_port))
        made.connect((server, port))
        made.send(b"who?")
        return made.recv(100).decode().removeprefix("::ffff:")


@pytest.mark.parametrize(("tunnel", "own_port"), [("single", 42001), ("tls", 42002)])
def test_nginx_sees_users_themselves(network: Network, tunnel: str, own_port: int) -> None:
    a: Machine = network["a"]
    wanted = ("expose", f"tcp://localhost:{PLAIN}", "--public", "9003", "--tunnel", tunnel, "--transparent")
    exposure = a.overlay_json(*wanted)
    for server, family in ((SERVER_ADDRESS, 0), (SERVER_6, 1)):
        answers = ask_at_once(network, server, 9003, own_port)
        assert answers == {user: f"{addresses[family]} {own_port}" for user, addresses in USERS.items()}
    log = network.lab.directory / "access.log"
    wait_for(lambda: "2001:db8::91" in log.read_text() and "198.51.100.90" in log.read_text(), "nginx's log has them")
    own = a.run("curl", "-sS", "--max-time", "10", f"http://{SERVER_ADDRESS}:9003/", check=False)
    assert own.returncode in (7, 56), "who comes as the machine itself is turned away: reset, perhaps before curl looks"
    assert f"\n{OWN} " not in log.read_text()
    a.overlay("expose", "rm", exposure["id"])


def test_a_port_that_is_taken_for_the_kernel_is_another_one(network: Network) -> None:
    a: Machine = network["a"]
    twice = [a.overlay_json("expose", f"tcp://127.0.0.1:{PLAIN}", "--public", port, "--transparent") for port in PORTS]
    with network.lab.namespaces["user"].enter():
        made = [socket.socket() for _ in PORTS]
    answers = []
    for port, connection in zip(PORTS, made, strict=True):
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("198.51.100.90", 42003))
        connection.connect((SERVER_ADDRESS, int(port)))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        answers.append(connection.recv(4096).decode().split()[-2:])
    for connection in made:
        connection.close()
    assert answers[0] == ["198.51.100.90", "42003"]
    assert answers[1][0] == "198.51.100.90" and answers[1] != answers[0]
    for exposure in twice:
        a.overlay("expose", "rm", exposure["id"])


def test_by_http_and_at_an_address_of_its_own(network: Network) -> None:
    a: Machine = network["a"]
    both = ("--transparent", "--public", "9004")
    exposure = a.overlay_json("expose", f"http://{OWN}:{PLAIN}", *both)
    answer, port = curl(network, "user", 9004, SERVER_ADDRESS, "-w", "%{local_port}").splitlines()
    assert answer == f"198.51.100.90 {port}"
    straight = ["curl", "-sS", "--max-time", "10", f"http://{OWN}:{PLAIN}/"]
    assert network.lab.namespaces["other"].run(straight).stdout.startswith("198.51.100.91 "), "others come as ever"
    a.overlay("expose", "rm", exposure["id"])


def test_a_machine_behind_sees_users_if_it_answers_by_this_one(network: Network) -> None:
    a: Machine = network["a"]
    exposures = [
        a.overlay_json("expose", target, "--transparent", "--public", port)
        for target, port in (
            (f"http://{LAN}:{PLAIN}", "9005"),
            (f"http://[{LAN_6}]:{PLAIN}", "9015"),
            (f"udp://{LAN}:{NAIVE}", "9025"),
        )
    ]
    for port, server, address in ((9005, SERVER_ADDRESS, "198.51.100.90"), (9015, SERVER_6, "2001:db8::90")):
        assert "<title>" in curl(network, "user", port, server)
        assert f"{address} - - " in (network.lab.directory / "lan.log").read_text()
    assert whom(network, "user", SERVER_ADDRESS, 9025, 43001) == "198.51.100.90 43001"
    for each in exposures:
        a.overlay("expose", "rm", each["id"])
    stray = a.overlay("expose", "tcp://198.51.100.91:80", "--transparent", "--json", check=False)
    assert stray.returncode == 1 and json.loads(stray.stdout)["error"]["code"] == "answers-stray"


@pytest.mark.parametrize("tunnel", ["single", "udp"])
def test_datagrams_come_from_users_themselves(network: Network, tunnel: str) -> None:
    a: Machine = network["a"]
    folder = network.lab.directory
    more = ("--tunnel", tunnel, "--transparent", "--public")
    dns = a.overlay_json("expose", f"udp://localhost:{DNSMASQ}", *more, "9055")
    naive = a.overlay_json("expose", f"udp://localhost:{NAIVE}", *more, "9056")
    for user, addresses in USERS.items():
        for server, address in zip((SERVER_ADDRESS, SERVER_6), addresses, strict=True):
            dig = ["dig", f"@{server}", "-p", "9055", "+short", "+tries=3", "+time=3", NAME]
            assert network.lab.namespaces[user].run(dig).stdout == "192.0.2.7\n"
            wait_for(lambda: f" {address}/" in (folder / "dnsmasq.log").read_text(), f"dnsmasq saw {address}")  # noqa: B023
            assert whom(network, user, server, 9056, 43000) == f"{address} 43000"
    for each in (dns, naive):
        a.overlay("expose", "rm", each["id"])


def test_nothing_of_it_stays(network: Network) -> None:
    """After a kill what was left is taken away at the next start, and on 'down' at once."""
    a: Machine = network["a"]
    exposure = a.overlay_json("expose", f"tcp://localhost:{PLAIN}", "--public", "9006", "--transparent")
    curl(network, "user", 9006, SERVER_ADDRESS)
    before = routing(a)
    assert f"from 127.0.0.1 ipproto tcp sport {PLAIN}" in before
    a.kill_daemon()
    assert routing(a) == before
    a.overlay("up", "--quiet")
    assert not routing(a)
    answer, port = curl(network, "user", 9006, SERVER_ADDRESS, "-w", "%{local_port}").splitlines()
    assert answer == f"198.51.100.90 {port}" and routing(a)
    a.overlay("down", "--quiet")
    assert not routing(a)
    a.overlay("up", "--quiet")
    a.overlay("expose", "rm", exposure["id"])
