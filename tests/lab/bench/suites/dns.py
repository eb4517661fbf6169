"""The resolver beside dnsmasq, asked by dnsperf: the same names on the same host, one processor for each server.

Zone answers as fast as they come and at a modest rate; answers of an upstream (another dnsmasq) that are kept, and ones
that are asked for the first time, beside the upstream asked directly.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.bench.load import LoadFailed
from tests.lab.bench.resolver import host_address
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.netns import Lab, Namespace, wait_for

TITLE = "Names"
OURS, RIVAL, UPSTREAM = "overlay", "dnsmasq", "the upstream itself"
PORTS = {OURS: 5301, RIVAL: 5302, UPSTREAM: 5303}

ZONE = Quantity("zone answers", "1/s")
ZONE_MEDIAN = Quantity("zone answers at 2,000/s, median", "ms", more_is_better=False)
ZONE_HIGH = Quantity("zone answers at 2,000/s, 99 %", "ms", more_is_better=False)
KEPT = Quantity("forwarded and kept", "1/s")
FRESH = Quantity("forwarded for the first time at 500/s, median", "ms", more_is_better=False)

HOSTS = 1000
MODEST, FRESH_RATE = 2000, 500  # questions per second
UNDER_WAY = 200
SERVERS, ASKERS = "0", "1"  # processors, where there are two


def run(bench: Bench) -> Result:
    result = Result("dns", TITLE, OURS)
    missing = [program for program in ("dnsperf", "dnsmasq") if shutil.which(program) is None]
    if missing:
        result.fail(RIVAL, "not measured", f"please install these packages: {' '.join(missing)}")
        return result
    with Lab() as lab:
        host = lab.namespace("dns")
        _start(lab, host)
        known, foreign = lab.directory / "zone.txt", lab.directory / "foreign.txt"
        known.write_text("".join(f"h{number}.local.test A\n" for number in range(1, HOSTS + 1)))
        foreign.write_text("".join(f"n{number}.wild.example A\n" for number in range(HOSTS)))
        for name in PORTS:
            _ask(host, name, known if name != UPSTREAM else foreign, "-n", "1")  # all is kept now that is to be kept
            _ask(host, name, foreign, "-n", "1")
        serial = 0

        def fresh(name: str) -> list[Sample]:
            nonlocal serial
            questions = lab.directory / "fresh.txt"
            count = FRESH_RATE * bench.seconds
            questions.write_text("".join(f"f{serial + n}.wild.example A\n" for n in range(count)))
            serial += count
            return [(FRESH, _quantile(_trips(host, name, questions, "-n", "1", "-Q", str(FRESH_RATE)), 0.5))]

        def modest(name: str) -> list[Sample]:
            trips = _trips(host, name, known, "-l", str(bench.seconds), "-Q", str(MODEST))
            return [(ZONE_MEDIAN, _quantile(trips, 0.5)), (ZONE_HIGH, _quantile(trips, 0.99))]

        probes: Sequence[tuple[str, Sequence[str], Callable[[str], list[Sample]]]] = (
            ("zone", (OURS, RIVAL), lambda name: [(ZONE, _rate(host, name, known, bench.seconds))]),
            ("modest", (OURS, RIVAL), modest),
            ("kept", (OURS, RIVAL), lambda name: [(KEPT, _rate(host, name, foreign, bench.seconds))]),
            ("fresh", (OURS, RIVAL, UPSTREAM), fresh),
        )
        for at in range(bench.rounds):
            for what, names, probe in probes:
                for name in names if at % 2 == 0 else names[::-1]:
                    bench.say(f"dns: {what}, {name}, round {at + 1} of {bench.rounds}")
                    try:
                        result.add(name, at, probe(name))
                    except EXPECTED as error:
                        result.fail(name, what, reason(error))
    return result


def _start(lab: Lab, host: Namespace) -> None:
    """The three servers, each answering."""
    hosts = lab.directory / "names"
    hosts.write_text("".join(f"{host_address(number)} h{number}.local.test\n" for number in range(1, HOSTS + 1)))
    common: tuple[str, ...] = (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--listen-address=127.0.0.1",
        "--no-resolv",
    )
    common += ("--bind-interfaces", "--no-hosts", "--user=root", "--pid-file=", "--no-poll")
    rival = (f"--port={PORTS[RIVAL]}", f"--addn-hosts={hosts}", "--local=/local.test/", "--cache-size=10000")
    upstream = (f"--port={PORTS[UPSTREAM]}", "--address=/wild.example/192.0.2.1", "--local-ttl=3600")
    resolver = (sys.executable, "-m", "tests.lab.bench.resolver", "--hosts", str(HOSTS))
    _server(host, *common, *upstream)
    _server(host, *common, *rival, f"--server=127.0.0.1#{PORTS[UPSTREAM]}")
    _server(host, *resolver, "--port", str(PORTS[OURS]), "--upstream", str(PORTS[UPSTREAM]))
    question = lab.directory / "first.txt"
    question.write_text("h1.local.test A\n")
    for name in PORTS:
        wait_for(lambda name=name: _answers(host, name, question), f"{name} answers")  # type: ignore[misc]


def _server(host: Namespace, *command: str) -> None:
    # Its standard input is a pipe of ours: it ends with the bench, whatever becomes of that.
    host.popen(_pinned(SERVERS, command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _pinned(processor: str, command: Sequence[str]) -> list[str]:
    return [*(("taskset", "-c", processor) if len(os.sched_getaffinity(0)) > 1 else ()), *command]


def _answers(host: Namespace, name: str, question: Path) -> bool:
    try:
        _ask(host, name, question, "-n", "1", "-t", "1")
    except LoadFailed:
        return False
    return True


def _ask(host: Namespace, name: str, questions: Path, *options: str) -> list[str]:
    """Lines that dnsperf prints. Raises `LoadFailed` if it got no answer at all."""
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(PORTS[name]), "-d", str(questions), *options]
    lines: list[str] = host.run(_pinned(ASKERS, command), capture_output=True, text=True).stdout.splitlines()
    if not any("Queries completed:" in line and not line.split()[2] == "0" for line in lines):
        raise LoadFailed(f"{name} answered nothing")
    return lines


def _rate(host: Namespace, name: str, questions: Path, seconds: int) -> float:
    lines = _ask(host, name, questions, "-l", str(seconds), "-c", "8", "-q", str(UNDER_WAY))
    return float(next(line.split()[-1] for line in lines if "Queries per second:" in line))


def _trips(host: Namespace, name: str, questions: Path, *options: str) -> list[float]:
    """The time that each answer took, ms, sorted."""
    lines = _ask(host, name, questions, "-v", *options)
    return sorted(float(line.split()[-1]) * 1e3 for line in lines if line.startswith("> NOERROR"))


def _quantile(trips: Sequence[float], share: float) -> float:
    if not trips:
        raise LoadFailed("no answer was timed")
    return trips[min(len(trips) - 1, int(share * len(trips)))]
