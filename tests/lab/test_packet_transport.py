"""Two of our engines that speak type 4 with one another: superpackets are cut here and joined there."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.engines import EngineHost, Key, ping, transfer
from tests.lab.netns import Lab, Namespace
from tests.lab.tcp import set_timestamps, tcp_errors

pytestmark = pytest.mark.lab

A, B = "10.9.0.2", "10.9.0.3"
A6, B6 = "fd00:9::2", "fd00:9::3"
SIZE = 20_000_000  # bytes of a transfer
SEGMENTS = SIZE // 1380  # in which it travels, at least


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def packets_from_the_tunnel(namespace: Namespace, engine: EngineHost) -> int:
    """How often the engine wrote to its interface."""
    shown = namespace.run(["ip", "-json", "-statistics", "link", "show", "dev", engine.ready["interface"]]).stdout
    return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "no timestamps"])
@pytest.mark.parametrize("family", [4, 6])
def test_what_arrives_is_joined_and_is_what_was_sent(lab: Lab, family: int, timestamps: bool) -> None:
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a, "198.51.100.1/24", b, "198.51.100.2/24")
    set_timestamps(a, b, on=timestamps)
    options = ["--mtu", "1420"]
    one = EngineHost(a, Key(), 2, addresses=[f"{A}/24", f"{A6}/64"], options=options)
    other = EngineHost(b, Key(), 3, addresses=[f"{B}/24", f"{B6}/64"], options=options)
    one.peer(other.key, 3, [f"{B}/32", f"{B6}/128"], [("198.51.100.2", other.port)], transport="wireguard")
    other.peer(one.key, 2, [f"{A}/32", f"{A6}/128"], [("198.51.100.1", one.port)], transport="wireguard")
    assert ping(a, B)
    to_b, to_a = (B, A) if family == 4 else (B6, A6)
    for sender, receiver, address, engine in ((a, b, to_b, other), (b, a, to_a, one)):
        before = packets_from_the_tunnel(receiver, engine)
        sent, received = transfer(sender, receiver, address, SIZE)
        assert sent == received
        assert packets_from_the_tunnel(receiver, engine) - before < SEGMENTS / 2
    for machine, engine in ((a, one), (b, other)):
        assert tcp_errors(machine) == 0
        counted = set(engine.inspect()["drops"])
        assert not {"internal_error", "bad_tag", "tun_refused", "bad_ip_length", "bad_offload"} & counted
        assert engine.stop()["failed"] == []
