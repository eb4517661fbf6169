"""`recvmmsg`: the datagrams that wait, in one call, where the kernel does not join them to runs. Linux only.

Each datagram's first bytes go to one memory and the rest to another, at places for datagrams of one size, so that those
of a run lie as if they had been joined and taken apart. What is longer than its place goes on in a spill: nothing is
cut off.
"""

import ctypes
import errno
import os
from struct import Struct
from typing import Final

from overlay.engine.libc import address_of, get_errno, recvmmsg
from overlay.engine.msghdr import CONTROL_SIZE, IOVEC, NAME_SIZE

MAX_DATAGRAMS: Final = 32
"""That one call takes. A turn's share of runs is that of so many, each on its own at the worst."""

MAX_BYTES: Final = 65536
"""That their places have together; and what one datagram, or what the kernel joined after all, has at most."""

_MMSGHDR: Final = Struct("@PIPNPNi0PI0P")  # name, namelen, iov, iovlen, control, controllen, flags; length
_VIEWS: Final = 3  # of each datagram: header, box, spill
_MAX_STRIDE: Final = 32


class Several:
    """`sizes`: bytes of each datagram that the last call brought. `headers`: the first `stride` bytes of each, side by
    side; `box`: those behind, `payload` bytes apart."""

    __slots__ = (
        "_control_memory", "_iovecs", "_messages", "_names", "_reference", "_spill", "_template", "_uniform", "box",
        "controls", "headers", "number", "payload", "size", "sizes", "stride",
    )  # fmt: skip

    def __init__(self) -> None:
        self.headers = memoryview(bytearray(MAX_DATAGRAMS * _MAX_STRIDE))
        self.box = memoryview(bytearray(MAX_BYTES))
        self._spill = memoryview(bytearray(MAX_DATAGRAMS * MAX_BYTES))  # resident only where it was written to
        self._names = bytearray(MAX_DATAGRAMS * NAME_SIZE)
        self._control_memory = bytearray(MAX_DATAGRAMS * CONTROL_SIZE)
        self._iovecs = bytearray(MAX_DATAGRAMS * _VIEWS * IOVEC.size)
        self._messages = bytearray(MAX_DATAGRAMS * _MMSGHDR.size)
        self._reference = ctypes.c_void_p(address_of(self._messages))
        names, controls, iovecs = map(address_of, (self._names, self._control_memory, self._iovecs))
        for index in range(MAX_DATAGRAMS):
            _MMSGHDR.pack_into(
                self._messages, index * _MMSGHDR.size,
                names + index * NAME_SIZE, NAME_SIZE, iovecs + index * _VIEWS * IOVEC.size, _VIEWS,
                controls + index * CONTROL_SIZE, CONTROL_SIZE, 0, 0,
            )  # fmt: skip
        self._template = bytes(self._messages)
        self._uniform = True  # have all of the last call one source and one kind of control data?
        self.sizes: list[int] = []
        self.controls: list[int] = []  # bytes of control data of each
        self.number = self.size = self.stride = self.payload = 0

    def fit(self, size: int, stride: int) -> None:
        """Make places for datagrams of `size` bytes with headers of `stride` bytes."""
        self.size, self.stride, self.payload = size, stride, size - stride
        self.number = max(1, min(MAX_DATAGRAMS, MAX_BYTES // size))
        headers, box, spill = map(address_of, (self.headers, self.box, self._spill))
        payload = self.payload
        for index in range(self.number):
            at = index * _VIEWS * IOVEC.size
            IOVEC.pack_into(self._iovecs, at, headers + index * stride, stride)
            IOVEC.pack_into(self._iovecs, at + IOVEC.size, box + index * payload, payload)
            IOVEC.pack_into(self._iovecs, at + 2 * IOVEC.size, spill + index * MAX_BYTES, MAX_BYTES)

    def receive(self, descriptor: int) -> int:
        """Take what waits; how many datagrams came. Raises `OSError` for an error that the socket reports."""
        used = len(self.sizes) * _MMSGHDR.size
        self._messages[:used] = self._template[:used]
        if not self._uniform:  # what was written behind shorter control data would differ for good
            self._control_memory[:] = bytes(len(self._control_memory))
            self._names[:] = bytes(len(self._names))
        count: int = recvmmsg(descriptor, self._reference, self.number, 0, None)
        if count < 0:
            self.sizes = []
            number = get_errno()
            if number == errno.EAGAIN or number == errno.EINTR:
                return 0
            raise OSError(number, os.strerror(number))
        fields = list(_MMSGHDR.iter_unpack(memoryview(self._messages)[: count * _MMSGHDR.size]))
        self.sizes = [each[7] for each in fields]
        self.controls = [each[5] for each in fields]
        self._uniform = (
            self.controls.count(self.controls[0]) == count
            and self._names[: count * NAME_SIZE] == self._names[:NAME_SIZE] * count
            and self._control_memory[: count * CONTROL_SIZE] == self._control_memory[:CONTROL_SIZE] * count
        )
        return count

    def run_from(self, first: int) -> int:
        """Where the run ends that begins with datagram `first`: those behind it have its source and control data and,
        but for the last one, which may be shorter, fill their places."""
        sizes, size = self.sizes, self.size
        end, count = first + 1, len(sizes)
        if self._uniform and sizes[first] == size == sizes[-1] and sizes.count(size) == count:
            return count
        while (
            end < count
            and sizes[end - 1] == size
            and self.stride < sizes[end] <= size
            and (self._uniform or (self.name(end), self.control(end)) == (self.name(first), self.control(first)))
        ):
            end += 1
        return end

    def name(self, index: int) -> bytes:
        return bytes(self._names[index * NAME_SIZE : (index + 1) * NAME_SIZE])

    def control(self, index: int) -> bytes:
        at = index * CONTROL_SIZE
        return bytes(self._control_memory[at : at + self.controls[index]])

    def pieces(self, first: int, end: int) -> list[memoryview]:
        """Those datagrams as they came, when joined."""
        stride, payload = self.stride, self.payload
        found = []
        for index in range(first, end):
            size = self.sizes[index]
            found.append(self.headers[index * stride : index * stride + min(size, stride)])
            if size > stride:
                found.append(self.box[index * payload : index * payload + min(size - stride, payload)])
            if size > self.size:
                found.append(self._spill[index * MAX_BYTES : index * MAX_BYTES + size - self.size])
        return found
