"""The others: programs that do the same work, each set up as its manual has it, with the MTU that it would choose."""

import base64
import functools
import secrets
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from tests.lab.bench.daemon import has_interface, start
from tests.lab.bench.tailscale import Tailscale
from tests.lab.engines import EngineHost, Key
from tests.lab.netns import Namespace
from tests.lab.wireguard import is_controllable

WIREGUARD_PORT, OUR_PORT = 51820, 41641
WIREGUARD_OVERHEAD = 80  # bytes: what `wg-quick` takes off the outside interface's MTU


class Rival(Contender, Protocol):
    @property
    def program(self) -> str:
        """The daemon, which tells its version."""


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
        self.process = start(
            namespace,
            name,
            [*command, self.interface],
            lambda: is_controllable(namespace, self.interface),
            LOG_LEVEL="error",
            WG_LOG_LEVEL="error",
            WG_THREADS="2",
        )
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
        command = ["nebula", "-config", str(configuration)]
        return start(machine, self.name, command, lambda: has_interface(machine, "nebula1"))


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
            up_there = functools.partial(has_interface, machine, "tinc0")
            processes.append(start(machine, self.name, command, up_there))
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
        return start(machine, self.name, command, lambda: has_interface(machine, "tun0"))


class EasyTier:
    """Each knows the other's address; encryption as it is by default."""

    name = "easytier"
    program = "easytier-core"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        secret = secrets.token_urlsafe()
        ours = self._start(a, secret, INNER_A, HOST_B)
        theirs = self._start(b, secret, INNER_B, HOST_A)
        return Ends(self.name, a, b, processes_a=[ours], processes_b=[theirs])

    def _start(self, machine: Namespace, secret: str, inner: str, peer_host: str) -> int:
        configuration = machine.lab.directory / f"{machine.short_name}-easytier.toml"
        configuration.touch(mode=0o600)
        configuration.write_text(easytier_configuration(machine.short_name, secret, inner, peer_host))
        command = [self.program, "--config-file", str(configuration)]
        return start(machine, self.name, command, lambda: has_interface(machine, "easytier0"))


def easytier_configuration(name: str, secret: str, inner: str, peer_host: str) -> str:
    """Its file, in TOML. An address without a length is one of a /24."""
    return (
        f'instance_name = "{name}"\nhostname = "{name}"\nipv4 = "{inner}"\ndhcp = false\n'
        f'listeners = ["udp://0.0.0.0:11010"]\nrpc_portal = "127.0.0.1:15888"\n'
        f'[network_identity]\nnetwork_name = "bench"\nnetwork_secret = "{secret}"\n'
        f'[[peer]]\nuri = "udp://{peer_host}:11010"\n'
        f'[flags]\ndev_name = "easytier0"\n'
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program of another maker, and what it takes to drive it: `needs` are further programs, each with what it is."""

    program: str
    needs: Mapping[str, str]
    driver: Callable[[str], Rival]  # from the daemon's file or name


_WG = {"wg": "sets it up"}
CANDIDATES = (
    Candidate("wireguard-go", _WG, lambda file: WireGuard("wireguard-go", [file, "--foreground"])),
    Candidate(
        "boringtun-cli", _WG, lambda file: WireGuard("boringtun", [file, "--foreground", "--disable-drop-privileges"])
    ),
    Candidate("nebula", {"nebula-cert": "makes its certificates"}, lambda _: Nebula()),
    Candidate("tincd", {}, lambda _: Tinc()),
    Candidate("openvpn", {}, lambda _: OpenVpn()),
    Candidate("easytier-core", {}, lambda _: EasyTier()),
    Candidate(
        "tailscaled",
        {"tailscale": "sets it up", "headscale": "its control server"},
        lambda _: Tailscale(),
    ),
)


def found_rivals(wireguard_go: str | None = None) -> tuple[list[Rival], dict[str, str]]:
    """Those on PATH, and why others are left out, by program. `wireguard_go`: a file to use instead of that on PATH."""
    found: list[Rival] = []
    left_out: dict[str, str] = {}
    for each in CANDIDATES:
        given = wireguard_go if each.program == "wireguard-go" else None
        if shutil.which(given or each.program) is None:
            left_out[each.program] = f"left out: {given} is no program" if given else "left out: not on PATH"
        elif missing := [f"{name} ({what})" for name, what in each.needs.items() if shutil.which(name) is None]:
            left_out[each.program] = f"left out: it also takes {' and '.join(missing)}, not on PATH"
        else:
            found.append(each.driver(given or each.program))
    return found, left_out
