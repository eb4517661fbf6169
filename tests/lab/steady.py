"""A TCP stream that goes on at a steady pace while a path is cut: how long did nothing arrive?

The pace is the sender's. A reader's (curl's `--limit-rate`) shows nothing of the path: it takes megabytes at once out
of its buffer, and then pauses for seconds to be at its average again, on a network without any fault.
"""

import hashlib
import os
import socket
import threading
import time

from tests.lab.netns import Namespace, wait_for

TICK = 0.01  # s between two writes
PATIENCE = 60.0  # s


class Steady:
    """From `source` to `target`, which has that address. 4 MB/s unless told otherwise."""

    def __init__(self, source: Namespace, target: Namespace, address: str, rate: int = 4_000_000) -> None:
        self.received = 0  # bytes
        self.longest_pause = 0.0
        """s without a byte, since the last `mark`."""
        self._chunk = int(rate * TICK)
        self._ended = threading.Event()
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._last = time.monotonic()
        self._failure: Exception | None = None
        with target.enter(), socket.create_server((address, 0)) as listener:
            listener.settimeout(PATIENCE)
            with source.enter():
                self._out = socket.create_connection(listener.getsockname()[:2], PATIENCE)
            self._in = listener.accept()[0]
        self._in.settimeout(PATIENCE)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def wait_for_bytes(self, number: int) -> None:
        """Until so many more have come."""
        wanted = self.received + number
        wait_for(lambda: self.received >= wanted, f"{number} more bytes", PATIENCE)

    def mark(self) -> None:
        """Pauses count from now on."""
        self.longest_pause, self._last = 0.0, time.monotonic()

    def finish(self) -> None:
        """Send no more, and wait for the end. All has to have come as it was sent."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._came.digest() == self._sent.digest(), "the stream is not what was sent"

    def _send(self) -> None:
        try:
            with self._out:
                while not self._ended.wait(TICK):
                    data = os.urandom(self._chunk)
                    self._sent.update(data)
                    self._out.sendall(data)
        except OSError as error:
            self._failure = error

    def _receive(self) -> None:
        try:
            with self._in:
                while data := self._in.recv(1 << 20):
                    now = time.monotonic()
                    self.longest_pause, self._last = max(self.longest_pause, now - self._last), now
                    self._came.update(data)
                    self.received += len(data)
        except OSError as error:
            self._failure = error
