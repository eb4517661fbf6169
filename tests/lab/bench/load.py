"""Load between two machines, by programs of the distribution: iperf3 and ping."""

import contextlib
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.bench.contenders import Ends
from tests.lab.netns import Namespace, wait_for

IPERF_PORT = 5201
LISTENING = "0A"  # the state of a socket in /proc/net/tcp
GRACE = 20.0  # s that iperf3 may take longer than its run: slow paths drain their queues first


class LoadFailed(Exception):
    """iperf3 or ping did not get an answer, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Datagrams:
    """A run of UDP at a fixed rate."""

    sent: float  # per s
    received: float  # per s
    loss: float  # 0 to 1


@dataclass(frozen=True, slots=True)
class Pings:
    """Round trips, s, in the order of sending; those that never came are in `lost` alone."""

    times: Sequence[float]
    lost: int

    def quantile(self, share: float) -> float:
        """The smallest time that `share` (0 to 1) of the answers did not exceed."""
        if not self.times:
            raise LoadFailed("no ping was answered")
        return sorted(self.times)[max(0, math.ceil(share * len(self.times)) - 1)]


def listens(namespace: Namespace, port: int) -> bool:
    with namespace.enter():
        lines = Path("/proc/thread-self/net/tcp6").read_text() + Path("/proc/thread-self/net/tcp").read_text()
    wanted = f":{port:04X}"
    sockets = (line.split() for line in lines.splitlines())
    return any(fields[1].endswith(wanted) and fields[3] == LISTENING for fields in sockets)


@contextlib.contextmanager
def iperf_server(ends: Ends) -> Iterator[None]:
    """For one run: a server that has seen a run break off would call itself busy from then on."""
    server = ends.b.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(ends.b, IPERF_PORT), "iperf3 listens", interval=0.005)
        yield
    finally:
        server.terminate()
        server.wait()


def iperf_command(ends: Ends, seconds: int, *options: str) -> list[str]:
    """iperf3 knows whole seconds only, and takes 0 for no end."""
    return ["iperf3", "-c", ends.address_b, "-t", str(seconds), "-J", "--connect-timeout", "5000", *options]


def iperf(ends: Ends, seconds: int, *options: str) -> dict[str, Any]:
    """One run from a to b; what iperf3 reports as its `end`."""
    with iperf_server(ends):
        command = iperf_command(ends, seconds, *options)
        try:
            done = ends.a.run(command, check=False, timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            raise LoadFailed("iperf3 did not end") from None
    document = json.loads(done.stdout or "{}")
    end = document.get("end")
    if "error" in document or not end:
        raise LoadFailed(f"iperf3: {document.get('error', done.stderr.strip() or 'no result')}")
    measured: dict[str, Any] = end
    return measured


def tcp(ends: Ends, seconds: int, *options: str) -> float:
    """Gb/s that arrived; with --bidir the sum of both directions."""
    end = iperf(ends, seconds, *options)
    sums = [end["sum_received"], end.get("sum_received_bidir_reverse")]
    return sum(float(each["bits_per_second"]) for each in sums if each) / 1e9


def udp(ends: Ends, seconds: int, size: int, rate: float) -> Datagrams:
    """`rate` datagrams/s of `size` bytes each."""
    bandwidth = str(round(rate * size * 8))
    end = iperf(ends, seconds, "-u", "-l", str(size), "-b", bandwidth, "-w", "4M")
    sent, received = end["sum_sent"], end["sum_received"]
    if not sent["packets"]:
        raise LoadFailed("iperf3 sent nothing")
    # What is missing behind the last datagram that arrived is no gap, so that only the counts of both ends tell all.
    arrived = max(0, received["packets"] - received["lost_packets"])
    loss = max(0.0, 1 - arrived / sent["packets"])
    return Datagrams(sent["packets"] / sent["seconds"], arrived / sent["seconds"], loss)


def ping(ends: Ends, count: int, interval: float) -> Pings:
    """`count` pings from a to b, one every `interval` s."""
    command = ["ping", "-n", "-c", str(count), "-i", f"{interval:g}", "-W", "1", ends.address_b]
    done = ends.a.run(command, check=False, timeout=count * interval + GRACE)
    return parse_pings(done.stdout, count)


def parse_pings(output: str, count: int) -> Pings:
    """What ping printed for `count` pings."""
    times = [
        float(line.partition("time=")[2].split()[0]) / 1000
        for line in output.splitlines()
        if "time=" in line and "DUP!" not in line
    ]
    return Pings(times, count - len(times))


@contextlib.contextmanager
def bulk(ends: Ends, seconds: int) -> Iterator[None]:
    """One TCP stream from a to b, as fast as it goes, for `seconds` or until the block ends."""
    with iperf_server(ends):
        process = ends.a.popen(iperf_command(ends, seconds), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
            if process.poll():
                raise LoadFailed("the bulk stream broke off")
        finally:
            process.terminate()
            process.wait()
