"""Long cables for the lab, for kernels without netem: delay, loss, duplication, corruption, reordering, rate, queue.

The work is done by `delay_link.c`, compiled at first use. A `DelayLink` runs in a namespace of its own, between two
machines; it knows nothing of what travels on it.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.lab.netns import Addresses, Lab, Namespace

SOURCE = Path(__file__).with_suffix(".c")
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
ANSWER_TIMEOUT = 10.0  # s; it answers at once, unless the machine is very busy

_Counters = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the cable does, the same in either direction. Probabilities are 0 to 1."""

    delay: float = 0.0  # s, one way
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0  # one bit flipped; of UDP over IPv4 so that no checksum of the kernel's shows it
    reorder: float = 0.0  # held back by `hold`
    hold: float = 0.001  # s
    rate: float = 0.0  # bit/s; 0: no limit
    queue: int = 0  # bytes that may wait for their turn at `rate`; 0: no limit
    seed: int = 1

    def parameters(self) -> dict[str, int]:
        """As the program wants them: us, parts per million, bytes/s."""
        scale = {"delay": 1e6, "hold": 1e6, "rate": 1 / 8, "queue": 1, "seed": 1}
        return {name: round(value * scale.get(name, 1e6)) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Counters:
    """Frames in one direction.

    received + duplicated = forwarded + waiting + lost + queue_full + too_large + not_sent
    """

    received: int
    duplicated: int
    forwarded: int
    waiting: int
    lost: int  # by `loss`
    queue_full: int
    too_large: int  # a superpacket, or longer than a jumbo frame
    not_sent: int  # the interface at the other end refused it: down, or its MTU is smaller
    corrupted: int
    reordered: int
    overflowed: int  # dropped by the kernel before it was received: this machine is too slow for the experiment


def program() -> Path:
    """The compiled program, made now if this source has not been compiled by this user before. Needs gcc."""
    folder = Path(tempfile.gettempdir()) / f"overlay-lab-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    made = folder / f"delay_link-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            if shutil.which("gcc") is None:
                raise FileNotFoundError("the delay link needs gcc: install the packages gcc and libc6-dev")
            unfinished = made.with_suffix(".tmp")
            subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", str(unfinished), str(SOURCE)], check=True, timeout=60)
            unfinished.rename(made)
    return made


def finish_frames(machine: Namespace, interface: str) -> None:
    """The machine's kernel makes checksums and cuts superpackets before the cable, as a network card would.

    This is `ethtool --offload INTERFACE tx off`: without checksums the kernel allows no segmentation offload either.
    """
    order = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(order))
    with machine.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


class DelayLink:
    """A cable with `conditions` between two machines: `middle` is the namespace that it runs in.

    `interface_a` and `interface_b` are the machines' own ends, and have the addresses.
    """

    def __init__(
        self,
        lab: Lab,
        middle: str,
        a: Namespace,
        addresses_a: Addresses,
        b: Namespace,
        addresses_b: Addresses,
        conditions: Conditions,
    ) -> None:
        self.conditions = conditions
        self.namespace = lab.namespace(middle)
        # Nothing of the cable's own may travel on it.
        self.namespace.set("net.ipv6.conf.default.disable_ipv6", 1)
        self.interface_a, port_a = lab.link(a, addresses_a, self.namespace, [])
        port_b, self.interface_b = lab.link(self.namespace, [], b, addresses_b)
        for machine, interface in ((a, self.interface_a), (b, self.interface_b)):
            finish_frames(machine, interface)
        parameters = [f"{name}={value}" for name, value in conditions.parameters().items()]
        self._process: subprocess.Popen[str] = self.namespace.popen(
            [str(program()), port_a, port_b, *parameters], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        )
        self._answer()

    def change(self, **changes: float) -> None:
        """Other conditions from now on, named as in `Conditions`; what is under way stays as it was."""
        before = self.conditions.parameters()
        self.conditions = replace(self.conditions, **changes)  # type: ignore[arg-type]
        for name, value in self.conditions.parameters().items():
            if value != before[name]:
                self._ask(f"{name}={value}")

    def counters(self) -> tuple[Counters, Counters]:
        """From a to b, and from b to a."""
        there, back = ({name: each[name] for name in Counters.__slots__} for each in self._ask(""))
        return Counters(**there), Counters(**back)  # type: ignore[arg-type]

    def _ask(self, line: str) -> list[_Counters]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[_Counters]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            raise ChildProcessError(f"the delay link in {self.namespace.name} does not answer")
        counters: list[_Counters] = json.loads(line)
        return counters
