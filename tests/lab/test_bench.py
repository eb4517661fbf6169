"""The bench: its arithmetic by example, and the smallest suites for the shape of the outcome. Speed is not judged."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.bench import __main__ as bench
from tests.lab.bench import daemon, echo, tailscale
from tests.lab.bench.chart import chart, number
from tests.lab.bench.load import Datagrams, LoadFailed, parse_pings
from tests.lab.bench.machine import cpu_seconds
from tests.lab.bench.publishers import Chisel, Frp, HaproxyTwice, Rathole, Stage, found_publishers
from tests.lab.bench.report import Report
from tests.lab.bench.result import Quantity, Result
from tests.lab.bench.rivals import CANDIDATES, EasyTier, Rival, WireGuard, easytier_configuration, found_rivals
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites import SUITES, carrier, expose
from tests.lab.bench.suites.pps import LOWEST_RATE, highest_rate
from tests.lab.bench.suites.scale import make_circle
from tests.lab.netns import Lab

SPEED = Quantity("1 stream", "Gb/s")
DELAY = Quantity("round <trip>", "ms", more_is_better=False)


@pytest.fixture
def result() -> Result:
    made = Result("tcp", "Speed & more", "ours")
    for at, (ours, theirs) in enumerate([(4.0, 2.0), (9.0, 3.0), (5.0, 5.0)]):
        made.add("theirs", at, [(SPEED, theirs)])
        made.add("ours", at, [(SPEED, ours), (DELAY, ours / 10)])
    made.add("theirs", 3, [(SPEED, 100.0)])  # ours failed in that round
    made.fail("ours", "1 stream", "no answer")
    return made


def test_the_subject_stands_first_and_ratios_are_of_pairs(result: Result) -> None:
    assert result.contenders(SPEED) == ["ours", "theirs"]
    assert result.median(SPEED, "ours") == 5.0
    assert result.ratio(SPEED, "theirs") == 2.0
    assert result.ratio(DELAY, "theirs") is None
    assert result.median(DELAY, "theirs") is None


def test_a_ratio_to_nothing_is_none() -> None:
    made = Result("idle", "Idle", "ours")
    made.add("ours", 0, [(SPEED, 1.0)])
    made.add("theirs", 0, [(SPEED, 0.0)])
    assert made.ratio(SPEED, "theirs") is None


def test_a_chart_is_a_well_formed_picture(result: Result) -> None:
    drawn = ElementTree.fromstring(chart(result))
    texts = [element.text for element in drawn.iter() if element.text and element.text.strip()]
    assert "Speed & more" in texts
    assert "round <trip>, ms (less is better)" in texts
    bars = [element for element in drawn.iter() if element.tag.endswith("rect")]
    assert len(bars) == 1 + 3  # the ground, and a bar per quantity and contender
    assert all(float(bar.attrib["width"]) >= 0 for bar in bars)


def test_a_chart_of_nothing_but_zeros() -> None:
    made = Result("idle", "Idle", "ours")
    made.add("ours", 0, [(SPEED, 0.0)])
    ElementTree.fromstring(chart(made))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0312, "0.0312"),
        (1.0, "1.00"),
        (17.76, "17.8"),
        (999.9, "1,000"),
        (1000.4, "1,000"),
        (123456.0, "123,456"),
    ],
)
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


def limited_to(most: float, *, sender: float = 1e9) -> Callable[[float], Datagrams]:
    """A tunnel that carries `most` per s, and a sender that makes `sender` at best."""

    def attempt(rate: float) -> Datagrams:
        sent = min(rate, sender)
        received = min(sent, most)
        return Datagrams(sent, received, 1 - received / sent)

    return attempt


@pytest.mark.parametrize("most", [3_000.0, 20_000.0, 87_654.0, 400_000.0])
def test_the_highest_rate_is_found_within_a_few_percent(most: float) -> None:
    assert 0.95 * most <= highest_rate(limited_to(most)) <= 1.01 * most


def test_a_sender_at_its_limit_ends_the_search() -> None:
    assert highest_rate(limited_to(1e6, sender=50_000.0)) == 50_000.0


def test_a_tunnel_that_loses_at_every_rate_has_none() -> None:
    assert highest_rate(lambda rate: Datagrams(rate, rate / 2, 0.5)) == 0.0
    assert highest_rate(limited_to(LOWEST_RATE / 2)) == 0.0


def test_one_hiccup_is_no_limit() -> None:
    hiccups = iter([False, True])

    def attempt(rate: float) -> Datagrams:
        if next(hiccups, False):
            return Datagrams(rate, 0.0, 1.0)
        return limited_to(100_000.0)(rate)

    assert highest_rate(attempt) > 95_000.0


def test_pings() -> None:
    lines = [f"64 bytes from 10.9.0.3: icmp_seq={at} ttl=64 time={at} ms" for at in range(1, 101)]
    again = "64 bytes from 10.9.0.3: icmp_seq=1 ttl=64 time=500 ms (DUP!)"
    pings = parse_pings("\n".join(["PING 10.9.0.3", *lines, again]), 104)
    assert (len(pings.times), pings.lost) == (100, 4)
    assert (pings.quantile(0.5), pings.quantile(0.99), pings.quantile(1.0)) == (0.050, 0.099, 0.100)
    with pytest.raises(LoadFailed):
        parse_pings("", 3).quantile(0.5)


def test_the_report_says_all(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=True, charts=tmp_path)
    report.machine({"processor": "one"}, ["a note"])
    report.say("busy")
    report.add(result)
    report.finish()
    printed = capsys.readouterr()
    for text in ("processor", "a note", "Speed & more", "1 stream", "5.00", "2.00", "ours: 1 stream: no answer"):
        assert text in printed.err
    document = json.loads(printed.out)
    assert document["machine"] == {"processor": "one"}
    (suite,) = document["suites"]
    speed = suite["quantities"][0]
    assert (speed["name"], speed["unit"], speed["more_is_better"]) == ("1 stream", "Gb/s", True)
    assert speed["contenders"]["ours"] == {"median": 5.0, "samples": [4.0, 9.0, 5.0], "subject_ratio": 1.0}
    assert suite["failures"] == ["ours: 1 stream: no answer"]
    assert (tmp_path / "tcp.svg").exists()


def test_without_root_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    assert bench.main(["--quick"]) == 4
    said = capsys.readouterr().err
    assert "needs root" in said
    assert "iperf3" in said


def test_every_suite_of_the_issue_is_there() -> None:
    data_plane = {"tcp", "pps", "rtt", "relay", "wireguard", "loss", "mtu", "cpu", "memory", "idle", "scale"}
    assert set(SUITES) == data_plane | {"carrier", "paths", "dns", "expose"}


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes programs that do what `script` says the first on PATH, or the only ones."""
    folder = tmp_path / "bin"
    folder.mkdir()
    before = os.environ["PATH"]

    def add(*programs: str, script: str = "exit 1", alone: bool = True) -> None:
        for program in programs:
            (folder / program).write_text(f"#!/bin/sh\n{script}\n")
            (folder / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder) if alone else f"{folder}:{before}")

    return add


def test_every_rival_of_the_issue_is_driven(on_path: Callable[..., None]) -> None:
    on_path(*(name for each in CANDIDATES for name in (each.program, *each.needs)))
    found, left_out = found_rivals()
    assert [rival.program for rival in found] == [
        *("wireguard-go", "boringtun-cli", "nebula", "tincd", "openvpn", "easytier-core", "tailscaled"),
    ]
    assert left_out == {}


def test_what_is_not_there_is_left_out_and_said(on_path: Callable[..., None], tmp_path: Path) -> None:
    on_path("tailscaled", "tailscale", "nebula", "tincd")
    found, left_out = found_rivals(str(tmp_path / "none"))
    assert [rival.name for rival in found] == ["tinc"]
    assert left_out == {
        "wireguard-go": f"left out: {tmp_path}/none is no program",
        "boringtun-cli": "left out: not on PATH",
        "nebula": "left out: it also takes nebula-cert (makes its certificates), not on PATH",
        "openvpn": "left out: not on PATH",
        "easytier-core": "left out: not on PATH",
        "tailscaled": "left out: it also takes headscale (its control server), not on PATH",
    }


def test_every_publisher_of_the_issue_is_driven(on_path: Callable[..., None]) -> None:
    on_path("haproxy", "frps", "rathole", "chisel")
    found, left_out = found_publishers()
    assert [each.name for each in found] == ["haproxy ×2", "rathole", "chisel"]
    assert left_out == {"frpc": "left out: not on PATH"}


def test_easytier_knows_its_peer() -> None:
    document = tomllib.loads(easytier_configuration("left", "s-e_c", "10.9.0.2", "198.51.100.2"))
    assert document["network_identity"] == {"network_name": "bench", "network_secret": "s-e_c"}
    assert document["peer"] == [{"uri": "udp://198.51.100.2:11010"}]
    assert (document["ipv4"], document["dhcp"], document["flags"]) == ("10.9.0.2", False, {"dev_name": "easytier0"})


def test_headscale_asks_nobody_outside(tmp_path: Path) -> None:
    document = tailscale.headscale_configuration(tmp_path)
    text = json.dumps(document)
    assert text.count("://") == text.count(f"http://{tailscale.CONTROL}:") == 1
    derp, dns = document["derp"], document["dns"]
    assert isinstance(derp, dict)
    assert isinstance(dns, dict)
    assert (derp["urls"], derp["paths"], derp["auto_update_enabled"], dns["magic_dns"]) == ([], [], False, False)
    assert (document["disable_check_updates"], document["logtail"]) == (True, {"enabled": False})


BROKEN = 'echo "one line"; echo "cannot open it" >&2; exit 3'
MUTE = "exec sleep 1000"


@pytest.mark.lab
@pytest.mark.parametrize(
    ("rival", "script", "said"),
    [
        (EasyTier(), BROKEN, "did not come up: ChildProcessError: easytier ended with status 3"),
        (tailscale.Tailscale(), BROKEN, "did not come up: ChildProcessError: headscale ended with status 3"),
        (WireGuard("stuck", ["stuck"]), MUTE, "did not come up: TimeoutError: stuck is up: not within 1 s"),
    ],
    ids=["broken daemon", "broken control server", "mute daemon"],
)
def test_a_rival_that_does_not_work_is_a_line(
    rival: Rival, script: str, said: str, on_path: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "PATIENCE", 1.0)
    on_path("easytier-core", "headscale", "stuck", script=script, alone=False)
    made = Result("tcp", "", "overlay")
    with Bench([], 1, 1, quick=True, say=lambda _: None).joined(made, [rival]) as joined:
        assert joined == []
    assert said in made.failures[0]
    last_words = ["one line", "cannot open it"] if script is BROKEN else []
    assert [line.partition(": ")[2] for line in made.failures[1:]] == last_words


def test_cpu_time_is_that_of_all_threads() -> None:
    before, ours = cpu_seconds([os.getpid()]), time.process_time()
    thread = threading.Thread(target=lambda: sum(range(5_000_000)))
    thread.start()
    sum(range(5_000_000))
    between = cpu_seconds([os.getpid()])
    thread.join()
    assert 0 < between - before <= time.process_time() - ours + 0.1


@pytest.mark.lab
def test_a_crowd_is_talked_to_in_turn() -> None:
    with Lab() as lab:
        circle = make_circle(lab, "c", 3)
        sent = circle.send(200.0, 0.5)
        assert 90 <= sent <= 101
        (pid,) = circle.processes_a
        assert cpu_seconds([pid]) > 0


@pytest.mark.lab
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--only", "none", "--json", "--charts", str(tmp_path)]
    status = bench.main([*words, "--suite", "tcp", "--suite", "cpu"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    tcp, cpu = document["suites"]
    assert (status, tcp["failures"], cpu["failures"]) == (0, [], []), printed.err
    (speed,) = tcp["quantities"]
    assert set(speed["contenders"]) == {"overlay", "veth"}
    assert all(each["median"] > 0 and len(each["samples"]) == 1 for each in speed["contenders"].values())
    assert {each["name"] for each in cpu["quantities"]} == {"sending end", "receiving end", "both ends"}
    assert {path.name for path in tmp_path.iterdir()} == {"tcp.svg", "cpu.svg"}
    assert document["machine"]["congestion control"]


@pytest.mark.lab
def test_many_nodes_join_stay_and_come_back_after_a_restart() -> None:
    made = Result("carrier", "", carrier.DIRECT)
    carrier.join_crowd(Bench([], 1, 1, quick=True, say=lambda _: None), made, 300)
    assert made.failures == []
    assert set(made.samples) == {carrier.MEMORY, carrier.JOINED, carrier.JOIN_CPU, carrier.RETURNED, carrier.DIALLED}
    assert (made.median(carrier.JOINED, "300 nodes by tcp") or 0) > 0


@pytest.mark.lab
def test_an_exposure_is_measured_beside_the_yardstick() -> None:
    made = Result("expose", "", expose.OURS)
    trial = Bench([], 1, 1, quick=True, say=lambda _: None)
    with expose.stage(trial, made, [HaproxyTwice()]) as joined:
        assert [ends.contender for ends in joined] == [*expose.TUNNELS, "haproxy ×2", expose.BARE]
        for part in expose.PARTS.values():
            part(trial, made, [ends for ends in joined if ends.contender == expose.OURS])
    assert made.failures == []
    measured = {expose.BULK, expose.CONNECTIONS, expose.REQUESTS, expose.AT_HALF, expose.ADDED}
    assert set(made.samples) == measured | {expose.MEMORY, expose.MEMORY_HTTP}
    assert (made.median(expose.BULK, expose.OURS) or 0) > 0


@pytest.mark.lab
@pytest.mark.parametrize("rival", [Frp(plain=True), Rathole(), Chisel()], ids=lambda rival: rival.name)
def test_a_publisher_that_does_not_work_is_a_line(rival: Frp | Rathole | Chisel, on_path: Callable[..., None]) -> None:
    on_path("frps", "frpc", "rathole", "chisel", script=BROKEN, alone=False)
    with Lab() as lab, pytest.raises(ChildProcessError, match="ended with status 3"):
        machine = lab.namespace("m")
        rival.publish(Stage(machine, machine, "127.0.0.1", "127.0.0.1", expose.TARGETS), 7000)


WRK = """
  Latency Distribution
     50%   16.95ms
     99%   {high}
  100 requests in 1.00s, 1.00MB read
{more}
Requests/sec:   3156.21
"""


@pytest.mark.parametrize(("high", "seconds"), [("43.70ms", 0.0437), ("910.00us", 0.00091), ("1.02s", 1.02)])
def test_what_wrk_says(high: str, seconds: float) -> None:
    rate, latency = expose.parse_wrk(WRK.format(high=high, more=""))
    assert rate == 3156.21
    assert latency == pytest.approx(seconds)


@pytest.mark.parametrize(
    "more",
    [
        "  Socket errors: connect 3, read 0, write 0, timeout 0",
        "  Socket errors: connect 0, read 1, write 0, timeout 5",
        "  Non-2xx or 3xx responses: 7",
    ],
)
def test_requests_that_failed_are_no_measurement(more: str) -> None:
    with pytest.raises(LoadFailed, match=more.strip()[:20]):
        expose.parse_wrk(WRK.format(high="1.00ms", more=more))


def test_an_echo_is_passed_on_and_answered() -> None:
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for command in (["answer", "0"], ["forward", "0", "127.0.0.1"]):
            words = [sys.executable, "-m", "tests.lab.bench.echo", *command, *map(str, ports)]
            process = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            assert process.stdout is not None
            ports.append(int(process.stdout.readline()))
        assert 0 < echo.ask("127.0.0.1", ports[1], 3) < 10
