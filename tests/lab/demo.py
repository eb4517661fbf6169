"""The main job, shown and checked: a server, nodes behind NATs, names, traffic, one port published, nothing left over.

Run by `scripts/demo`. Every step runs the program as a person would, and real clients and servers of the distribution
(ping, curl, dig, getent, dnsmasq, busybox httpd, tcpdump) do the talking. It works on the network `two_homes`.
"""

import argparse
import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from overlay.errors import Exit
from overlay.wire.control.invite import Invite
from tests.lab.eavesdrop import captured, holds
from tests.lab.netns import CONFIGURATION, NAMESPACES, Lab, wait_for
from tests.lab.report import Abandoned, Report
from tests.lab.topology import (
    OUTSIDE_NAME,
    OUTSIDE_NAME_ADDRESS,
    OVERLAY,
    SERVER_ADDRESS,
    Machine,
    Network,
    start_dns,
    start_web,
    two_homes,
)

LARGE = 100_000_000  # bytes of the transfers that are measured
SMALL = 4_000_000  # bytes of the transfer that is captured
PACED = 40_000_000  # bytes of the transfer during which the server restarts
PACE = 10_000_000  # bytes/s of that transfer
MEMORY_AIMS = {"node a": 90.0, "server": 100.0}  # MB; a server has database and QUIC libraries on top: 92 were seen
DNS_PORT = 5300  # of the DNS server on b: port 53 of its overlay address is the resolver's
SERVICE_NAME, SERVICE_ADDRESS = "service.example", "192.0.2.7"  # what that DNS server knows
PUBLIC_TCP, PUBLIC_UDP = 9000, 9053
NETWORK_CHECK = "a network: an internet, a server, two homes behind NATs, a user"


class Demo:
    """One run. Methods are its chapters, in order."""

    def __init__(self, network: Network, report: Report) -> None:
        self.network = network
        self.report = report
        self.server, self.a, self.b, self.c = (network[name] for name in ("server", "a", "b", "c"))
        self.user = network.lab.namespaces["user"]
        self.before: dict[str, str] = {}  # resolv.conf of each node

    def run(self) -> None:
        self.join()
        self.names()
        self.traffic()
        self.outsiders()
        self.publish()
        self.capture()
        self.restart()
        self.neighbours()
        self.memory()
        self.leave()

    # chapters --------------------------------------------------------------------------------------------------------

    def join(self) -> None:
        check = self.report.check
        self.report.heading("A server, and two nodes behind NATs of their own")
        self.before = {machine.name: machine.resolv_conf() for machine in (self.a, self.b, self.c)}
        started = time.monotonic()
        with check("server: first start", "s", needed=True) as step:
            invite = self.network.start_server()["invite"]
            step.value = time.monotonic() - started
        with check("node a: 'overlay up INVITE' to connected", "s", needed=True) as step:
            started = time.monotonic()
            status = self.a.overlay_json("up", invite, "--name", "a")
            step.value = time.monotonic() - started
            assert status["state"] == "connected", status
        with check("node b: the same, the invite by standard input", "s", needed=True) as step:
            started = time.monotonic()
            self.network.join("b")
            step.value = time.monotonic() - started
            assert self.b.status()["state"] == "connected", self.b.status()
        with check("node a knows of b", "s") as step:
            started = time.monotonic()
            wait_for(lambda: (self.a.peer("b") or {}).get("online"), "b is online for a", timeout=5)
            step.value = time.monotonic() - started
            assert step.value < 1, "it took longer than a second"

    def names(self) -> None:
        check = self.report.check
        self.report.heading("Names")
        address = self.network.address("b")
        with check("dig finds b.local.test on a", "ms") as step:
            answer = self.a.run("dig", "b.local.test").stdout
            assert f"A\t{address}" in answer, answer
            step.value = float(_found(r"Query time: (\d+) msec", answer))
        with check("getent finds b.local.test on a"):
            found = self.a.run("getent", "ahosts", "b.local.test").stdout
            assert {address, self.network.address("b", 6)} <= set(found.split()), found
        with check("the address leads back to the name"):
            assert self.a.run("dig", "+short", "-x", address).stdout == "b.local.test.\n"
        with check("a name that nobody has is NXDOMAIN"):
            assert "status: NXDOMAIN" in self.a.run("dig", "nobody.local.test").stdout
        with check("other names are found as before"):
            assert self.a.run("dig", "+short", OUTSIDE_NAME).stdout.strip() == OUTSIDE_NAME_ADDRESS

    def traffic(self) -> None:
        check = self.report.check
        self.report.heading("Traffic between a and b, by the relay")
        with check("first ping, sessions and all", "ms") as step:
            step.value = _trip(self.a.run("ping", "-4", "-c", "1", "-W", "5", "b.local.test").stdout)
        with check("round trip", "ms") as step:
            answer = self.a.run("ping", "-4", "-c", "10", "-i", "0.05", "-q", "b.local.test").stdout
            step.value = float(_found(r"= [\d.]+/([\d.]+)/", answer))
        with check("ping over IPv6 inside", "ms") as step:
            step.value = _trip(self.a.run("ping", "-6", "-c", "1", "-W", "5", "b.local.test").stdout)
        with check("the path is the relay"):
            assert self.a.path_kind("b") == "relay", self.a.peer("b")

        for machine in (self.a, self.b, self.c):
            folder = _web_folder(machine)
            (folder / "index.html").write_text(f"This is {machine.name}.\n")
            start_web(machine.namespace, folder)
        overlay_address = self.network.address("b")
        start_dns(self.b.namespace, f"127.0.0.1,{overlay_address}", DNS_PORT, SERVICE_NAME, SERVICE_ADDRESS)
        with check("curl of the web server on b by name", "ms") as step:
            started = time.monotonic()
            wait_for(lambda: _page(self.a, "http://b.local.test/") == "This is b.\n", "the page of b")
            step.value = (time.monotonic() - started) * 1000
        with check("the same over IPv6"):
            assert _page(self.a, "http://b.local.test/", "-6") == "This is b.\n"
        with check("a UDP service on b: its DNS server answers dig", "ms") as step:
            question = ("dig", "+tries=2", "-p", str(DNS_PORT), "@b.local.test", SERVICE_NAME)
            answer = wait_for(lambda: self.a.run(*question, check=False).stdout, "an answer of the DNS server")
            assert f"A\t{SERVICE_ADDRESS}" in answer, answer
            step.value = float(_found(r"Query time: (\d+) msec", answer))
        with check("100 MB from b to a by the relay, SHA-256 equal", "Gb/s") as step:
            step.value = self.transfer(self.b, self.a, LARGE)
        with check("100 MB from a to b by the relay, SHA-256 equal", "Gb/s") as step:
            step.value = self.transfer(self.a, self.b, LARGE)

    def outsiders(self) -> None:
        check = self.report.check
        self.report.heading("Strangers")
        stranger = self.network["stranger"]
        address = self.network.address("b")
        # The server would even route for the stranger: what keeps it out is the network itself.
        self.server.namespace.forward()
        stranger.namespace.route(f"{address}/32", SERVER_ADDRESS)
        with check("b does not answer a stranger's packets"):
            assert stranger.run("ping", "-c", "2", "-i", "0.2", "-W", "1", address, check=False).returncode != 0
            assert _page(stranger, f"http://{address}/") is None
        with check("an invite that the server never made is refused"):
            invite = Invite.parse(self.network.invite())
            forged = Invite(invite.addresses, invite.server_key, secrets.token_bytes(len(invite.secret)), invite.domain)
            refused = stranger.overlay("up", "-", "--name", "x", given=forged.encode(), check=False)
            assert refused.returncode == Exit.REFUSED, refused

    def publish(self) -> None:
        check = self.report.check
        self.report.heading("Services of b, published on the server")
        url = f"http://{SERVER_ADDRESS}:{PUBLIC_TCP}/"
        with check("overlay expose tcp://… and udp://…"):
            self.b.overlay("expose", "tcp://127.0.0.1:80", "--public", str(PUBLIC_TCP))
            self.b.overlay("expose", f"udp://127.0.0.1:{DNS_PORT}", "--public", str(PUBLIC_UDP))
        with check("a user's curl of the public port", "ms") as step:
            answer = self.user.run(["curl", "-sS", "--max-time", "10", "-w", "%{time_total}", url]).stdout
            page, seconds = answer.splitlines()
            assert page == "This is b.", answer
            step.value = float(seconds) * 1000
        with check("a user's UDP to the public port", "ms") as step:
            answer = self.user.run(["dig", "-p", str(PUBLIC_UDP), f"@{SERVER_ADDRESS}", SERVICE_NAME]).stdout
            assert f"A\t{SERVICE_ADDRESS}" in answer, answer
            step.value = float(_found(r"Query time: (\d+) msec", answer))
        with check("a public port that is taken is refused, its holder named"):
            refused = self.a.overlay("expose", "tcp://127.0.0.1:80", "--public", str(PUBLIC_TCP), check=False)
            assert refused.returncode != 0 and re.search(r"\bb\b", refused.stderr), refused
        with check("a service that is no longer published is gone"):
            for exposure in self.b.overlay_json("expose", "ls")["exposures"]:
                self.b.overlay("expose", "rm", exposure["id"])
            gone = self.user.run(["curl", "-sS", "--max-time", "3", url], check=False)
            assert gone.returncode != 0, gone

    def capture(self) -> None:
        """What passes the relay, against what passes inside: the same search must find the one and not the other."""
        self.report.heading("What the relay sees")
        unit = secrets.token_hex(32).encode()
        source = _web_folder(self.b) / "captured"
        source.write_bytes(unit * (SMALL // len(unit)))
        with self.report.check("a capture at the relay holds no byte sequence of the plaintext", "MB captured") as step:
            outside = self.network.lab.directory / "relay.pcap"
            inside = self.network.lab.directory / "inside.pcap"
            tunnel = self.b.status()["interface"]
            with captured(self.server.namespace, "eth0", outside), captured(self.b.namespace, tunnel, inside):
                _download(self.a, "http://b.local.test/captured", self.network.lab.directory / "captured")
            step.value = outside.stat().st_size / 1e6
            assert step.value * 1e6 > SMALL, "the capture is smaller than what was sent"
            assert holds(inside, unit), "the search does not even find the plaintext inside the tunnel"
            assert not holds(outside, unit), "the relay saw plaintext"

    def restart(self) -> None:
        self.report.heading("The server restarts in the middle of a transfer")
        source = _web_folder(self.b) / "paced"
        source.write_bytes(os.urandom(PACED))
        target = self.network.lab.directory / "paced"
        with self.report.check("the transfer completes; its longest pause", "s") as step:
            client = self.a.popen(
                *("curl", "-sS", "--max-time", "60", "--limit-rate", str(PACE), "-o", str(target)),
                "http://b.local.test/paced",
            )
            wait_for(lambda: target.exists() and target.stat().st_size > PACED // 10, "the transfer's beginning")
            self.server.overlay("down", "--quiet")
            restarted = self.server.popen(*_server_command(), stdout=subprocess.DEVNULL)
            step.value = _longest_pause(target, client)
            assert client.returncode == 0, f"curl ended with {client.returncode}"
            assert _digest(target) == _digest(source), "the SHA-256 differs"
            assert restarted.wait(30) == 0, "the server did not start again"
        with self.report.check("both nodes are connected again", "s") as step:
            started = time.monotonic()
            for machine in (self.a, self.b):
                machine.wait_for_state("connected")
            step.value = time.monotonic() - started

    def neighbours(self) -> None:
        check = self.report.check
        self.report.heading("Node c comes up beside a, on the same network")
        with check("two nodes on one network find the direct path", "s") as step:
            self.network.join("c")
            wait_for(lambda: self.a.peer("c"), "a knows of c")
            started = time.monotonic()
            pinging = self.a.popen("ping", "-i", "0.1", "c.local.test", stdout=subprocess.DEVNULL)
            wait_for(lambda: self.a.path_kind("c") == "lan", "a reaches c directly", timeout=15)
            step.value = time.monotonic() - started
            pinging.terminate()
        with check("round trip by the direct path", "ms") as step:
            answer = self.a.run("ping", "-4", "-c", "10", "-i", "0.05", "-q", "c.local.test").stdout
            step.value = float(_found(r"= [\d.]+/([\d.]+)/", answer))
        with check("100 MB by the direct path, SHA-256 equal", "Gb/s") as step:
            relayed = self.server.status()["relayed_bytes"]
            step.value = self.transfer(self.c, self.a, LARGE)
            assert self.server.status()["relayed_bytes"] - relayed < LARGE / 10, "much of it went by the relay"

    def memory(self) -> None:
        self.report.heading("Resident memory")
        for machine, what in ((self.a, "node a"), (self.server, "server")):
            with self.report.check(f"memory of {what}", "MB") as step:
                step.value = machine.memory_mb()
                assert step.value < MEMORY_AIMS[what], f"the aim is under {MEMORY_AIMS[what]:.0f} MB"

    def leave(self) -> None:
        self.report.heading("Leaving")
        with self.report.check("'overlay down' everywhere, the server last", "s") as step:
            started = time.monotonic()
            self.network.stop_all()
            step.value = time.monotonic() - started
        with self.report.check("interfaces and daemons are gone, resolv.conf is as it was"):
            for machine in self.network.machines.values():
                wait_for(machine.is_still, f"the daemon of {machine.name} is gone", timeout=2)
                links = machine.run("ip", "-o", "link").stdout
                assert "overlay" not in links, links
            for name, text in self.before.items():
                assert self.network[name].resolv_conf() == text, f"resolv.conf of {name} differs"

    # tools -----------------------------------------------------------------------------------------------------------

    def transfer(self, source: Machine, target: Machine, size: int) -> float:
        """Download a file of random bytes; returns Gb/s. AssertionError if it comes out different."""
        original = _web_folder(source) / "large"
        original.write_bytes(os.urandom(size))
        copy = self.network.lab.directory / f"large-on-{target.name}"
        seconds = _download(target, f"http://{source.name}.local.test/large", copy)
        assert _digest(copy) == _digest(original), "the SHA-256 differs"
        return size * 8 / seconds / 1e9


def _server_command() -> list[str]:
    return [OVERLAY, "server", "--public", SERVER_ADDRESS, "--quiet"]


def _web_folder(machine: Machine) -> Path:
    folder = machine.state.with_name(f"www-{machine.name}")
    folder.mkdir(exist_ok=True)
    return folder


def _page(machine: Machine, url: str, *options: str) -> str | None:
    """The page, or None if there is no answer."""
    done = machine.run("curl", "-sS", "--max-time", "3", *options, url, check=False)
    return done.stdout if done.returncode == 0 else None


def _download(machine: Machine, url: str, target: Path) -> float:
    """Seconds that it took."""
    done = machine.run("curl", "-sSf", "--max-time", "60", "-w", "%{time_total}", "-o", str(target), url, timeout=90)
    return float(done.stdout)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _trip(ping_output: str) -> float:
    return float(_found(r"time=([\d.]+) ms", ping_output))


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern!r} in: {text}"
    return match.group(1)


def _longest_pause(file: Path, writer: "subprocess.Popen[str]") -> float:
    """Seconds of the longest time that the file did not grow, while its writer ran."""
    size, grown, longest = 0, time.monotonic(), 0.0
    while writer.poll() is None:
        now, current = time.monotonic(), file.stat().st_size
        if current > size:
            size, grown = current, now
        longest = max(longest, now - grown)
        time.sleep(0.02)
    return longest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo", description="The whole program at work in network namespaces.")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, the rest beside it")
    report = Report(as_json=parser.parse_args(arguments).json)
    interfaces, resolv_conf = os.listdir("/sys/class/net"), Path("/etc/resolv.conf").read_bytes()
    lab = Lab()
    try:
        with lab:
            with contextlib.suppress(Abandoned):
                with report.check(NETWORK_CHECK, "machines", needed=True) as step:
                    network = two_homes(lab)
                    step.value = len(lab.namespaces)
                Demo(network, report).run()
            report.heading("Afterwards")
        with report.check("nothing is left: namespaces, interfaces, files, processes, resolv.conf"):
            for place in (NAMESPACES, CONFIGURATION):
                assert not list(place.glob(f"{lab.prefix}-*")), f"something is left in {place}"
            assert not lab.directory.exists(), f"{lab.directory} is left"
            assert sorted(os.listdir("/sys/class/net")) == sorted(interfaces), "the host's interfaces differ"
            assert Path("/etc/resolv.conf").read_bytes() == resolv_conf, "the host's resolv.conf differs"
            left = _processes_of(str(lab.directory))
            assert not left, f"processes are left: {left}"
    except KeyboardInterrupt:
        report.say("Interrupted; everything is taken down.")
        return Exit.INTERRUPTED
    report.finish()
    return Exit.DONE if report.ok else Exit.FAILED


def _processes_of(directory: str) -> list[int]:
    """Processes that have to do with the lab's folder, by command line or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended, or it is of a kind that not even root may look into
        if directory.encode() in said:
            found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
