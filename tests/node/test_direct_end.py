"""Where peers reach an exposure at the node itself: 127.77.0.2 is the node's overlay address."""

import socket
from collections import Counter

import anyio
import pytest

from overlay.node.direct_end import DirectEnd
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Target
from overlay.wire.control.terms import Access, Limits, Terms

NODE = "127.77.0.2"


def end(target: str, port: int) -> DirectEnd:
    return DirectEnd(TargetEnd(Target.parse(target)), NODE, port, lambda address: True, Counter())


def service(protocol: str, address: str, port: int = 0) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    bound.bind((address, port))
    if protocol == "tcp":
        bound.listen()
    return bound


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_another_port_or_host_is_forwarded_to(protocol: str) -> None:
    async def main() -> None:
        with service(protocol, NODE) as taken:
            port = taken.getsockname()[1]
        direct = end(f"{protocol}://127.0.0.1:1", port)
        try:
            assert not direct.leads()
            assert direct.open() is not None and direct.leads()
            assert direct.open() is None  # it runs already
            other = end(f"{protocol}://192.0.2.7:{port}", port)
            assert other.open() is None and not other.leads()  # the port is taken
        finally:
            direct.close()
        assert not direct.leads()

    anyio.run(main)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_the_targets_own_port_is_looked_at_and_never_taken(protocol: str, host: str) -> None:
    with service(protocol, "127.0.0.1") as alone:
        port = alone.getsockname()[1]
        direct = end(f"{protocol}://{host}:{port}", port)
        assert direct.open() is None and not direct.leads()  # at loopback alone peers do not reach it
    with service(protocol, "0.0.0.0", port):
        assert direct.open() is None and direct.leads()
    assert not direct.leads()


def test_a_target_at_the_overlay_address_is_there() -> None:
    direct = end(f"tcp://{NODE}:8080", 8080)
    assert direct.open() is None and direct.leads()


@pytest.mark.parametrize(
    ("terms", "leads"),
    [
        (Terms(limits=Limits(connections=3)), True),
        (Terms(access=Access(deny=("127.77.0.9",))), True),
        (Terms(access=Access(allow=("127.77.0.0/24",))), True),
        (Terms(access=Access(allow=("127.77.0.4",))), True),
        (Terms(access=Access(allow=("203.0.113.0/24",))), False),  # nobody who comes here: they try the server
    ],
)
def test_lists_of_networks_hold_for_peers(terms: Terms, *, leads: bool) -> None:
    async def main() -> None:
        with service("tcp", NODE) as taken:
            port = taken.getsockname()[1]
        target = TargetEnd(Target.parse("tcp://127.0.0.1:1"))
        direct = DirectEnd(target, NODE, port, lambda address: address.startswith("127.77."), Counter(), terms)
        assert (direct.open() is not None) is leads and direct.leads() is leads
        direct.close()

    anyio.run(main)


def test_a_target_that_peers_reach_themselves_knows_no_lists() -> None:
    with service("tcp", "0.0.0.0") as bound:
        port = bound.getsockname()[1]
        target = TargetEnd(Target.parse(f"tcp://127.0.0.1:{port}"))
        terms = Terms(access=Access(deny=("127.77.0.9",)))
        assert not DirectEnd(target, NODE, port, lambda address: True, Counter(), terms).leads()
