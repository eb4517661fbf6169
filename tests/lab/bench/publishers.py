"""Others that publish a service of one machine on another, each set up as its manual has it: haproxy twice, which is
the yardstick, and reverse tunnels found on PATH.

All are given the same machines and the same targets, on ports of their own, and stay up together.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.lab.bench.daemon import start
from tests.lab.bench.load import listens
from tests.lab.netns import Namespace

HOST = "app.test"
"""Of the site, for those who tell sites apart by name."""
HAPROXY = "haproxy ×2"
SECRET = "bench-of-one-lab"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it is played: `targets` are ports of the node's loopback by what is there, `web` the one that is HTTP."""

    server: Namespace
    node: Namespace
    server_address: str
    node_address: str
    targets: Mapping[str, int]
    web: str = "web"


@dataclass(frozen=True, slots=True)
class Published:
    """Ports of the server for users, by target. `site`: that for HTTP, if it knows HTTP. `pids`: on the server."""

    name: str
    ports: Mapping[str, int]
    site: int | None
    pids: tuple[int, ...] = ()


class Publisher(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def program(self) -> str:
        """What tells its version."""

    def publish(self, stage: Stage, first_port: int) -> Published:
        """Come up, with all targets published from `first_port` on. It need not work yet."""


def _ports(stage: Stage, first_port: int) -> dict[str, int]:
    return {name: first_port + at for at, name in enumerate(stage.targets, 1)}


def _written(machine: Namespace, name: str, text: str) -> str:
    path: Path = machine.lab.directory / f"{machine.short_name}-{name}"
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


_HAPROXY = """global
 nbthread 1
 maxconn 4096
defaults
 mode tcp
 option splice-auto
 timeout connect 5s
 timeout client 1h
 timeout server 1h
"""


class HaproxyTwice:
    """One on the server's machine and one on the node's, a thread each; `splice-auto` for ports, HTTP for the site."""

    name = HAPROXY
    program = "haproxy"

    def publish(self, stage: Stage, first_port: int) -> Published:
        ports = _ports(stage, first_port)
        site = first_port
        at_node = {port: ("127.0.0.1", stage.targets[name]) for name, port in ports.items()}
        at_server = {port: (stage.node_address, port) for port in ports.values()}
        at_node[site] = ("127.0.0.1", stage.targets[stage.web])
        at_server[site] = (stage.node_address, site)
        self._start(stage.node, at_node, site)
        pid = self._start(stage.server, at_server, site)
        return Published(self.name, ports, site, (pid,))

    def _start(self, machine: Namespace, ports: Mapping[int, tuple[str, int]], site: int) -> int:
        sections = [_HAPROXY]
        for port, (host, target) in ports.items():
            kind = " mode http\n option forwardfor\n" if port == site else ""  # one of our headers for it, too
            sections.append(f"listen p{port}\n{kind} bind :{port}\n server next {host}:{target}\n")
        file = _written(machine, "haproxy.cfg", "".join(sections))
        return start(machine, "haproxy", ["haproxy", "-db", "-f", file], lambda: listens(machine, site))


class Frp:
    """frps and frpc: as they come (TLS, all users in one connection), or plain with a connection for each user."""

    program = "frps"

    def __init__(self, *, plain: bool) -> None:
        self.name = "frp, plain" if plain else "frp"
        self._plain = plain

    def publish(self, stage: Stage, first_port: int) -> Published:
        ports = _ports(stage, first_port)
        own, site = first_port, first_port + len(ports) + 1
        mux = f"transport.tcpMux = {'false' if self._plain else 'true'}\n"
        common = f'auth.token = "{SECRET}"\nlog.level = "error"\n{mux}'
        kind = self.name.replace(", ", "-")
        server = f"bindPort = {own}\nvhostHTTPPort = {site}\n{common}"
        command = ["frps", "-c", _written(stage.server, f"{kind}.toml", server)]
        pid = start(stage.server, kind, command, lambda: listens(stage.server, own))
        client = f'serverAddr = "{stage.server_address}"\nserverPort = {own}\nloginFailExit = false\n{common}'
        if self._plain:
            client += "transport.tls.enable = false\ntransport.poolCount = 5\n"
        for name, port in ports.items():
            client += f'[[proxies]]\nname = "{name}"\ntype = "tcp"\nlocalPort = {stage.targets[name]}\n'
            client += f"remotePort = {port}\n"
        client += f'[[proxies]]\nname = "site"\ntype = "http"\nlocalPort = {stage.targets[stage.web]}\n'
        client += f'customDomains = ["{HOST}"]\n'
        start(stage.node, kind, ["frpc", "-c", _written(stage.node, f"{kind}.toml", client)], lambda: True)
        return Published(self.name, ports, site, (pid,))


class Rathole:
    """Without TLS or Noise, as its manual begins."""

    name = "rathole"
    program = "rathole"

    def publish(self, stage: Stage, first_port: int) -> Published:
        ports = _ports(stage, first_port)
        server = f'[server]\nbind_addr = "0.0.0.0:{first_port}"\ndefault_token = "{SECRET}"\n'
        client = f'[client]\nremote_addr = "{stage.server_address}:{first_port}"\ndefault_token = "{SECRET}"\n'
        for name, port in ports.items():
            server += f'[server.services.{name}]\nbind_addr = "0.0.0.0:{port}"\n'
            client += f'[client.services.{name}]\nlocal_addr = "127.0.0.1:{stage.targets[name]}"\n'
        command = ["rathole", "--server", _written(stage.server, "rathole.toml", server)]
        pid = start(stage.server, self.name, command, lambda: listens(stage.server, first_port), RUST_LOG="error")
        command = ["rathole", "--client", _written(stage.node, "rathole.toml", client)]
        start(stage.node, self.name, command, lambda: True, RUST_LOG="error")
        return Published(self.name, ports, None, (pid,))


class Chisel:
    """All users in one SSH connection: it has no other way."""

    name = "chisel"
    program = "chisel"

    def publish(self, stage: Stage, first_port: int) -> Published:
        ports = _ports(stage, first_port)
        command = ["chisel", "server", "--reverse", "--host", "0.0.0.0", "--port", str(first_port)]
        pid = start(stage.server, self.name, command, lambda: listens(stage.server, first_port))
        remotes = [f"R:0.0.0.0:{port}:127.0.0.1:{stage.targets[name]}" for name, port in ports.items()]
        command = ["chisel", "client", f"http://{stage.server_address}:{first_port}", *remotes]
        start(stage.node, self.name, command, lambda: True)
        return Published(self.name, ports, None, (pid,))


@dataclass(frozen=True, slots=True)
class Candidate:
    programs: tuple[str, ...]
    make: Callable[[], list[Publisher]]


CANDIDATES = (
    Candidate(("haproxy",), lambda: [HaproxyTwice()]),
    Candidate(("frps", "frpc"), lambda: [Frp(plain=False), Frp(plain=True)]),
    Candidate(("rathole",), lambda: [Rathole()]),
    Candidate(("chisel",), lambda: [Chisel()]),
)


def found_publishers() -> tuple[list[Publisher], dict[str, str]]:
    """Those on PATH, and why others are left out, by program."""
    found: list[Publisher] = []
    left_out: dict[str, str] = {}
    for each in CANDIDATES:
        missing = [program for program in each.programs if shutil.which(program) is None]
        for program in missing:
            left_out[program] = "left out: not on PATH"
        if not missing:
            found += each.make()
    return found, left_out
