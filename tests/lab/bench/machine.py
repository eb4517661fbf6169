"""The machine below the figures: what it is, and what processes use of it (proc(5))."""

import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def cpu_seconds(processes: Iterable[int]) -> float:
    """CPU time that processes have used until now, user and system, of all threads that live; to the microsecond."""
    total = 0
    for pid in processes:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mb(processes: Iterable[int]) -> float:
    """Memory resident now, MB (10**6 bytes)."""
    total = 0
    for pid in processes:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total / 1e6


def describe() -> dict[str, str]:
    """What has to stand beside every figure."""
    cpu = _first("/proc/cpuinfo", "model name")
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": f"{cpu}, {cores} core{'s' if cores != 1 else ''}",
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1e6:.1f} GB",
        "system": f"{_system()}, Linux {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "overlay": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "iperf3": _said("iperf3", "--version"),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _first(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _said(*command: str) -> str:
    """The first line that a program prints of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return "not found"
    return next(iter((done.stdout or done.stderr).splitlines()), "unknown")


def version_of(program: str) -> str:
    """Of a contender, in its own words."""
    for option in ("--version", "-version"):
        said = _said(program, option)
        if any(letter.isdigit() for letter in said):
            return said
    return "version unknown"
