"""Measures how fast the network is, beside others, in network namespaces of its own. Takes minutes on an idle machine.

Run by `scripts/bench`.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from overlay.errors import Exit
from tests.lab.bench import machine, rivals
from tests.lab.bench.publishers import HAPROXY, found_publishers
from tests.lab.bench.report import Report
from tests.lab.bench.runner import Bench
from tests.lab.bench.suites import SUITES

ROUNDS, SECONDS = 3, 4
QUICK_ROUNDS, QUICK_SECONDS = 1, 1
NEEDS = {"iperf3": "iperf3", "ping": "iputils-ping", "ip": "iproute2", "gcc": "gcc"}  # program → Debian's package
BUFFER = 4_000_000  # bytes that iperf3 asks for with -w 4M, less its rounding


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES, help="one suite; may be repeated; default: all")
    parser.add_argument("--rounds", type=int, help=f"how often everything is measured in turn (default {ROUNDS})")
    parser.add_argument("--seconds", type=int, help=f"length of one measurement (default {SECONDS})")
    parser.add_argument("--nodes", type=int, help="how many join a server in the suite carrier (default 1900)")
    parser.add_argument("--quick", action="store_true", help="to see that it works, not how fast")
    parser.add_argument("--only", action="append", metavar="NAME", help="of the others, only this one; may be repeated")
    parser.add_argument("--wireguard-go", metavar="FILE", help="use this program, not the one on PATH")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="write an SVG chart per suite here")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser.parse_args(words)


def _obstacles() -> list[str]:
    found = []
    if os.geteuid() != 0:
        found.append("it makes network namespaces, which needs root: sudo ./scripts/bench")
    missing = [package for program, package in NEEDS.items() if shutil.which(program) is None]
    if missing:
        found.append(f"please install these packages: {' '.join(missing)}")
    return found


def _notes() -> list[str]:
    limits = (f"net.core.{name}" for name in ("rmem_max", "wmem_max"))
    small = [limit for limit in limits if int(Path("/proc/sys", *limit.split(".")).read_text()) < BUFFER]
    return [f"{limit} is too small for the suite pps: sysctl -w {limit}=4194304" for limit in small]


def main(words: list[str] | None = None) -> int:
    options = _arguments(words)
    obstacles = _obstacles()
    for obstacle in obstacles:
        sys.stderr.write(f"bench: {obstacle}\n")
    if obstacles:
        return Exit.REFUSED if os.geteuid() != 0 else Exit.FAILED
    report = Report(as_json=options.json, charts=options.charts)
    found, left_out = rivals.found_rivals(options.wireguard_go)
    others, others_left_out = found_publishers()
    if options.only:
        found = [rival for rival in found if rival.name in options.only]
        others = [other for other in others if other.name in (*options.only, HAPROXY)]
    programs = {rival.name: rival.program for rival in found} | {other.program: other.program for other in others}
    versions = {name: machine.version_of(program) for name, program in programs.items()}
    report.machine(machine.describe() | versions | left_out | others_left_out, _notes())
    bench = Bench(
        rivals=found,
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        seconds=options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
        quick=options.quick,
        say=report.say,
        nodes=options.nodes,
        publishers=others,
    )
    results = []
    for name in options.suite or SUITES:
        results.append(SUITES[name](bench))
        report.add(results[-1])
    report.finish()
    return Exit.FAILED if any(result.failures for result in results) else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
