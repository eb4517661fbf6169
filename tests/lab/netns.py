"""Networks of kernel namespaces for tests and the demo: machines, links, bridges, NATs, firewalls.

It knows nothing of the program under test. It calls `ip` and `nft` rather than the libraries that the program uses, so
that what it builds does not rest on what it checks.

All that a `Lab` makes carries its prefix (`ov` and four random letters), so that several labs run side by side, and one
that was killed can be swept by the next: the record in `RECORDS` says which process owned it. Links live only inside
the lab's namespaces and end with them.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import string
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

RECORDS = Path("/run/overlay-lab")
"""One file per living lab: who owns it, where its files are. Root's alone: what stands here gets killed and removed."""

NAMESPACES = Path("/run/netns")
CONFIGURATION = Path("/etc/netns")

CLONE_NEWNET = 0x40000000
INTERFACE_NAME_LIMIT = 15  # IFNAMSIZ less its final zero
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 4.0  # s that processes get between SIGTERM and SIGKILL

Addresses = str | Sequence[str]
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for(outcome: Callable[[], T], what: str, timeout: float = 10.0, interval: float = 0.02) -> T:
    """Ask `outcome` until it is truthy and return that; TimeoutError (with the last answer) after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        answer = outcome()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s; last answer: {answer!r}")
        time.sleep(interval)


def _call(*argv: str, given: str | None = None) -> str:
    """Run a tool of the host; its standard error becomes a note of the error."""
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=True, timeout=30)
    except subprocess.CalledProcessError as error:
        error.add_note(str(error.stderr))
        raise
    return done.stdout


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _listed(addresses: Addresses) -> list[str]:
    return [addresses] if isinstance(addresses, str) else list(addresses)


@dataclass
class Namespace:
    """One machine of the lab. `name` is the namespace's full name (`ip netns exec NAME`)."""

    lab: "Lab"
    short_name: str
    name: str
    interfaces: list[str] = field(default_factory=list)

    @property
    def resolv_conf(self) -> Path:
        """What programs run here see as /etc/resolv.conf."""
        return CONFIGURATION / self.name / "resolv.conf"

    @property
    def hosts(self) -> Path:
        """What programs run here see as /etc/hosts."""
        return CONFIGURATION / self.name / "hosts"

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, command: Sequence[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run to the end; output is captured as text unless `options` (of `subprocess.run`) say otherwise."""
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        if "stdout" not in options and "stderr" not in options:
            options.setdefault("capture_output", True)
        options.setdefault("text", True)
        options.setdefault("timeout", 60)
        try:
            return subprocess.run(self.argv(command), check=check, **options)
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout or ''}{error.stderr or ''}")
            raise

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start and track: what still runs when the lab ends is ended by its id. Text mode unless told otherwise."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("text", True)
        options.setdefault("start_new_session", True)  # Ctrl-C reaches the lab alone, which ends them in order
        process = subprocess.Popen(self.argv(command), **options)
        self.lab.processes.append(process)
        return process

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread works in this namespace's network: sockets made inside the block belong to it."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            wanted = os.open(NAMESPACES / self.name, os.O_RDONLY)
            try:
                _set_namespace(wanted)
            finally:
                os.close(wanted)
            try:
                yield
            finally:
                _set_namespace(before)
        finally:
            os.close(before)

    def set(self, key: str, value: int | str) -> None:
        """Set a kernel parameter of this namespace, named as `sysctl` does (`net.ipv4.ip_forward`)."""
        with self.enter():
            Path("/proc/sys", *key.split(".")).write_text(f"{value}\n")

    def route(self, destination: str, via: str) -> None:
        family = "-6" if ":" in via else "-4"
        _call("ip", family, "-n", self.name, "route", "add", destination, "via", via)

    def address(self, interface: str, *addresses: str) -> None:
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            _call("ip", "-n", self.name, "address", "add", address, "dev", interface, *nodad)

    def link_state(self, interface: str, *, up: bool) -> None:
        _call("ip", "-n", self.name, "link", "set", interface, "up" if up else "down")

    def rules(self, ruleset: str) -> None:
        """Load an nftables ruleset here (nft syntax)."""
        self.run(["nft", "-f", "-"], input=ruleset)

    def forward(self) -> None:
        """This machine is a router."""
        self.set("net.ipv4.ip_forward", 1)
        self.set("net.ipv6.conf.all.forwarding", 1)

    def firewall(self, outside: str) -> None:
        """Nothing new comes in over `outside`, for this machine or those behind it; answers do."""
        self.rules(
            f"""
            table inet overlay_lab_filter {{
                chain input {{
                    type filter hook input priority filter; policy accept;
                    iifname "{outside}" ct state new drop
                }}
                chain forward {{
                    type filter hook forward priority filter; policy accept;
                    iifname "{outside}" ct state new drop
                }}
            }}
            """
        )

    def block(self, rule: str) -> None:
        """Drop what `rule` matches (`udp dport 443`), in every direction, until `unblock`."""
        self.rules(
            f"""
            table inet overlay_lab_block {{
                chain input {{ type filter hook input priority -10; policy accept; {rule} drop; }}
                chain output {{ type filter hook output priority -10; policy accept; {rule} drop; }}
                chain forward {{ type filter hook forward priority -10; policy accept; {rule} drop; }}
            }}
            """
        )

    def unblock(self) -> None:
        self.rules("table inet overlay_lab_block {}\ndelete table inet overlay_lab_block\n")

    def next_interface(self) -> str:
        return f"eth{len(self.interfaces)}"


class Lab:
    """A context manager that makes namespaces and leaves nothing behind, whichever way it ends.

    SIGTERM and SIGHUP become KeyboardInterrupt while it is open (main thread only), as SIGINT does, so that all of them
    clean up; signals that come during the clean-up wait for its end. Files of the run belong in `directory`.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self.directory = Path()
        self.namespaces: dict[str, Namespace] = {}
        self.processes: list[subprocess.Popen[Any]] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("a lab of network namespaces needs root")
        with _signals_held():
            sweep()
            self._claim_prefix()
            if threading.current_thread() is threading.main_thread():
                for number in END_SIGNALS:  # SIGINT too: a shell's background jobs start with it ignored
                    self._handlers[number] = signal.signal(number, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _signals_held():
            self.stop_processes()
            _remove(self.prefix, self.directory)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()

    def _claim_prefix(self) -> None:
        RECORDS.mkdir(mode=0o700, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="overlay-lab-"))
        self.directory.chmod(0o755)  # some tests run programs here as another user
        owner = {"pid": os.getpid(), "started": started(os.getpid()), "directory": str(self.directory)}
        while True:
            self.prefix = "ov" + "".join(random.choices(string.ascii_lowercase, k=4))
            try:
                with (RECORDS / self.prefix).open("x") as record:
                    json.dump(owner, record)
                return
            except FileExistsError:
                continue

    def namespace(self, name: str) -> Namespace:
        """A new machine: loopback up, its own resolv.conf (no nameserver), hosts and nsswitch.conf."""
        machine = Namespace(self, name, f"{self.prefix}-{name}")
        configuration = CONFIGURATION / machine.name
        while not configuration.is_dir():
            with contextlib.suppress(FileNotFoundError):  # a lab that ends right now took the empty parent away
                configuration.mkdir(parents=True)
        (configuration / "resolv.conf").write_text("# no nameserver yet\n")
        (configuration / "nsswitch.conf").write_text("hosts: files dns\n")
        (configuration / "hosts").write_text(f"127.0.0.1 localhost {name}\n::1 localhost\n")
        _call("ip", "netns", "add", machine.name)
        _call("ip", "-n", machine.name, "link", "set", "lo", "up")
        with machine.enter():
            # Addresses work at once, and no tool waits for a duplicate that cannot be.
            for scope in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0\n")
        self.namespaces[name] = machine
        return machine

    def link(self, a: Namespace, addresses_a: Addresses, b: Namespace, addresses_b: Addresses) -> tuple[str, str]:
        """A cable between two machines; returns the interface names at either end (`eth0`, `eth1`, … per machine)."""
        ends = ((a, a.next_interface(), addresses_a), (b, b.next_interface(), addresses_b))
        _call(
            *("ip", "link", "add", "name", ends[0][1], "netns", a.name, "type", "veth"),
            *("peer", "name", ends[1][1], "netns", b.name),
        )
        for machine, interface, addresses in ends:
            machine.interfaces.append(interface)
            machine.address(interface, *_listed(addresses))
            machine.link_state(interface, up=True)
        return ends[0][1], ends[1][1]

    def bridge(
        self, host: Namespace, addresses: Addresses, members: Iterable[tuple[Namespace, Addresses]], name: str = "br0"
    ) -> str:
        """A switch on `host` (which has `addresses` itself, maybe none) with a cable to each member."""
        if len(name) > INTERFACE_NAME_LIMIT:
            raise ValueError(f"interface name too long: {name}")
        _call("ip", "-n", host.name, "link", "add", name, "type", "bridge", "forward_delay", "0")
        host.address(name, *_listed(addresses))
        host.link_state(name, up=True)
        for member, member_addresses in members:
            port, _ = self.link(host, [], member, member_addresses)
            _call("ip", "-n", host.name, "link", "set", port, "master", name)
        return name

    def nat(self, machine: Namespace, outside: str, *, random_ports: bool = False) -> None:
        """`machine` routes for those behind it, hides them behind its own address, and lets nothing new in.

        With `random_ports` each flow gets an outside port of its own, as a symmetric NAT does: what one peer sees of a
        socket is of no use to another. Without it Linux keeps the inside port where it can.
        """
        random_flag = " fully-random" if random_ports else ""
        machine.forward()
        machine.rules(
            f"""
            table inet overlay_lab_nat {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    oifname "{outside}" masquerade{random_flag}
                }}
            }}
            """
        )
        machine.firewall(outside)

    def stop_processes(self) -> None:
        """End all tracked processes, by their ids, politely first."""
        living = [process for process in self.processes if process.poll() is None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self.processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.processes.clear()


def pids(namespace: str) -> list[int]:
    """The processes whose network is that namespace, this one excepted."""
    listed = _call("ip", "netns", "pids", namespace).split()
    return [int(pid) for pid in listed if int(pid) != os.getpid()]


def sweep() -> None:
    """Remove what labs left behind whose owner is gone (killed, or the machine lost power)."""
    if not RECORDS.is_dir():
        return
    with (RECORDS / ".sweep").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for record in sorted(RECORDS.glob("ov*")):
            try:
                owner: Mapping[str, Any] = json.loads(record.read_text())
            except ValueError:
                owner = {}  # its owner died, or is alive, between creating and writing it: see the age
                if time.time() - record.stat().st_mtime < 10:
                    continue
            except FileNotFoundError:
                continue  # that lab has just ended
            if owner and started(owner["pid"]) == owner["started"]:
                continue
            _remove(record.name, Path(owner["directory"]) if owner else None)


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its id, this names it for good. None: no such process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] == "Z" else int(after_name[19])


def _remove(prefix: str, directory: Path | None) -> None:
    """End what runs in the namespaces of `prefix`, then remove those, their configuration, the files and the record."""
    names = sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))
    for number in (signal.SIGTERM, signal.SIGKILL):
        living = [pid for name in names for pid in pids(name)]
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE
        while any(started(pid) is not None for pid in living) and time.monotonic() < deadline:
            time.sleep(0.01)
    for name in names:
        _call("ip", "netns", "delete", name)
    for configuration in CONFIGURATION.glob(f"{prefix}-*"):
        shutil.rmtree(configuration)
    with contextlib.suppress(OSError):  # somebody else's namespaces have theirs here
        CONFIGURATION.rmdir()
    if directory is not None:
        for mount in _mounts_below(directory):
            _call("umount", "--lazy", str(mount))
        shutil.rmtree(directory, ignore_errors=True)
    (RECORDS / prefix).unlink(missing_ok=True)


def _mounts_below(directory: Path) -> list[Path]:
    points = (Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines())
    return sorted((point for point in points if point.is_relative_to(directory)), reverse=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that end us wait until the block is done. Tools started inside are out of their reach, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
