"""Names beside the network's: multicast names of the LAN, other C libraries, name servers that a person chose."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from overlay_dns.osconfig.resolvconf import parse_nameservers
from tests.lab.netns import wait_for
from tests.lab.resolvers import (
    FAR,
    FAR_ADDRESS,
    FORMER,
    LIBRARIES,
    PATIENCE,
    PROGRAMS,
    SERVER,
    Machine,
    user,
)

pytestmark = pytest.mark.lab


@contextmanager
def avahi(machine: Machine, name: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A real mDNS responder, with a /run of its own."""
    configuration = folder / f"{name}.conf"
    configuration.write_text(f"[server]\nhost-name={name}\nuse-ipv6=no\nallow-interfaces=eth0\nenable-dbus=no\n")
    program = PROGRAMS / "avahi-daemon/usr/sbin/avahi-daemon"
    command = f"{program} --file={configuration} --no-drop-root --no-chroot --no-rlimits"
    multicast = ["224.0.0.0/4", "dev", "eth0"]
    machine.namespace.run(["ip", "route", "add", *multicast])
    with user(machine.namespace, "avahi"):
        process = machine.namespace.popen(
            ["sh", "-c", f"mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && exec {command}"],
            env=os.environ | {"LD_LIBRARY_PATH": LIBRARIES},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # Before that, the process is perhaps not in its namespaces yet, and who follows it there neither.
            wait_for(Path(f"/proc/{process.pid}/root/run/avahi-daemon/socket").is_socket, f"{name} listens")
            yield process
        finally:
            process.terminate()
            process.wait(10)
            machine.namespace.run(["ip", "route", "del", *multicast])


def test_multicast_names_are_found_as_before(hosts: tuple[Machine, Machine], node: Machine, tmp_path: Path) -> None:
    nsswitch = node.namespace.resolv_conf.with_name("nsswitch.conf")
    former = nsswitch.read_text()
    nsswitch.write_text("hosts: files mdns4_minimal [NOTFOUND=return] dns\n")
    with avahi(hosts[0], "printer", tmp_path), avahi(node, "here", tmp_path) as here:

        def found(name: str) -> list[str]:
            """By a program beside the node's Avahi, which sees its socket."""
            command = ["nsenter", f"--target={here.pid}", "--mount", "--net", "getent", "ahostsv4", name]
            environment = os.environ | {"LD_LIBRARY_PATH": LIBRARIES}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
            return done.stdout.split()[:1]

        def by_dns(server: str) -> str:
            return str(node.namespace.run(["dig", "+noall", "+comments", f"@{server}", "printer.local"]).stdout)

        wait_for(lambda: found("printer.local") == [SERVER], "the printer says its name")
        node.done("up")
        address, ours = node.own_address(), node.first().split()[1]
        assert ours != SERVER
        assert found("printer.local") == [SERVER] and found("server.local.test") == [address]
        assert found(FAR) == [FAR_ADDRESS]
        for server in (SERVER, ours):  # who knows no multicast hears what the system's name server says
            assert "status: REFUSED" in by_dns(server)
        node.done("down")
        assert found("printer.local") == [SERVER]
    nsswitch.write_text(former)


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program with musl in it that prints a name's addresses."""
    (library,) = PROGRAMS.glob("musl-dev/usr/lib/*-linux-musl")
    (headers,) = PROGRAMS.glob("musl-dev/usr/include/*-linux-musl")
    program = tmp_path_factory.mktemp("musl") / "look_up"
    source = Path(__file__).with_name("look_up.c")
    begin, end = [str(library / name) for name in ("crt1.o", "crti.o")], str(library / "crtn.o")
    options = ["-static", "-no-pie", "-nostdlib", "-nostdinc", "-isystem", str(headers)]
    parts = [*begin, str(source), str(library / "libc.a"), "-lgcc", end]
    subprocess.run(["gcc", *options, "-o", str(program), *parts], check=True, timeout=60)
    return str(program)


def test_programs_of_two_c_libraries_find_names(hosts: tuple[Machine, Machine], node: Machine, musl: str) -> None:
    def musl_finds(name: str) -> list[str]:
        return str(node.namespace.run([musl, name, "-4"], check=False).stdout).split()

    node.done("up")
    address = node.own_address()
    pages = hosts[0].namespace.popen(
        [sys.executable, "-m", "http.server", "--bind", address, "8000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{remote_ip}", "http://server.local.test:8000/"]
    wait_for(lambda: node.namespace.run(curl, check=False).stdout == address, "curl finds the page by its host's name")
    pages.terminate()
    pages.wait(10)
    for name in ("server.local.test", "server", "x.server.local.test"):
        assert address in node.namespace.run(["getent", "ahostsv4", name]).stdout.split()
        node.namespace.run(["ping", "-c", "1", "-W", "5", name])
        assert address in musl_finds(name), name
    assert address in node.namespace.run(["busybox", "nslookup", "server.local.test"]).stdout
    assert node.namespace.run(["getent", "hosts", address]).stdout.split()[1] == "server.local.test"
    assert musl_finds(FAR) == [FAR_ADDRESS] and node.finds(FAR, FAR_ADDRESS)
    node.kill()
    assert musl_finds(FAR) == [FAR_ADDRESS]


CORP, CORP_ADDRESS = "intranet.corp.example", "192.0.2.81"


@contextmanager
def unbound(machine: Machine, folder: Path) -> Iterator[None]:
    """A real unbound that knows a name and what dnsmasq knows otherwise, by DNS (port 5300) and by TLS (port 853)."""
    certificate = trustme.CA()
    issued = certificate.issue_cert("dns.example")
    certificate.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    configuration = folder / "unbound.conf"
    configuration.write_text(
        f"""
        server:
            interface: {SERVER}@5300
            interface: {SERVER}@853
            tls-service-key: "{folder}/key.pem"
            tls-service-pem: "{folder}/cert.pem"
            access-control: 0.0.0.0/0 allow
            username: ""
            chroot: ""
            directory: "{folder}"
            pidfile: ""
            use-syslog: no
            do-daemonize: no
            module-config: "iterator"
            local-zone: "corp.example." static
            local-data: "{CORP}. 60 IN A {CORP_ADDRESS}"
            local-data: "{FAR}. 60 IN A {CORP_ADDRESS}"
        remote-control:
            control-enable: no
        """
    )
    process = machine.namespace.popen(
        ["unbound", "-c", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        dig = ["dig", "+short", "+time=1", "+tries=1", f"@{SERVER}", "-p", "5300", CORP]
        wait_for(lambda: machine.namespace.run(dig, check=False).stdout == f"{CORP_ADDRESS}\n", "unbound answers")
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_name_servers_that_a_person_chose(hosts: tuple[Machine, Machine], node: Machine, tmp_path: Path) -> None:
    with unbound(hosts[0], tmp_path):
        node.done("up", "--upstream", f"corp.example={SERVER}:5300")
        address = node.own_address()
        assert node.finds(CORP, CORP_ADDRESS) and node.finds(FAR, FAR_ADDRESS)
        assert node.finds("server.local.test", address)
        said = node.done("dns", "status")
        assert f"corp.example={SERVER}:5300 (chosen by --upstream)" in said and f"{SERVER} (the system's)" in said
        assert f"{SERVER}:5300" in node.done("dns", "query", "new.corp.example")
        node.done("down")

        node.environment = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        node.done("up", "--upstream", f"tls://{SERVER}#dns.example")
        assert node.finds(FAR, CORP_ADDRESS), "all names are asked there"
        assert f"tls://{SERVER}#dns.example" in node.done("dns", "query", "new.corp.example")
        answer = json.loads(node.done("dns", "query", "--json", "x.local"))
        assert answer["upstreams"][0].endswith(f"={SERVER}"), "but names of the link, which the system's is asked for"
        assert parse_nameservers(node.namespace.resolv_conf.read_text()) == [node.first().split()[1]], "nor by glibc"
        node.kill()
        wait_for(lambda: node.namespace.resolv_conf.read_text() == FORMER, "the guard puts it back", timeout=PATIENCE)

        node.done("up", "--upstream", f"tls://{SERVER}#evil.example")
        answer = json.loads(node.done("dns", "query", "--json", "other.corp.example"))
        assert answer["rcode"] == "SERVFAIL", "it cannot prove that name"
        assert node.finds("server.local.test", address)
