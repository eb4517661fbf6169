"""`overlay capture` on real machines: what is shown and written is what passed, and nobody waits for a slow reader."""

import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.netns import Lab, wait_for
from tests.lab.topology import OVERLAY, Machine, Network, one_lan

pytestmark = pytest.mark.lab

PATIENCE = 30.0


@pytest.fixture(scope="module")
def lan() -> Iterator[Network]:
    """A server, a and b, up, with a session between a and b on the direct path."""
    with Lab() as lab:
        network = one_lan(lab)
        network.start_server()
        network.join("a", "b")
        wait_for_direct(network)
        yield network


def wait_for_direct(network: Network) -> None:
    wait_for(lambda: network.both_go_by("a", "b", "lan", "udp"), "a and b are direct", 25)


def ping(machine: Machine, target: str, count: int = 1) -> bool:
    command = ("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "5", target)
    return machine.run(*command, check=False).returncode == 0


class Capturing:
    """A running `overlay capture`."""

    def __init__(self, machine: Machine, *arguments: str) -> None:
        self.process = machine.popen(*(OVERLAY, "capture", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        self.announced = self.process.stderr.readline()
        assert self.announced.startswith("Capturing on "), self.announced + self.process.stderr.read()

    def stop(self) -> tuple[str, str]:
        """Ctrl-C; what it printed."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self, code: int = 0) -> tuple[str, str]:
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == code, errors
        assert "Traceback" not in errors
        return output, errors


@contextmanager
def capturing(machine: Machine, *arguments: str) -> Iterator[Capturing]:
    capture = Capturing(machine, *arguments)
    yield capture
    if capture.process.poll() is None:
        capture.process.kill()
        capture.process.communicate()


def tcpdump(path: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["tcpdump", "-n", "-r", str(path), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def counts(errors: str) -> tuple[int, int]:
    """Captured and dropped, of the last line."""
    found = re.fullmatch(r"(\d+) packets? captured, (\d+) dropped", errors.splitlines()[-1])
    assert found is not None, errors
    return int(found[1]), int(found[2])


def test_lines_of_a_ping_by_name(lan: Network) -> None:
    with capturing(lan["a"], "b", "icmp", "-c", "4") as capture:
        assert ping(lan["a"], lan.address("b"), 2)
        output, errors = capture.end()
    shown = re.findall(r"^\S+ overlay0 (Out|In ) IP (a > b|b > a): ICMP echo (request|reply),", output, re.M)
    assert shown == [("Out", "a > b", "request"), ("In ", "b > a", "reply")] * 2
    assert capture.announced == "Capturing on overlay0, to and from b, what fits 'icmp'. Ctrl-C ends.\n"
    assert counts(errors) == (4, 0)


def test_a_file_that_tcpdump_reads(lan: Network, tmp_path: Path) -> None:
    path = tmp_path / "inner.pcapng"
    path.write_bytes(b"something older")
    path.chmod(0o644)
    with capturing(lan["a"], "-w", str(path)) as capture:
        assert ping(lan["a"], lan.address("b"), 3) and ping(lan["a"], lan.address("b", 6), 3)
        _, errors = capture.stop()
    assert len(tcpdump(path, "icmp or icmp6")) == 12
    assert counts(errors)[0] == len(tcpdump(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("who", ["b", "b.local.test", "address", "3"])
def test_a_peer_by_all_its_names_and_nobody_elses_packets(lan: Network, who: str, tmp_path: Path) -> None:
    who = lan.address("b") if who == "address" else who
    path = tmp_path / "peer.pcapng"
    with capturing(lan["a"], who, "-w", str(path)) as capture:
        assert ping(lan["a"], lan.address("server")) and ping(lan["a"], lan.address("b"))
        capture.stop()
    lines = tcpdump(path)
    assert len(lines) == 2 and all(lan.address("b") in each for each in lines)


def test_our_messages_on_the_wire(lan: Network, tmp_path: Path) -> None:
    path = tmp_path / "outer.pcapng"
    wait_for_direct(lan)
    with capturing(lan["a"], "b", "--outer", "-w", str(path)) as capture:
        assert lan["a"].run("ping", "-n", "-c", "1", "-W", "5", "-s", "4000", lan.address("b")).returncode == 0
        capture.stop()
    wire = tcpdump(path, "udp and host 198.51.100.22")
    assert any("198.51.100.21." in line.partition(" > ")[0] for line in wire), "ours"
    assert any("198.51.100.22." in line.partition(" > ")[0] for line in wire), "theirs"
    assert len(tcpdump(path, "icmp")) == 6, "fragments of IP, both ways"
    with capturing(lan["a"], "--outer", "--json", "udp and host 198.51.100.22") as capture:
        assert ping(lan["a"], lan.address("b"))
        output, _ = capture.stop()
    messages = [json.loads(each) for each in output.splitlines()]
    fragments = [each for each in messages if each["message"]["name"] == "record fragment"]
    assert {each["direction"] for each in fragments} == {"in", "out"}
    assert all(each["interface"] == "overlay-outer" for each in messages)


def test_superpackets_are_shown_whole(lan: Network) -> None:
    with capturing(lan["a"], "--json", "tcp and greater 20000", "-c", "1") as capture:
        bulk(lan)
        output, _ = capture.end()
    found = json.loads(output)
    assert found["length"] > 20000 and found["segment"] and found["checksum"] == "offloaded"


def test_a_server_captures_too_and_shows_no_ticket(lan: Network, tmp_path: Path) -> None:
    path = tmp_path / "server.pcapng"
    with capturing(lan.server, "a", "--outer", "-w", str(path)) as capture:
        assert ping(lan["a"], lan.address("server"))
        capture.stop()
    assert len(tcpdump(path, "icmp")) == 2
    assert tcpdump(path, "udp and host 198.51.100.21")
    ticket = json.loads((lan["a"].state / "welcome.json").read_text())["ticket"]
    assert int(ticket).to_bytes(8, "little") not in path.read_bytes()


def test_a_reader_that_stalls_loses_packets_and_the_transfer_goes_on(lan: Network) -> None:
    with capturing(lan["a"], "--outer", "-w", "/dev/null") as capture:
        capture.process.send_signal(signal.SIGSTOP)
        bulk(lan)
        bulk(lan)
        capture.process.send_signal(signal.SIGCONT)
        _, errors = capture.stop()
    captured, dropped = counts(errors)
    assert captured > 0 and dropped > 0
    assert ping(lan["a"], lan.address("b"))


def test_a_closed_pipe_ends_the_capture(lan: Network) -> None:
    with capturing(lan["a"], "icmp") as capture:
        assert capture.process.stdout is not None
        capture.process.stdout.close()
        assert ping(lan["a"], lan.address("b"), 3)
        assert capture.process.wait(PATIENCE) == 0
        assert capture.process.stderr is not None
        assert "captured" in capture.process.stderr.read()


def test_a_capture_that_is_killed_leaves_nothing_on(lan: Network) -> None:
    """As many as may run, one after the other and killed, still leave room for the next."""
    for _ in range(5):
        with capturing(lan["a"], "-w", "/dev/null") as capture:
            capture.process.kill()
            capture.process.wait()
    with capturing(lan["a"], "-w", "/dev/null") as capture:
        capture.stop()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nobody"], 2, "There is no peer 'nobody', and 'nobody' is not a filter"),
        (["b", "tcp port"], 2, "'tcp port' is not a filter"),
        (["-w", "/nowhere/x.pcapng"], 1, "Cannot write /nowhere/x.pcapng"),
        (["-c", "0"], 2, "Invalid value"),
    ],
)
def test_what_is_wrong_is_one_sentence(lan: Network, arguments: list[str], code: int, sentence: str) -> None:
    done = lan["a"].overlay("capture", *arguments, check=False)
    assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr


def test_down_ends_the_capture_in_order(lan: Network, tmp_path: Path) -> None:
    path = tmp_path / "down.pcapng"
    with capturing(lan["b"], "-w", str(path)) as capture:
        assert ping(lan["a"], lan.address("b"))
        lan["b"].overlay("down", "--quiet")
        _, errors = capture.end(code=1)
    assert "The capture ended" in errors
    assert len(tcpdump(path, "icmp")) == 2
    lan["b"].overlay("up", "--quiet")


def bulk(network: Network) -> None:
    """20 MB from a to b."""
    server = network["b"].popen("iperf3", "-s", "-1", "-p", "5201", stdout=subprocess.PIPE)
    assert server.stdout is not None
    wait_for(lambda: "LISTEN" in network["b"].run("ss", "-ltn", "sport", "=", ":5201").stdout, "iperf3 listens")
    network["a"].run("iperf3", "-c", network.address("b"), "-n", "20M")
    server.communicate(timeout=PATIENCE)
