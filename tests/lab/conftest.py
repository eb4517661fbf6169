"""Whole networks for tests: fixtures, what happens without root, and daemons' logs beside a failure."""

import contextlib
import os
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path

import anyio
import pytest

from tests.lab import resolvers
from tests.lab.netns import Lab, Namespace
from tests.lab.topology import Network, two_homes

LOG_LINES = 30

_running: list[Network] = []
_left_out: list[str] = []


def _obstacle() -> str:
    """Why no lab can run here; "" if it can."""
    if os.geteuid() != 0:
        return "it needs root: run 'sudo ./scripts/test'"
    if not Path("/dev/net/tun").exists():
        return "it needs /dev/net/tun, which this machine does not have"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    obstacle = _obstacle()
    if not obstacle:
        return
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.skip(reason=f"network lab: {obstacle}"))
            _left_out.append(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.section("THE NETWORK LAB WAS LEFT OUT", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(_left_out)} tests of whole networks did not run: {_obstacle()}.", red=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for network in _running:
            for machine in network.machines.values():
                log = machine.state / "overlay.log"
                if log.exists():
                    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                    report.sections.append((f"log of {machine.name}", "\n".join(lines)))
    return report


@contextlib.contextmanager
def tracked(network: Network) -> Iterator[None]:
    """A test that fails meanwhile shows the logs of the network's daemons."""
    _running.append(network)
    try:
        yield
    finally:
        _running.remove(network)


@pytest.fixture(scope="module")
def homes() -> Iterator[Network]:
    """The network `two_homes`: server, homes of a and c, and of b, a user, a stranger. Nothing of ours runs."""
    with Lab() as lab:
        network = two_homes(lab)
        with tracked(network):
            yield network


@pytest.fixture(scope="module")
def network(homes: Network) -> Network:
    """The same with the server, a and b up. Tests leave these three running."""
    homes.start_server()
    homes.join("a", "b")
    return homes


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[resolvers.Machine, resolvers.Machine]]:
    """`resolvers.server_and_node`."""
    with resolvers.server_and_node() as both:
        yield both


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A machine with one cable to another."""
    with Lab() as lab:
        host, other = lab.namespace("host"), lab.namespace("other")
        lab.link(host, ["192.0.2.2/24", "2001:db8::2/64"], other, [])
        yield host


def inside(host: Namespace, main: Callable[[], Awaitable[None]]) -> None:
    """Run it in this machine's network."""
    with host.enter():
        anyio.run(main)


@pytest.fixture
def node(hosts: tuple[resolvers.Machine, resolvers.Machine]) -> Iterator[resolvers.Machine]:
    """The second of them, as it is without us, and down after."""
    yield from resolvers.as_found(hosts[1])
