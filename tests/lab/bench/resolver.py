"""The resolver by itself, for the suite `dns`: a child process of the bench, ended by its standard input's end.

It has the network's zone with so many hosts, and forwards to one upstream.
"""

import argparse
import sys
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import anyio
import anyio.to_thread

from overlay.daemon.collector import collect_while_at_rest
from overlay_dns.forwarder import Upstream
from overlay_dns.server import Resolver
from overlay_dns.zone import Zones

NETWORK = IPv4Network("10.77.0.0/16")


def host_address(number: int) -> IPv4Address:
    return NETWORK[number]


async def _run(options: argparse.Namespace) -> None:
    hosts = {f"h{number}": [host_address(number)] for number in range(1, options.hosts + 1)}
    zones = Zones.build("local.test", hosts, 1, [NETWORK])
    resolver = Resolver(zones, lambda: [Upstream("127.0.0.1", options.upstream)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect_while_at_rest)  # as the daemon does
        await tasks.start(partial(resolver.serve, ["127.0.0.1"], port=options.port))
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--port", "--upstream", "--hosts"):
        parser.add_argument(name, type=int, required=True)
    anyio.run(_run, parser.parse_args())
