"""Through whatever a network leaves open: each carrier alone, UDP cut and back, an HTTP proxy, nginx, netcheck."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from overlay.node.ways import FAVOURITES_FILE
from tests.lab.gates import PASSWORD, PREFIX, PROXY_PORT, USER, Download, digest, http_proxy, only, reverse_proxy
from tests.lab.gates import web_file as file_on
from tests.lab.netns import wait_for
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, start_dns, start_web

pytestmark = pytest.mark.lab

SIZE, LARGE = 20_000_000, 100_000_000
PACED = 40_000_000  # bytes of a transfer in whose course something happens
PAGE = "This is a.\n"
PACE = "8M"  # bytes/s of that transfer
CARRIERS = ("udp", "tls", "wss", "tcp", "ws")
STREAMS = CARRIERS[1:]
UDP_ALONE = f"ip daddr {SERVER_ADDRESS} udp dport 443"
TCP_ALONE = f"ip daddr {SERVER_ADDRESS} tcp dport 443"
NAME, NAME_SERVER, REVERSE_PROXY = "vpn.example.org", "198.51.100.54", "198.51.100.90"
HTTP_PROXY = f"192.168.1.11:{PROXY_PORT}"  # on c, in a's home


@pytest.fixture(scope="module")
def served(homes: Network) -> Network:
    """Server and b up, b by whatever is best; a has joined and is down. a and b have web servers."""
    homes.start_server()
    homes.join("a", "b")
    homes["a"].overlay("down", "--quiet")
    for machine in (homes["a"], homes["b"]):
        page = file_on(machine, "index.html", 0)
        page.write_text(f"This is {machine.name}.\n")
        start_web(machine.namespace, page.parent)
    return homes


@contextlib.contextmanager
def up(machine: Machine, *options: str, given: str | None = None) -> Iterator[dict[str, Any]]:
    """The node is up meanwhile, without a memory of what worked before; → its status as the command printed it."""
    (machine.state / FAVOURITES_FILE).unlink(missing_ok=True)
    try:
        yield machine.overlay_json("up", *options, given=given)
    finally:
        if machine.daemon_pid() is not None:
            machine.overlay("down", "--quiet")


def measured(text: str) -> None:
    """For a look (pytest -rP): nothing is asserted of durations."""
    print(text)  # noqa: T201


def answers(machine: Machine, target: str) -> bool:
    return machine.run("ping", "-n", "-c", "1", "-W", "1", target, check=False).returncode == 0


def carriers(machine: Machine) -> tuple[str, str | None]:
    """Of the control connection, and of relayed packets."""
    server = machine.status()["server"]
    return server["carrier"], server["data_carrier"]


def check_transfer(network: Network, source: str, target: str, size: int) -> float:
    """A file by name, equal at both ends. → Mbit/s"""
    original = file_on(network[source], "file", size)
    began = time.monotonic()
    download = Download(
        network[target], f"http://{source}.local.test/file", network.lab.directory / f"file-on-{target}"
    )
    assert download.finish() == digest(original)
    return size * 8 / 1e6 / (time.monotonic() - began)


def check_traffic(network: Network, sizes: tuple[int, int]) -> None:
    """What people do, a with b by the relay; `sizes` of files from b and from a."""
    a, b = network["a"], network["b"]
    wait_for(lambda: answers(a, "b.local.test"), "b answers a")
    assert a.path_kind("b") == "relay"
    assert a.run("curl", "-sSf", "--max-time", "10", "http://b.local.test/").stdout == f"This is {b.name}.\n"
    for source, target, size in (("b", "a", sizes[0]), ("a", "b", sizes[1])):
        measured(f"{source} to {target}: {check_transfer(network, source, target, size):.0f} Mbit/s")


def is_published(network: Network, port: int) -> bool:
    """Whether a user with nothing of ours sees what a publishes."""
    user = network.lab.namespaces["user"]
    done = user.run(["curl", "-s", "--max-time", "5", f"http://{SERVER_ADDRESS}:{port}/"], check=False)
    return bool(done.stdout == PAGE)


# each carrier alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", CARRIERS)
def test_one_carrier_carries_everything_and_comes_back(served: Network, carrier: str) -> None:
    a, server = served["a"], served.server
    rule = UDP_ALONE if carrier == "udp" else TCP_ALONE
    allowed = "auto" if carrier == "udp" else carrier  # the gate lets nothing else through
    with only(served.lab.namespaces["a-nat"], rule), up(a, "--carrier", allowed) as status:
        assert (status["state"], status["server"]["carrier"]) == ("connected", carrier)
        check_traffic(served, (LARGE if carrier == "tls" else SIZE, SIZE))
        assert carriers(a) == (carrier, carrier)
        assert a.overlay_json("status")["server"]["carrier"] == carrier
        exposure = a.overlay_json("expose", "tcp://127.0.0.1:80", "--public", "9000")
        wait_for(lambda: is_published(served, 9000), "a is published", 5)
        server.kill_daemon()
        served.start_server()
        began = time.monotonic()
        wait_for(lambda: answers(a, "b.local.test"), "b answers a again", 40)
        measured(f"{carrier}: after the server's restart b answers within {time.monotonic() - began:.1f} s")
        wait_for(lambda: is_published(served, 9000), "a is published again", 60)
        measured(f"{carrier}: … and what a publishes is there again within {time.monotonic() - began:.1f} s")
        a.wait_for_state("connected")
        wait_for(lambda: carriers(a) == (carrier, carrier), f"{carrier} for everything again")
        a.overlay("expose", "rm", exposure["id"])


# UDP cut, and given back ----------------------------------------------------------------------------------------------


def test_udp_is_cut_in_the_middle_of_transfers_and_comes_back(served: Network) -> None:
    a, router = served["a"], served.lab.namespaces["a-nat"]
    with up(a) as status:
        assert status["server"]["carrier"] == "udp"
        wait_for(lambda: answers(a, "b.local.test"), "b answers a")
        wait_for(lambda: carriers(a) == ("udp", "udp"), "all goes by UDP")
        ways = (("b", "a"), ("a", "b"))
        originals = [digest(file_on(served[source], "paced", PACED)) for source, _ in ways]
        downloads = [paced(served, source, target) for source, target in ways]
        wait_for(lambda: min(each.size for each in downloads) > PACED // 10, "the transfers' beginning")
        router.block("meta l4proto udp")
        try:
            assert [each.finish() for each in downloads] == originals
            for (source, target), each in zip(ways, downloads, strict=True):
                measured(f"UDP cut, {source} to {target}: nothing passed for {each.longest_pause:.2f} s")
            wait_for(lambda: set(carriers(a)) <= set(STREAMS), "all goes by streams", 60)
            assert answers(a, "b.local.test")
        finally:
            router.unblock()
        began = time.monotonic()
        wait_for(lambda: carriers(a)[0] == "udp", "the control connection is by UDP again", 90)
        measured(f"the control connection is by UDP again after {time.monotonic() - began:.1f} s")
        wait_for(lambda: carriers(a)[1] == "udp", "packets go by UDP again", 90)
        measured(f"packets are so after {time.monotonic() - began:.1f} s at the latest")
        assert answers(a, "b.local.test")


def paced(network: Network, source: str, target: str) -> Download:
    url, copy = f"http://{source}.local.test/paced", network.lab.directory / f"paced-on-{target}"
    return Download(network[target], url, copy, "--limit-rate", PACE)


# proxies --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(served: Network) -> Iterator[dict[str, str]]:
    """On c, in the home of a. → the environment in which programs find it"""
    with http_proxy(served["c"].namespace, served.lab.directory / "tinyproxy"):
        yield {"HTTPS_PROXY": f"http://{USER}:{PASSWORD}@{HTTP_PROXY}"}


@pytest.fixture
def behind_proxy(served: Network, proxy: dict[str, str]) -> Iterator[Machine]:
    """Node a, which is told of the proxy, and reaches nothing but it."""
    a = served["a"]
    with only(served.lab.namespaces["a-nat"], "ip saddr 192.168.1.11 tcp dport 443"):
        a.environment.update(proxy)
        yield a
        for name in proxy:
            del a.environment[name]


def test_through_an_http_proxy_with_a_password(served: Network, behind_proxy: Machine) -> None:
    with up(behind_proxy) as status:
        assert (status["state"], status["server"]["carrier"]) == ("connected", "tls")
        check_traffic(served, (SIZE, SIZE))
        assert carriers(behind_proxy) == ("tls", "tls")
        said = (behind_proxy.state / "overlay.log").read_text() + behind_proxy.overlay("status", "--json").stdout
        assert PASSWORD not in said


@pytest.fixture(scope="module")
def nginx(served: Network) -> Iterator[str]:
    """The server is known by nginx's name alone, a finds that name. → file of nginx's authority"""
    internet, a, server = served.internet, served["a"].namespace, served.server
    internet.address("br0", f"{NAME_SERVER}/24")
    start_dns(internet, NAME_SERVER, 53, NAME, REVERSE_PROXY)
    before = a.resolv_conf.read_text()
    a.resolv_conf.write_text(f"nameserver {NAME_SERVER}\n")
    folder = served.lab.directory / "nginx"
    with reverse_proxy(served.lab.namespaces["user"], folder, NAME, f"{SERVER_ADDRESS}:443") as authority:
        server.overlay("down", "--quiet")
        names = [f"{scheme}://{NAME}{PREFIX}/" for scheme in ("wss", "ws")]
        server.overlay("server", "--quiet", "--public", names[0], "--public", names[1])
        served["b"].wait_for_state("connected")
        yield str(authority)
        server.overlay("down", "--quiet")
        served.start_server()
    a.resolv_conf.write_text(before)


@pytest.mark.parametrize("carrier", ["wss", "ws"])
def test_behind_nginx_below_a_prefix(served: Network, nginx: str, carrier: str) -> None:
    gates = (f"ip daddr {NAME_SERVER} udp dport 53", f"ip daddr {REVERSE_PROXY} tcp dport {{ 80, 443 }}")
    with (
        only(served.lab.namespaces["a-nat"], *gates),
        up(served["a"], "-", "--carrier", carrier, "--ca", nginx, given=served.invite()) as status,
    ):
        assert (status["state"], status["server"]["carrier"]) == ("connected", carrier)
        check_traffic(served, (SIZE, SIZE))
        assert carriers(served["a"]) == (carrier, carrier)


# netcheck -------------------------------------------------------------------------------------------------------------


def netcheck(machine: Machine) -> tuple[dict[str, Any], set[str]]:
    """The report, and the carriers that work by it."""
    report: dict[str, Any] = machine.overlay_json("netcheck", f"{SERVER_ADDRESS}:443", check=False)
    return report, {each["carrier"] for each in report["carriers"] if each["works"]}


def test_netcheck_where_all_is_open(served: Network) -> None:
    report, working = netcheck(served["a"])
    assert (report["best"], report["udp"], report["proxy"]) == ("udp", "works", None)
    assert working == set(CARRIERS)
    assert report["ipv4"] and not report["ipv6"]


def test_netcheck_without_udp(served: Network) -> None:
    with only(served.lab.namespaces["a-nat"], TCP_ALONE):
        report, working = netcheck(served["a"])
    assert (report["best"], report["udp"]) == ("tls", "blocked")
    assert working == set(STREAMS)


def test_netcheck_with_nothing_but_a_proxy(served: Network, behind_proxy: Machine) -> None:
    report, working = netcheck(behind_proxy)
    assert (report["best"], report["udp"], report["proxy"]) == ("tls", "blocked", f"http://{HTTP_PROXY}")
    assert working == set(STREAMS)
    assert PASSWORD not in str(report)
    behind_proxy.environment["NO_PROXY"] = SERVER_ADDRESS
    report, working = netcheck(behind_proxy)
    del behind_proxy.environment["NO_PROXY"]
    assert (report["best"], report["udp"], working) == (None, "unknown", set())
