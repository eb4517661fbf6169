"""The long cable does what it is told, and counts every frame."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.delay_link import Conditions, Counters, DelayLink, program
from tests.lab.engines import transfer
from tests.lab.netns import Lab, Namespace

pytestmark = pytest.mark.lab

A, B = "198.51.100.1", "198.51.100.2"
DELAY = 0.010


class Cable:
    def __init__(self, lab: Lab) -> None:
        self.a, self.b = lab.namespace("a"), lab.namespace("b")
        self.link = DelayLink(lab, "w", self.a, f"{A}/24", self.b, f"{B}/24", Conditions(delay=DELAY))

    def times(self, count: int = 10) -> list[float]:
        """Round trips in ms, of the pings that came back."""
        done = self.a.run(["ping", "-n", "-c", str(count), "-i", "0.01", "-W", "1", B], check=False)
        return [float(line.partition("time=")[2].split()[0]) for line in done.stdout.splitlines() if "time=" in line]


@pytest.fixture
def cable() -> Iterator[Cable]:
    with Lab() as lab:
        yield Cable(lab)


def adds_up(counters: Counters) -> bool:
    gone = counters.lost + counters.queue_full + counters.too_large + counters.not_sent
    return counters.received + counters.duplicated == counters.forwarded + counters.waiting + gone


def test_delay_and_what_is_lost(cable: Cable) -> None:
    times = cable.times()
    assert len(times) == 10
    assert min(times) >= 2 * DELAY * 1000
    there, back = cable.link.counters()
    assert adds_up(there)
    assert adds_up(back)
    assert (there.lost, there.overflowed) == (0, 0)

    cable.link.change(loss=1.0)
    assert cable.times(3) == []
    after, _ = cable.link.counters()
    assert after.lost >= 3
    assert after.forwarded == there.forwarded

    cable.link.change(loss=0.0)
    assert len(cable.times(3)) == 3


def test_a_transfer_over_a_bad_cable_is_whole(cable: Cable) -> None:
    """Superpackets are cut before the cable, and its troubles are those that TCP is made for."""
    cable.link.change(delay=0.002, loss=0.002, duplicate=0.01, reorder=0.01)
    sent, received = transfer(cable.a, cable.b, B, 2_000_000)
    assert sent == received
    there, back = cable.link.counters()
    for each in (there, back):
        assert adds_up(each)
        assert each.too_large == each.overflowed == 0
    assert there.received > 1000
    assert min(there.lost, there.duplicated, there.reordered) > 0


def test_damage_reaches_the_program(cable: Cable) -> None:
    """Of UDP over IPv4: the kernel would drop it for its checksum, and a tunnel's own check would never be asked."""
    cable.link.change(delay=0.0, corrupt=1.0)
    script = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.settimeout(5)\n"
        f"s.bind(({B!r}, 5001))\n"
        "print('bound', flush=True)\n"
        "print(sum(bin(byte).count('1') for byte in s.recv(2000)), flush=True)\n"
    )
    receiving = cable.b.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert receiving.stdout is not None
    assert receiving.stdout.readline() == "bound\n"
    cable.a.run(["ip", "neighbour", "add", B, "lladdr", mac_address(cable.b), "dev", "eth0"])  # no damaged ARP
    with cable.a.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.sendto(bytes(1000), (B, 5001))
    assert receiving.stdout.readline() == "1\n"  # one bit of 8000


def mac_address(machine: Namespace) -> str:
    return str(machine.run(["cat", "/sys/class/net/eth0/address"]).stdout).strip()


def test_rate_and_queue(cable: Cable) -> None:
    cable.link.change(delay=0.0, rate=80_000_000.0, queue=30_000)
    script = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range(1000): s.sendto(bytes(1000), ({B!r}, 9))\n"
    )
    assert cable.times(1)  # the neighbours know each other
    cable.a.run([sys.executable, "-c", script])
    there, _ = cable.link.counters()
    assert there.queue_full > 500, "a burst of 1 MB does not fit a queue of 30 KB"
    assert adds_up(there)


def test_conditions_in_the_units_of_the_program() -> None:
    conditions = Conditions(delay=0.01, loss=0.001, rate=1e9, queue=5)
    parameters = conditions.parameters()
    assert (parameters["delay"], parameters["loss"], parameters["rate"], parameters["queue"]) == (
        10_000,
        1000,
        125_000_000,
        5,
    )
    assert set(parameters) == {"delay", "loss", "duplicate", "corrupt", "reorder", "hold", "rate", "queue", "seed"}
    assert replace(conditions, hold=0.5).parameters()["hold"] == 500_000


def test_it_says_what_it_cannot_do(cable: Cable) -> None:
    missing = cable.link.namespace.run([str(program()), "none0", "none1"], check=False)
    assert (missing.returncode, missing.stderr.startswith("none0: ")) == (1, True)
    unknown = cable.link.namespace.run([str(program()), "eth0", "eth1", "speed=1"], check=False)
    assert (unknown.returncode, "speed=1" in unknown.stderr) == (2, True)
