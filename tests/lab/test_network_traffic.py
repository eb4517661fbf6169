"""A whole network as people use it: names, traffic, published services, a server that restarts, paths that die."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.netns import wait_for
from tests.lab.pings import COMMAND, INTERVAL, Pings
from tests.lab.topology import (
    OUTSIDE_NAME,
    OUTSIDE_NAME_ADDRESS,
    OVERLAY,
    SERVER_ADDRESS,
    Machine,
    Network,
    start_dns,
    start_web,
)

pytestmark = pytest.mark.lab

DNS_PORT = 5300
SERVICE_NAME, SERVICE_ADDRESS = "service.example", "192.0.2.7"
WEB_PAGE = "The page of b.\n"


@pytest.fixture(scope="module")
def services(network: Network) -> Network:
    """A web server and a DNS server on b, as programs that know nothing of the network."""
    folder = network.lab.directory / "www"
    folder.mkdir()
    (folder / "index.html").write_text(WEB_PAGE)
    start_web(network["b"].namespace, folder)
    start_dns(network["b"].namespace, f"127.0.0.1,{network.address('b')}", DNS_PORT, SERVICE_NAME, SERVICE_ADDRESS)
    wait_for(lambda: curl(network["b"], "http://127.0.0.1/") == WEB_PAGE, "the web server answers on b itself")
    return network


@pytest.fixture
def with_c(network: Network) -> Iterator[Machine]:
    """Node c, on a's own network."""
    network.join("c")
    yield network["c"]
    network["c"].overlay("down", "--quiet")


def curl(machine: Machine, url: str, *options: str) -> str | None:
    done = machine.run("curl", "-sSf", "--max-time", "5", *options, url, check=False)
    return done.stdout if done.returncode == 0 else None


def ping(machine: Machine, target: str, *options: str) -> str:
    return machine.run("ping", "-n", *options, target).stdout


def answers(machine: Machine, target: str) -> bool:
    return machine.run("ping", "-n", "-c", "1", "-W", "1", target, check=False).returncode == 0


@contextlib.contextmanager
def published(machine: Machine, target: str, *options: str) -> Iterator[dict[str, Any]]:
    exposure: dict[str, Any] = machine.overlay_json("expose", target, *options)
    yield exposure
    machine.overlay("expose", "rm", exposure["id"])


def losses(machine: Machine, target: str, seconds: float) -> tuple[Pings, int]:
    """Start 20 pings a second for `seconds`; returns them and how many they are."""
    count = int(seconds / INTERVAL)
    return Pings(machine.popen(*COMMAND, "-c", str(count), "-W", "1", target, stdout=subprocess.PIPE)), count


def test_status_says_who_is_here(network: Network) -> None:
    status = network["a"].overlay_json("status")
    assert (status["state"], status["name"], status["domain"]) == ("connected", "a", "local.test")
    assert status["server"]["address"] == f"{SERVER_ADDRESS}:443"
    assert {"server", "b"} <= {peer["name"] for peer in status["peers"] if peer["online"]}
    assert "b" in network["a"].overlay("status").stdout
    server = network.server.overlay_json("status")
    assert server["state"] == "running" and server["online"] >= 3
    nodes = network.server.overlay_json("node", "ls")["nodes"]
    assert {"server", "a", "b"} <= {node["name"] for node in nodes if node["online"]}


@pytest.mark.parametrize("family", [4, 6])
def test_ping_by_name_both_ways(network: Network, family: int) -> None:
    ping(network["a"], "b.local.test", f"-{family}", "-c", "1", "-W", "5")
    ping(network["b"], "a.local.test", f"-{family}", "-c", "1", "-W", "5")
    ping(network["a"], "server.local.test", f"-{family}", "-c", "1", "-W", "5")


@pytest.mark.parametrize("size", [0, 1352, 1353, 4000, 20000])
def test_packets_of_all_sizes_pass(network: Network, size: int) -> None:
    """1352 bytes of ping fill one packet of the interface; more is cut into fragments by the kernel."""
    ping(network["a"], network.address("b"), "-c", "1", "-W", "5", "-s", str(size))


def test_names(network: Network) -> None:
    a, address = network["a"], network.address("b")
    assert a.run("dig", "+short", "b.local.test").stdout == f"{address}\n"
    assert a.run("dig", "+short", "+tcp", "b.local.test").stdout == f"{address}\n"
    assert a.run("dig", "+short", "AAAA", "b.local.test").stdout == f"{network.address('b', 6)}\n"
    assert a.run("dig", "+short", "-x", address).stdout == "b.local.test.\n"
    missing = a.run("dig", "nobody.local.test").stdout
    assert "status: NXDOMAIN" in missing and "SOA" in missing
    assert a.run("dig", "+short", OUTSIDE_NAME).stdout == f"{OUTSIDE_NAME_ADDRESS}\n"
    assert address in a.run("getent", "ahosts", "b").stdout, "the search domain finds the short name"


def test_tcp_and_udp_by_name(services: Network) -> None:
    assert curl(services["a"], "http://b.local.test/") == WEB_PAGE
    assert curl(services["a"], "http://b.local.test/", "-6") == WEB_PAGE
    question = ("dig", "+short", "-4", "-p", str(DNS_PORT), "@b.local.test", SERVICE_NAME)
    assert services["a"].run(*question).stdout == f"{SERVICE_ADDRESS}\n"


def test_expose_tcp_and_udp(services: Network) -> None:
    user, b = services.lab.namespaces["user"], services["b"]
    with published(b, "tcp://127.0.0.1:80", "--public", "9000") as web:
        assert web["public"].endswith(":9000") and web["target"] == "tcp://127.0.0.1:80"
        page = user.run(["curl", "-sSf", "--max-time", "10", f"http://{SERVER_ADDRESS}:9000/"]).stdout
        assert page == WEB_PAGE
        assert [each["id"] for each in b.overlay_json("expose", "ls")["exposures"]] == [web["id"]]
    with published(b, f"udp://127.0.0.1:{DNS_PORT}", "--public", "9053"):
        answer = user.run(["dig", "+short", "-p", "9053", f"@{SERVER_ADDRESS}", SERVICE_NAME]).stdout
        assert answer == f"{SERVICE_ADDRESS}\n"
    gone = user.run(["curl", "-sS", "--max-time", "3", f"http://{SERVER_ADDRESS}:9000/"], check=False)
    assert gone.returncode == 7, "nothing listens there any more"


def test_expose_without_a_port_gets_one(services: Network) -> None:
    with published(services["b"], "tcp://127.0.0.1:80") as exposure:
        page = services.lab.namespaces["user"].run(["curl", "-sSf", "--max-time", "10", exposure["public"]]).stdout
        assert page == WEB_PAGE


def test_a_taken_public_port_names_its_holder(services: Network) -> None:
    with published(services["b"], "tcp://127.0.0.1:80", "--public", "9000"):
        refused = services["a"].overlay("expose", "tcp://127.0.0.1:1", "--public", "9000", check=False)
        assert refused.returncode != 0
        assert "9000" in refused.stderr and re.search(r"\bb\b", refused.stderr), refused.stderr
    own = services["a"].overlay("expose", "tcp://127.0.0.1:1", "--public", "443", check=False)
    assert own.returncode != 0 and "443" in own.stderr


def test_a_target_that_does_not_answer_does_not_hang_the_user(services: Network) -> None:
    with published(services["b"], "tcp://127.0.0.1:1", "--public", "9001"):
        user = services.lab.namespaces["user"]
        done = user.run(["curl", "-sS", "--max-time", "20", f"http://{SERVER_ADDRESS}:9001/"], check=False)
        assert done.returncode not in (0, 28), "the connection is closed, not left to time out"


def test_changes_are_known_within_a_second(network: Network, with_c: Machine) -> None:
    a = network["a"]
    wait_for(lambda: (a.peer("c") or {}).get("online"), "c is online for a", timeout=1)
    network.server.overlay("node", "rename", "c", "desk")
    wait_for(lambda: a.peer("desk"), "c is called desk", timeout=1)
    assert a.run("dig", "+short", "desk.local.test").stdout == f"{network.address('c')}\n"
    network.server.overlay("node", "rename", "desk", "c")
    wait_for(lambda: a.peer("c"), "c has its name back", timeout=1)
    network["c"].overlay("down", "--quiet")
    wait_for(lambda: not (a.peer("c") or {"online": True})["online"], "c is offline for a", timeout=1)
    with_c.overlay("up", "--quiet")
    wait_for(lambda: (a.peer("c") or {}).get("online"), "c is back, without an invite", timeout=1)


def test_a_removed_node_is_out_and_its_address_comes_free(network: Network) -> None:
    c = network["c"]
    network.join("c")
    network.server.overlay("node", "rm", "c")
    wait_for(lambda: network["a"].peer("c") is None, "a has forgotten c", timeout=1)
    c.wait_for_state("stopped")
    refused = c.overlay("up", check=False)
    assert refused.returncode == 4, refused
    assert "Traceback" not in refused.stderr
    for name in ("joined.json", "welcome.json", "map.json"):
        (c.state / name).unlink(missing_ok=True)


def test_neighbours_go_direct_and_leave_a_dead_path_within_a_second(network: Network, with_c: Machine) -> None:
    a = network["a"]
    wait_for(lambda: network.both_go_by("a", "c", "lan"), "a and c reach each other directly", 25)
    sent, count = losses(a, network.address("c"), 8.0)
    sent.wait_for_answers(20)
    a.namespace.block("ip daddr 192.168.1.11 udp dport 1-65535")
    try:
        wait_for(lambda: a.path_kind("c") == "relay", "a has left the dead path", timeout=5)
        got = sent.answered()
        longest = longest_gap(got, count) * INTERVAL
        assert max(got) >= count - 1, "the last pings were answered, by the relay"
        assert longest < 1.5, f"nothing passed for {longest:.2f} s"
    finally:
        a.namespace.unblock()
    wait_for(lambda: network.both_go_by("a", "c", "lan"), "the direct path is back", 60)


def longest_gap(numbers: set[int], count: int) -> int:
    longest = gap = 0
    for number in range(1, count + 1):
        gap = 0 if number in numbers else gap + 1
        longest = max(longest, gap)
    return longest


def test_nodes_go_on_while_the_server_is_away(services: Network, with_c: Machine) -> None:
    a, server = services["a"], services.server
    with published(services["b"], "tcp://127.0.0.1:80", "--public", "9000"):
        wait_for(lambda: services.both_go_by("a", "c", "lan"), "a and c reach each other directly", 25)
        handshake = a.peer("b")
        assert handshake is not None
        server.overlay("down", "--quiet")
        try:
            a.wait_for_state("offline")
            sent, count = losses(a, services.address("c"), 3.0)
            assert a.run("dig", "+short", "c.local.test").stdout == f"{services.address('c')}\n"
            assert len(sent.answered()) == count, "the direct path does not need the server"
        finally:
            services.start_server()
        for name in ("a", "b", "c"):
            services[name].wait_for_state("connected")
        wait_for(lambda: answers(a, services.address("b")), "b answers a by the relay", 25)
        user = services.lab.namespaces["user"]
        page = user.run(["curl", "-sSf", "--max-time", "10", "--retry", "3", f"http://{SERVER_ADDRESS}:9000/"]).stdout
        assert page == WEB_PAGE, "what b publishes is published again"


def test_down_and_up_again(network: Network) -> None:
    b = network["b"]
    address = network.address("b")
    b.overlay("down", "--quiet")
    assert "overlay" not in b.run("ip", "-o", "link").stdout
    assert b.overlay("status", check=False).returncode == 3
    assert b.overlay("down", check=False).returncode == 3
    b.overlay("up", "--quiet")
    assert network.address("b") == address
    wait_for(lambda: answers(network["a"], address), "b answers a in its new session", 5)


def test_foreground_ends_with_a_signal(network: Network) -> None:
    b = network["b"]
    b.overlay("down", "--quiet")
    process = b.popen(OVERLAY, "up", "--foreground", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    b.wait_for_state("connected")
    process.terminate()
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and output == ""
    b.overlay("up", "--quiet")
