"""`ping` in the background, and what came back so far: for tests that cut a path while something passes."""

import re
import subprocess
import threading

from tests.lab.netns import wait_for

INTERVAL = 0.05  # s between two pings
COMMAND = ("ping", "-n", "-D", "-i", str(INTERVAL))
_ANSWER = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) ttl")


class Pings:
    """Reads what a `ping -D` says."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        """`process`: started as `COMMAND` and more, its output a pipe."""
        self.arrivals: list[tuple[float, int]] = []
        """Of each answer: Unix time in s, and sequence number."""
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _ANSWER.match(line)
            if found is not None:
                self.arrivals.append((float(found[1]), int(found[2])))

    def wait_for_answers(self, number: int, patience: float = 10.0) -> None:
        """Until so many more have come."""
        wanted = len(self.arrivals) + number
        wait_for(lambda: len(self.arrivals) >= wanted, f"{number} more answers", patience)

    def answered(self) -> set[int]:
        """The sequence numbers that were answered, once ping ends by itself."""
        self._process.wait(timeout=60)
        self._reader.join()
        return {number for _, number in self.arrivals}

    def stop(self) -> None:
        """End ping now."""
        self._process.terminate()
        self._process.wait(timeout=10)
        self._reader.join()
