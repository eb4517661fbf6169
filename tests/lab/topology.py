"""The networks that the demo, the playground and the lab tests use: machines with the program on them.

Outside addresses are documentation ranges (RFC 5737); there is no way out of a lab.

    internet (a switch, 198.51.100.0/24, and a resolver for the names that are not ours)
     ├── server    198.51.100.1
     ├── a-nat     198.51.100.11 ── a 192.168.1.10, c 192.168.1.11
     ├── b-nat     198.51.100.12 ── b 192.168.2.10
     ├── user      198.51.100.90    nothing of ours installed
     └── stranger  198.51.100.91    has the program, but no invite
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlay.daemon.client import LocalClient
from overlay.errors import UserError
from tests.lab.netns import Lab, Namespace, pids, wait_for

OVERLAY = str(Path(sys.executable).parent / "overlay")
SERVER_ADDRESS = "198.51.100.1"
RESOLVER_ADDRESS = "198.51.100.53"
OUTSIDE_NAME = "www.example.org"
OUTSIDE_NAME_ADDRESS = "203.0.113.80"
START_TIMEOUT = 60.0  # s for a command that starts a daemon, on a busy machine


@dataclass
class Machine:
    """A namespace with the program on it, and a state folder of its own."""

    namespace: Namespace
    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.namespace.short_name

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.namespace.run(command, check=check, env=self._environment(), **options)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return self.namespace.popen(command, env=self._environment(), **options)

    def overlay(
        self, *arguments: str, check: bool = True, given: str | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `overlay` here, as a person would; `given` is its standard input."""
        options.setdefault("timeout", START_TIMEOUT)
        if given is not None:
            options["input"] = given
        return self.run(OVERLAY, *arguments, check=check, **options)

    def overlay_json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.overlay(*arguments, "--json", **options).stdout)

    def status(self) -> dict[str, Any]:
        """The daemon's own word, without a process for each question."""
        return LocalClient(self.state).request("GET", "/v1/status")

    def state_word(self) -> str:
        """`starting`, `connected`, `offline`, …; `stopped` if no daemon answers."""
        try:
            return str(self.status()["state"])
        except UserError as error:
            if error.code == "not-running":
                return "stopped"
            raise

    def wait_for_state(self, word: str, timeout: float = 30.0) -> None:
        wait_for(lambda: self.state_word() == word, f"{self.name} is {word}", timeout)

    def peer(self, name: str) -> dict[str, Any] | None:
        """What this machine knows of one peer; None before the map has it."""
        found = [peer for peer in self.status()["peers"] if peer["name"] == name]
        return found[0] if found else None

    def path_kind(self, peer: str) -> str | None:
        known = self.peer(peer)
        return known["path"]["kind"] if known and known["path"] else None

    def resolv_conf(self) -> str:
        return self.run("cat", "/etc/resolv.conf").stdout

    def daemon_pid(self) -> int | None:
        """The process of the daemon on this machine's state folder."""
        for pid in pids(self.namespace.name):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if command[1:2] == [b"-m"] and f"OVERLAY_STATE={self.state}\0".encode() in environment:
                return pid
        return None

    def kill_daemon(self) -> None:
        """As a crash would: no word to anybody. Returns when the process is gone."""
        pid = self.daemon_pid()
        assert pid is not None, f"no daemon runs on {self.name}"
        os.kill(pid, signal.SIGKILL)
        wait_for(self.is_still, f"the daemon of {self.name} is gone")

    def is_still(self) -> bool:
        return self.daemon_pid() is None

    def memory_mb(self) -> float:
        """Resident memory of the daemon, MB."""
        for line in Path(f"/proc/{self.daemon_pid()}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise AssertionError(f"no daemon runs on {self.name}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAY_")}
        return {**kept, "OVERLAY_STATE": str(self.state), **self.environment}


@dataclass
class Network:
    """One lab with one overlay network on it, or the makings of one."""

    lab: Lab
    internet: Namespace
    machines: dict[str, Machine] = field(default_factory=dict)
    invites: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    @property
    def server(self) -> Machine:
        return self.machines["server"]

    def machine(self, namespace: Namespace) -> Machine:
        """Put the program on a namespace."""
        made = Machine(namespace, self.lab.directory / namespace.short_name)
        self.machines[made.name] = made
        return made

    def start_server(self, *arguments: str) -> dict[str, Any]:
        """First start, or a later one; returns what the command printed with --json."""
        document: dict[str, Any] = self.server.overlay_json("server", "--public", SERVER_ADDRESS, *arguments)
        return document

    def invite(self, *arguments: str) -> str:
        return self.server.overlay("invite", *arguments).stdout.strip()

    def join(self, *names: str) -> None:
        """Bring machines up, each with an invite of its own that no process list shows."""
        for name in names:
            self[name].overlay("up", "-", "--name", name, "--quiet", given=self.invite())

    def address(self, name: str, family: int = 4) -> str:
        """The overlay address of a machine that is up."""
        addresses: Sequence[str] = self[name].status()["addresses"]
        return next(address for address in addresses if (":" in address) == (family == 6))

    def both_go_by(self, a: str, b: str, *kinds: str) -> bool:
        """Do packets go by such a path now, from a to b and back? Each direction has a path of its own: one may still
        be relayed when the other is direct. Sends one each way, as what is idle has no path."""
        with ThreadPoolExecutor(2) as pool:
            pings = [pool.submit(self._ping, *pair) for pair in ((a, b), (b, a))]
        return all(ping.result() for ping in pings) and self[a].path_kind(b) in kinds and self[b].path_kind(a) in kinds

    def _ping(self, source: str, target: str) -> bool:
        command = ("ping", "-n", "-c", "1", "-W", "5", self.address(target))
        return self[source].run(*command, check=False).returncode == 0

    def stop_all(self) -> None:
        """`overlay down` wherever a daemon runs, the server last."""
        for machine in sorted(self.machines.values(), key=lambda each: each.name == "server"):
            if machine.daemon_pid() is not None:
                machine.overlay("down", "--quiet")


def build_internet(lab: Lab, public: Sequence[tuple[Namespace, str]]) -> Namespace:
    """The switch that all are on, with a resolver that knows `OUTSIDE_NAME` alone."""
    internet = lab.namespace("internet")
    members = [(namespace, f"{address}/24") for namespace, address in public]
    lab.bridge(internet, [f"{RESOLVER_ADDRESS}/24"], members)
    start_dns(internet, RESOLVER_ADDRESS, 53, OUTSIDE_NAME, OUTSIDE_NAME_ADDRESS)
    return internet


def start_dns(namespace: Namespace, address: str, port: int, name: str, answer: str) -> "subprocess.Popen[str]":
    """A real DNS server (dnsmasq) that knows one name."""
    return namespace.popen(
        [
            *("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="),
            *("--user=root", "--bind-dynamic", f"--listen-address={address}", f"--port={port}"),
            *("--local-ttl=60", f"--address=/{name}/{answer}", "--log-facility=/dev/null"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_web(namespace: Namespace, folder: Path, port: int = 80) -> "subprocess.Popen[str]":
    """A real web server (busybox httpd) on all addresses of the machine, IPv4 and IPv6."""
    return namespace.popen(
        ["busybox", "httpd", "-f", "-p", f"[::]:{port}", "-h", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _behind_nat(lab: Lab, nat: Namespace, inside: str, nodes: Sequence[tuple[Namespace, str]]) -> None:
    """`nodes` on one switch of the home router `nat`; its way out gives each flow a port of its own (symmetric NAT)."""
    gateway = f"{inside}.1"
    lab.bridge(nat, [f"{gateway}/24"], [(node, f"{inside}.{host}/24") for node, host in nodes])
    lab.nat(nat, "eth0", random_ports=True)
    for node, _ in nodes:
        node.route("default", gateway)
        node.resolv_conf.write_text(f"# the machine's own\nnameserver {RESOLVER_ADDRESS}\n")


def two_homes(lab: Lab) -> Network:
    """Two homes behind symmetric NATs (a and c in one, b in the other), a server, a user, a stranger: see above."""
    names = ("server", "a-nat", "b-nat", "user", "stranger", "a", "b", "c")
    spaces = {name: lab.namespace(name) for name in names}
    public = {"server": SERVER_ADDRESS, "a-nat": "198.51.100.11", "b-nat": "198.51.100.12"}
    public |= {"user": "198.51.100.90", "stranger": "198.51.100.91"}
    network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
    _behind_nat(lab, spaces["a-nat"], "192.168.1", [(spaces["a"], "10"), (spaces["c"], "11")])
    _behind_nat(lab, spaces["b-nat"], "192.168.2", [(spaces["b"], "10")])
    for name in ("server", "a", "b", "c", "stranger"):
        network.machine(spaces[name])
    return network


def one_lan(lab: Lab) -> Network:
    """A server and two nodes that all see each other: nodes find the direct path."""
    spaces = {name: lab.namespace(name) for name in ("server", "a", "b")}
    public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "b": "198.51.100.22"}
    network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
    for name, space in spaces.items():
        space.resolv_conf.write_text(f"# the machine's own\nnameserver {RESOLVER_ADDRESS}\n")
        network.machine(spaces[name])
    return network


TOPOLOGIES = {"two-homes": two_homes, "one-lan": one_lan}
