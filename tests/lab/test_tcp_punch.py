"""TCP between nodes in homes of their own where UDP does not get through: found, used, lost, found again."""

import time
from collections.abc import Iterator

import pytest

from tests.lab.conftest import tracked
from tests.lab.gates import Download, digest, web_file
from tests.lab.nats import home, udp_blocked
from tests.lab.netns import Lab, wait_for
from tests.lab.steady import Steady
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet, start_web

pytestmark = pytest.mark.lab

SIZE = 20_000_000
NATS = {"a-nat": "198.51.100.11", "b-nat": "198.51.100.12"}
CUT = f"ip daddr {{ {NATS['a-nat']}, {NATS['b-nat']} }}"


@pytest.fixture(scope="module")
def punched() -> Iterator[Network]:
    """a and b behind NATs that keep out what nobody asked for, and let no UDP out."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", *NATS, "a", "b")}
        public = [(spaces["server"], SERVER_ADDRESS), *((spaces[name], address) for name, address in NATS.items())]
        network = Network(lab, build_internet(lab, public))
        for name in ("server", "a", "b"):
            network.machine(spaces[name])
        for number, name in enumerate(("a", "b"), 1):
            home(lab, spaces[f"{name}-nat"], f"192.168.{number}", [(spaces[name], "10")], "port-restricted")
        with udp_blocked(spaces["a-nat"]), udp_blocked(spaces["b-nat"]), tracked(network):
            network.start_server()
            network.join("a", "b")
            yield network


def answers(machine: Machine, target: str) -> bool:
    return machine.run("ping", "-n", "-c", "1", "-W", "1", target, check=False).returncode == 0


def session_began(machine: Machine, peer: str) -> float:
    """When the session's key was made, s."""
    known = machine.peer(peer)
    assert known is not None
    return time.monotonic() - float(known["last_handshake_s"])


def test_found_used_lost_and_found_again(punched: Network) -> None:
    a, b = punched["a"], punched["b"]
    to_b = punched.address("b")
    wait_for(lambda: answers(a, to_b), "b answers a")
    wait_for(lambda: answers(a, to_b) and a.path_kind("b") == "tcp", "a reaches b by TCP", 10)
    wait_for(lambda: answers(b, punched.address("a")) and b.path_kind("a") == "tcp", "b reaches a by TCP", 10)
    path = (a.peer("b") or {})["path"]
    assert path["endpoint"].startswith(NATS["b-nat"])

    began = session_began(a, "b")
    original = web_file(a, "file", SIZE)
    start_web(a.namespace, original.parent)
    url = f"http://{punched.address('a')}"
    assert Download(b, f"{url}/file", punched.lab.directory / "copy").finish() == digest(original)
    assert a.path_kind("b") == b.path_kind("a") == "tcp"

    stream = Steady(a.namespace, b.namespace, to_b)
    stream.wait_for_bytes(1_000_000)
    stream.mark()
    spaces = punched.lab.namespaces
    for name in NATS:
        spaces[name].block(CUT)
    wait_for(lambda: a.path_kind("b") == b.path_kind("a") == "relay", "both go by the relay", 5)
    for name in NATS:
        spaces[name].unblock()
    wait_for(lambda: a.path_kind("b") == b.path_kind("a") == "tcp", "both go by TCP again", 20)
    stream.finish()
    assert session_began(a, "b") == pytest.approx(began, abs=1.0)  # the one session all along
    print(f"nothing passed for {stream.longest_pause:.2f} s")  # noqa: T201
