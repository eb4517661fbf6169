"""Numbered pieces of random content, for what carries datagrams: sent again until all have come, each try told apart.

A piece that comes damaged, or the same try of one that comes twice, is an `AssertionError`: a tunnel may lose packets,
it may not change or double them.
"""

import hashlib
import select
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Final, Protocol

HEADER: Final = struct.Struct(">8sII")  # of the transfer, number of the piece, try
QUIET: Final = 0.04  # s without an arrival after which what is missing is sent again
WINDOW: Final = 64  # pieces that are sent before anything is looked for
PATIENCE: Final = 90.0  # s that a transfer may take


class Units:
    """The pieces of one transfer. `sizes`: bytes of each, header included."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        random = Random(seed)
        self.marker = random.randbytes(8)
        """In every piece, first: tells a transfer's packets from others."""
        self._bodies = [random.randbytes(size - HEADER.size) for size in sizes]
        self._tries = [0] * len(sizes)
        self._arrived: dict[int, bytes] = {}
        self._seen: set[tuple[int, int]] = set()

    def missing(self) -> list[int]:
        return [number for number in range(len(self._bodies)) if number not in self._arrived]

    def have(self, numbers: Iterable[int]) -> bool:
        return all(number in self._arrived for number in numbers)

    def next_try(self, number: int) -> bytes:
        """The piece as it is to be sent now; another one each time."""
        self._tries[number] += 1
        return HEADER.pack(self.marker, number, self._tries[number]) + self._bodies[number]

    def arrived(self, piece: bytes) -> None:
        """Take a piece that came. Raises `AssertionError` if it is not one that was sent, or came before."""
        assert len(piece) >= HEADER.size, f"{len(piece)} bytes are no piece"
        marker, number, attempt = HEADER.unpack_from(piece)
        assert marker == self.marker, "a piece of another transfer"
        assert number < len(self._bodies), f"there is no piece {number}"
        assert 1 <= attempt <= self._tries[number], f"piece {number} was not sent {attempt} times"
        assert piece[HEADER.size :] == self._bodies[number], f"piece {number} came damaged"
        assert (number, attempt) not in self._seen, f"piece {number}, try {attempt}, came twice"
        self._seen.add((number, attempt))
        self._arrived[number] = piece[HEADER.size :]

    def digests(self) -> tuple[str, str]:
        """SHA-256 of what was sent, and of what came in the order of its numbers."""
        came = [self._arrived[number] for number in sorted(self._arrived)]
        return hashlib.sha256(b"".join(self._bodies)).hexdigest(), hashlib.sha256(b"".join(came)).hexdigest()


class Readable(Protocol):
    def fileno(self) -> int: ...


def deliver(
    units: Units,
    send: Callable[[Sequence[int]], None],
    receiver: Readable,
    receive: Callable[[], Iterable[bytes]],
) -> tuple[str, str]:
    """Have `send` send the pieces of these numbers until `receive` (which never waits) has brought all of them.

    Returns the digests. Raises `TimeoutError` after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while missing := units.missing():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(missing)} pieces did not come")
        window = missing[:WINDOW]
        send(window)
        while not units.have(window) and select.select([receiver], [], [], QUIET)[0]:
            for piece in receive():
                units.arrived(piece)
    return units.digests()
