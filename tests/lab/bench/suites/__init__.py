"""The suites: each brings its contenders up, asks its questions in turn, and returns a `Result`."""

from collections.abc import Callable, Mapping

from tests.lab.bench.result import Result
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites import (
    carrier,
    cpu,
    dns,
    expose,
    idle,
    loss,
    memory,
    mtu,
    paths,
    pps,
    relay,
    rtt,
    scale,
    tcp,
    wireguard,
)

SUITES: Mapping[str, Callable[[Bench], Result]] = {
    "tcp": tcp.run,
    "pps": pps.run,
    "rtt": rtt.run,
    "relay": relay.run,
    "carrier": carrier.run,
    "wireguard": wireguard.run,
    "loss": loss.run,
    "mtu": mtu.run,
    "cpu": cpu.run,
    "memory": memory.run,
    "idle": idle.run,
    "scale": scale.run,
    "paths": paths.run,
    "dns": dns.run,
    "expose": expose.run,
}
