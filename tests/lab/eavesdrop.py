"""Who listens on the way: a capture by the real tcpdump, and whether anything of a known plaintext is in it.

Let what is sent be one unit over and over: then one search finds any piece of it, wherever packets were cut.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lab.netns import Namespace

SEQUENCE = 8  # bytes: a run of the plaintext as long as this must not be in the capture


@contextlib.contextmanager
def captured(space: Namespace, interface: str, file: Path) -> Iterator[None]:
    """All that passes that interface meanwhile, in a pcap file. `--immediate-mode`: what still waits in a block of the
    kernel's ring when tcpdump ends would be lost."""
    command = (
        "tcpdump",
        "-i",
        interface,
        "-w",
        str(file),
        "-U",
        "--immediate-mode",
        "-s",
        "0",
        "-B",
        "65536",
        "-Z",
        "root",
    )
    process = space.popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        if not any("listening on" in line for line in process.stderr):
            raise AssertionError(f"tcpdump on {space.name} ended with {process.wait()}")
        yield
    finally:
        process.terminate()
        process.wait(10)


def holds(capture: Path, unit: bytes) -> bool:
    """Whether any run of `SEQUENCE` bytes of the repeated `unit` is in the file."""
    data = capture.read_bytes()
    endless = unit + unit
    return any(endless[start : start + SEQUENCE] in data for start in range(len(unit)))
