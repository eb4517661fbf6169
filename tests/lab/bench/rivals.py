"""The others: programs that do the same work, each set up as its manual has it, with the MTU that it would choose."""

import base64
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.lab.bench.certificates import Identity, rsa_pair
from tests.lab.bench.contenders import (
    HOST_A,
    HOST_B,
    INNER_A,
    INNER_B,
    Contender,
    Ends,
    strangers_of,
)
from tests.lab.engines import EngineHost, Key
from tests.lab.netns import Namespace, wait_for

WIREGUARD_PORT, OUR_PORT = 51820, 41641
WIREGUARD_OVERHEAD = 80  # bytes: what `wg-quick` takes off the outside interface's MTU
NOT_DRIVEN = ("easytier-core", "tailscaled")
"""Of those worth comparing with, the programs that this file cannot start."""


class Rival(Contender, Protocol):
    @property
    def program(self) -> str: ...


def _start(namespace: Namespace, name: str, command: Sequence[str], **environment: str) -> int:
    """Start a daemon in the foreground, its words in a file of the lab; its process id."""
    log_path = namespace.lab.directory / f"{namespace.short_name}-{name}.log"
    with log_path.open("w") as log:
        process = namespace.popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    return process.pid


def _has_interface(namespace: Namespace, interface: str) -> bool:
    return namespace.run(["ip", "link", "show", interface], check=False).returncode == 0


def wireguard_mtu(namespace: Namespace) -> int:
    """What `wg-quick` would set here."""
    return int(namespace.run(["cat", "/sys/class/net/eth0/mtu"]).stdout) - WIREGUARD_OVERHEAD


class WireGuardEnd:
    """One machine with a user-space WireGuard that `wg` configures."""

    def __init__(self, namespace: Namespace, name: str, command: Sequence[str], address: str) -> None:
        self.namespace = namespace
        self.key = Key()
        # The control socket is named after the interface, in a folder that all namespaces share.
        self.interface = namespace.name[:15]
        self.process = _start(
            namespace, name, [*command, self.interface], LOG_LEVEL="error", WG_LOG_LEVEL="error", WG_THREADS="2"
        )
        wait_for(lambda: namespace.run(["wg", "show", self.interface], check=False).returncode == 0, f"{name} is up")
        self.set("listen-port", str(WIREGUARD_PORT), "private-key", "/dev/stdin", given=self.key.private_text)
        namespace.address(self.interface, f"{address}/24")
        settings = ["mtu", str(wireguard_mtu(namespace)), "txqueuelen", "1000", "up"]
        namespace.run(["ip", "link", "set", self.interface, *settings])

    def set(self, *words: str, given: str = "") -> None:
        self.namespace.run(["wg", "set", self.interface, *words], input=given)

    def peer(self, key: Key, inner: str, endpoint: str) -> None:
        self.set("peer", key.public_text, "allowed-ips", f"{inner}/32", "endpoint", endpoint)


class WireGuard:
    """A user-space WireGuard at both ends: wireguard-go, boringtun."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.program = command[0]
        self.command = command

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        ours = WireGuardEnd(a, self.name, self.command, INNER_A)
        theirs = WireGuardEnd(b, self.name, self.command, INNER_B)
        words: list[str] = []
        for key, network in strangers_of(strangers):
            words += ["peer", base64.b64encode(key).decode(), "allowed-ips", network]
        if words:
            ours.set(*words)
        theirs.peer(ours.key, INNER_A, f"{HOST_A}:{WIREGUARD_PORT}")
        ours.peer(theirs.key, INNER_B, f"{HOST_B}:{WIREGUARD_PORT}")
        return Ends(self.name, a, b, processes_a=[ours.process], processes_b=[theirs.process])


class OverlayWithWireGuard:
    """Our engine on a, a stock WireGuard on b: type 4 messages between them."""

    def __init__(self, stock: WireGuard) -> None:
        self.name = f"overlay ↔ {stock.name}"
        self._stock = stock

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        theirs = WireGuardEnd(b, self._stock.name, self._stock.command, INNER_B)
        options = ["--mtu", str(wireguard_mtu(a))]
        ours = EngineHost(a, Key(), 2, port=OUR_PORT, addresses=[f"{INNER_A}/24"], options=options)
        endpoint = (HOST_B, WIREGUARD_PORT)
        ours.peer(theirs.key, 3, [f"{INNER_B}/32"], [endpoint], transport="wireguard")
        theirs.peer(ours.key, INNER_A, f"{HOST_A}:{OUR_PORT}")
        return Ends(self.name, a, b, processes_a=[ours.process.pid], processes_b=[theirs.process])


class Nebula:
    """Certificates of a common authority, a static host map, everything allowed."""

    name = "nebula"
    program = "nebula"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        folder = a.lab.directory / f"{a.short_name}-nebula"
        folder.mkdir()
        self._sign(folder, "ca", "-name", "bench")
        ours = self._start(a, folder, INNER_A, INNER_B, HOST_B)
        theirs = self._start(b, folder, INNER_B, INNER_A, HOST_A)
        return Ends(self.name, a, b, processes_a=[ours], processes_b=[theirs])

    def _sign(self, folder: Path, *words: str) -> None:
        subprocess.run(["nebula-cert", *words], cwd=folder, check=True, capture_output=True, timeout=30)

    def _start(self, machine: Namespace, folder: Path, inner: str, peer: str, peer_host: str) -> int:
        self._sign(folder, "sign", "-name", machine.short_name, "-ip", f"{inner}/24")
        configuration = folder / f"{machine.short_name}.yml"
        own = folder / machine.short_name
        configuration.write_text(
            f"pki: {{ca: {folder}/ca.crt, cert: {own}.crt, key: {own}.key}}\n"
            f'static_host_map: {{"{peer}": ["{peer_host}:4242"]}}\n'
            f"lighthouse: {{am_lighthouse: false}}\n"
            f"listen: {{host: 0.0.0.0, port: 4242}}\n"
            f"tun: {{dev: nebula1}}\n"
            f"logging: {{level: error, format: text}}\n"
            f"firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n"
            f"  inbound: [{{port: any, proto: any, host: any}}]\n"
        )
        process = _start(machine, self.name, ["nebula", "-config", str(configuration)])
        wait_for(lambda: _has_interface(machine, "nebula1"), "nebula is up")
        return process


class Tinc:
    """Version 1.0: RSA keys, a folder of hosts, a script that sets the address."""

    name = "tinc"
    program = "tincd"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        machines = (("left", a, INNER_A, HOST_A), ("right", b, INNER_B, HOST_B))
        processes = []
        pairs = {name: rsa_pair() for name, *_ in machines}
        for name, machine, inner, _ in machines:
            folder = machine.lab.directory / f"{machine.short_name}-tinc"
            (folder / "hosts").mkdir(parents=True)
            other = "right" if name == "left" else "left"
            (folder / "tinc.conf").write_text(f"Name = {name}\nConnectTo = {other}\nInterface = tinc0\n")
            (folder / "rsa_key.priv").write_text(pairs[name][0])
            (folder / "rsa_key.priv").chmod(0o600)
            up = folder / "tinc-up"
            up.write_text(f"#!/bin/sh\nip address add {inner}/24 dev $INTERFACE\nip link set $INTERFACE up\n")
            up.chmod(0o700)
            for each, _, its_inner, its_host in machines:
                host = f"Address = {its_host}\nSubnet = {its_inner}/32\n{pairs[each][1]}"
                (folder / "hosts" / each).write_text(host)
            command = ["tincd", "-c", str(folder), "-D", f"--pidfile={folder}/pid"]
            processes.append(_start(machine, self.name, command))
            wait_for(lambda machine=machine: _has_interface(machine, "tinc0"), "tinc is up")  # type: ignore[misc]
        return Ends(self.name, a, b, processes_a=[processes[0]], processes_b=[processes[1]])


class OpenVpn:
    """Point to point over UDP, with TLS and pinned certificates, AES-256-GCM."""

    name = "openvpn"
    program = "openvpn"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        identities = (Identity.new("left"), Identity.new("right"))
        ours = self._start(a, identities, "--tls-server", "--dh", "none", here=INNER_A, there=INNER_B, host=HOST_B)
        theirs = self._start(b, identities[::-1], "--tls-client", here=INNER_B, there=INNER_A, host=HOST_A)
        return Ends(self.name, a, b, processes_a=[ours], processes_b=[theirs])

    def _start(
        self, machine: Namespace, identities: tuple[Identity, Identity], *role: str, here: str, there: str, host: str
    ) -> int:
        own, peer = identities
        certificate, key = (machine.lab.directory / f"{machine.short_name}-openvpn.{kind}" for kind in ("crt", "key"))
        certificate.write_text(own.certificate)
        key.touch(mode=0o600)
        key.write_text(own.key)
        command = [
            *("openvpn", "--dev", "tun0", "--dev-type", "tun", "--proto", "udp", "--remote", host, "--port", "1194"),
            *("--ifconfig", here, there, "--cert", str(certificate), "--key", str(key)),
            *("--peer-fingerprint", peer.fingerprint, "--data-ciphers", "AES-256-GCM", "--verb", "1", *role),
        ]
        process = _start(machine, self.name, command)
        wait_for(lambda: _has_interface(machine, "tun0"), "openvpn is up")
        return process


def found_rivals(wireguard_go: str | None = None) -> list[Rival]:
    """Those on PATH that can be driven. `wireguard_go`: a file to use instead of what is on PATH."""
    found: list[Rival] = []
    if (program := wireguard_go or shutil.which("wireguard-go")) and shutil.which("wg"):
        found.append(WireGuard("wireguard-go", [program, "--foreground"]))
    if shutil.which("boringtun-cli") and shutil.which("wg"):
        found.append(WireGuard("boringtun", ["boringtun-cli", "--foreground", "--disable-drop-privileges"]))
    if shutil.which("nebula") and shutil.which("nebula-cert"):
        found.append(Nebula())
    if shutil.which("tincd"):
        found.append(Tinc())
    if shutil.which("openvpn"):
        found.append(OpenVpn())
    return found


def found_not_driven() -> list[str]:
    return [program for program in NOT_DRIVEN if shutil.which(program)]
