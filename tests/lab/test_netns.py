"""The lab itself: what it builds works, and nothing of it stays, however it ends."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.netns import CONFIGURATION, NAMESPACES, RECORDS, Lab, pids, started, wait_for

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import signal
from tests.lab.netns import Lab
with Lab() as lab:
    a = lab.namespace("a")
    a.popen(["sleep", "600"])
    a.run(["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"])
    print(lab.prefix, lab.directory, flush=True)
    signal.pause()
"""


def left_of(prefix: str, directory: Path) -> list[str]:
    found = [str(path) for place in (NAMESPACES, CONFIGURATION) for path in place.glob(f"{prefix}-*")]
    return found + [str(path) for path in (RECORDS / prefix, directory) if path.exists()]


def child() -> tuple["subprocess.Popen[str]", str, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    prefix, directory = process.stdout.readline().split()
    process.stdout.close()
    return process, prefix, Path(directory)


def test_machines_reach_each_other_through_links_bridges_and_nat() -> None:
    with Lab() as lab:
        internet, server, nat, a = (lab.namespace(name) for name in ("internet", "server", "nat", "a"))
        lab.bridge(internet, [], [(server, ["198.51.100.1/24", "2001:db8::1/64"]), (nat, "198.51.100.2/24")])
        lab.link(nat, "10.0.0.1/24", a, "10.0.0.2/24")
        a.route("default", "10.0.0.1")
        lab.nat(nat, "eth0")
        a.run(["ping", "-c", "1", "-W", "2", "198.51.100.1"])
        inward = server.run(["ping", "-c", "1", "-W", "1", "198.51.100.2"], check=False)
        assert inward.returncode != 0, "the NAT lets nothing new in"
        with server.enter(), socket.create_server(("198.51.100.1", 0)) as listener:
            port = listener.getsockname()[1]
            with a.enter():
                socket.create_connection(("198.51.100.1", port), 2).close()
            connection, address = listener.accept()
            connection.close()
            assert address[0] == "198.51.100.2"
        server.block("ip protocol icmp")
        assert a.run(["ping", "-c", "1", "-W", "1", "198.51.100.1"], check=False).returncode != 0
        server.unblock()
        a.run(["ping", "-c", "1", "-W", "2", "198.51.100.1"])


def test_each_machine_has_its_own_resolv_conf() -> None:
    with Lab() as lab:
        a = lab.namespace("a")
        a.run(["sh", "-c", "echo 'nameserver 192.0.2.1' > /etc/resolv.conf"])
        assert a.resolv_conf.read_text() == "nameserver 192.0.2.1\n"
    assert "192.0.2.1" not in Path("/etc/resolv.conf").read_text()


def test_nothing_is_left_after_an_exception() -> None:
    lab = Lab()
    with pytest.raises(ZeroDivisionError), lab:
        lab.namespace("a").popen(["sleep", "600"])
        raise ZeroDivisionError
    assert left_of(lab.prefix, lab.directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    process, prefix, directory = child()
    process.send_signal(number)
    assert process.wait(15) != 0
    assert left_of(prefix, directory) == []


def test_what_a_killed_lab_left_is_swept_by_the_next() -> None:
    process, prefix, directory = child()
    running = pids(f"{prefix}-a")
    process.kill()
    process.wait()
    assert left_of(prefix, directory) != [] and len(running) == 2
    with Lab():
        pass
    assert left_of(prefix, directory) == []
    assert [started(pid) for pid in running] == [None, None]


def test_a_living_lab_is_not_swept() -> None:
    with Lab() as first:
        first.namespace("a")
        with Lab():
            pass
        first.namespaces["a"].run(["true"])


def test_wait_for_says_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match="the impossible"):
        wait_for(lambda: False, "the impossible", timeout=0.05)
