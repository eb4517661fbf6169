"""`recvmsg` on message headers that are made once: records come in without a Python object per fragment.

Knows no keys and no peers. How to receive is learnt from what came before: as it comes; taken apart into headers and
box bytes, where the kernel joins a record's datagrams to a run; or several datagrams at once, where it does not.
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Final

from overlay.engine.libc import address_of, get_errno, recvmsg
from overlay.engine.msghdr import (
    CMSG,
    CONTROL_SIZE,
    LENGTH,
    MAX_KEPT,
    MSGHDR,
    NAME_SIZE,
    SOL_UDP,
    TRAFFIC_CLASS,
    UDP_GRO,
    Iovecs,
    unpack_endpoint,
)
from overlay.engine.several import Several
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.fragments import FRAGMENT_HEADER_SIZE, MESSAGE_TYPE
from overlay.wire.relay import RELAY_HEADER_SIZE, RELAY_TYPE
from overlay.wire.wireguard import transport

MAX_RUN: Final = 65536
"""Bytes that `UDP_GRO` joins at most."""

_ALIGNMENT: Final = struct.calcsize("@N")
_CONTROL_LENGTH_AT: Final = struct.calcsize("@PIPNPN") - struct.calcsize("@N")
_RELAYED_STRIDE: Final = RELAY_HEADER_SIZE + FRAGMENT_HEADER_SIZE

_MIN_SCATTERED: Final = 512
"""Bytes; of smaller datagrams a run has so many that taking them apart costs the kernel what it saves us."""

_MAX_MISSES: Final = 4
"""Runs in a row that were not what they were expected to be, after which something else is expected."""

_MIN_SINGLES: Final = 16
"""Datagrams in a row that the kernel joined to nothing, after which two that wait together are taken at once …"""

_MAX_ALONE: Final = 8
"""… until so many calls in a row bring one, or a call a run."""

_pack_msghdr = MSGHDR.pack_into


class Run:
    """Datagrams as the kernel gave them: `size` bytes, cut each `segment` bytes, the last maybe shorter, all from
    `source`. A socket has one, and fills it anew with each call.

    Where fragments are expected, the kernel takes headers and box bytes apart as it copies them: then `whole` is true,
    and `headers` and `box` have the one and the other without a further copy; so it is with a datagram that came alone.
    `joined` has them as they came.
    """

    __slots__ = (
        "_alone", "_behind", "_box", "_control", "_control_address", "_controls", "_first", "_header", "_lies",
        "_linear", "_linear_iovecs", "_misses", "_name", "_name_address", "_next", "_other", "_reference",
        "_scatter", "_seen", "_several", "_several_kept", "_singles", "_size", "_sources", "_strides", "_told",
        "count", "drained", "headers", "offset", "payload", "segment", "size", "source", "traffic_class",
        "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = self.segment = 0
        self.source: Endpoint = ("", 0)
        self.traffic_class = 0
        """DSCP and ECN of all of its datagrams: the kernel joins none that differ in it."""
        self.whole = False
        """Does every datagram have a header and at least one byte of box, where `headers` and `box` say?"""
        self.count = 0
        """Of datagrams; only where `whole`."""
        self.headers = memoryview(b"")
        """The datagrams' headers, side by side; only where `whole`."""
        self.offset = 0
        """Bytes before the fragment header in each of them."""
        self.payload = 0
        """Bytes of box of each but the last; only where `whole`."""
        self.drained = False
        """Did the last call show that nothing more waits? False: that is not known."""
        self._box = memoryview(b"")
        self._lies: _Scatter | Several | None = None  # where this run lies, if not as it came
        self._linear = memoryview(bytearray(MAX_RUN))
        self._behind = {stride: self._linear[stride:] for stride in (FRAGMENT_HEADER_SIZE, _RELAYED_STRIDE)}
        self._linear_iovecs = Iovecs([self._linear])
        self._scatter: _Scatter | None = None  # the next run is expected to be like this
        self._misses = 0
        self._several: Several | None = None  # the next datagrams are expected to come one by one
        self._several_kept: Several | None = None
        self._first = self._next = 0  # of them: where this run begins, and the next one
        self._singles = self._alone = 0  # in a row
        self._size = self._other = 0  # of the places for them; of most of those that came last, if that is another
        self._header = bytearray(MSGHDR.size)
        self._reference = ctypes.c_void_p(address_of(self._header))
        self._name = bytearray(NAME_SIZE)
        self._name_address = address_of(self._name)
        self._control = bytearray(CONTROL_SIZE)
        self._control_address = address_of(self._control)
        self._sources: dict[bytes, Endpoint] = {}
        self._controls: dict[bytes, tuple[int, int]] = {}
        self._seen = b""  # the control data of the run before: most runs are like it
        self._told = 0  # the segment size that it told of
        self._strides = {MESSAGE_TYPE: FRAGMENT_HEADER_SIZE, RELAY_TYPE: _RELAYED_STRIDE}

    def keep_relayed(self) -> None:
        """Have runs of relayed messages stay as they come."""
        self._strides.pop(RELAY_TYPE, None)

    def begin(self) -> None:
        """What is received from now on waited together."""
        if self._several is None:
            self._alone = 0

    @property
    def followed(self) -> bool:
        """Did more come with the last call? Then `receive` has it, without one."""
        return self._several is not None and self._next < len(self._several.sizes)

    def receive(self, descriptor: int) -> bool:
        """Take the next run. False: nothing waits. Raises `OSError` for an error that the socket reports."""
        several = self._several
        if several is not None and self._next >= len(several.sizes):
            if self._alone >= _MAX_ALONE:
                several = self._several = None
                self._singles = self._alone = 0
            elif self._size != several.size:
                several.fit(self._size, several.stride)
        if several is not None:
            if self._next >= len(several.sizes):
                self._first = self._next = 0
                count = several.receive(descriptor)
                self.drained = count < several.number
                if not count:
                    return False
                self._look_what_comes(several, count)
            self._take(several)
            return True
        self.drained = False
        scatter = self._scatter
        iovecs = self._linear_iovecs if scatter is None else scatter.iovecs
        header = self._header
        _pack_msghdr(
            header, 0, self._name_address, NAME_SIZE, iovecs.address, len(iovecs.views), self._control_address,
            CONTROL_SIZE, 0,
        )  # fmt: skip
        size = recvmsg(descriptor, self._reference, 0)
        if size < 0:
            number = get_errno()
            if number == errno.EAGAIN or number == errno.EINTR:
                return False
            raise OSError(number, os.strerror(number))
        self.size = size
        (control_size,) = LENGTH.unpack_from(header, _CONTROL_LENGTH_AT)
        if control_size != len(self._seen) or not self._control.startswith(self._seen):
            self._see(bytes(self._control[:control_size]))
        self.segment = segment = self._told or size
        name = bytes(self._name)
        source = self._sources.get(name)
        self.source = source if source is not None else self._learn(name)
        if size > segment:
            self._singles = 0
        else:
            self._singles += 1
            self._alone += 1
            if self._singles >= _MIN_SINGLES and self._alone > 1 and size:
                self._expect_several(self._linear if scatter is None else scatter.headers)
        if scatter is None:
            self._lies = None
            stride = self._strides.get(self._linear[0]) if size else None
            self.whole = stride is not None and segment == size > stride
            if stride is not None:
                if self.whole:
                    self._look(self._linear, self._behind[stride], 1, size, stride)
                elif size > segment:
                    self._expect(stride)
            return True
        self._lies = scatter
        if (size > segment != scatter.size) or size <= scatter.stride:
            self.whole = False
        else:
            count = -(-size // scatter.size)
            self.whole = size - (count - 1) * scatter.size > scatter.stride
            self._look(scatter.headers, scatter.box, count, scatter.size, scatter.stride)
        return True

    def box(self) -> memoryview:
        """The datagrams' bytes behind the headers, side by side; only where `whole`."""
        return self._box[: self.size - self.count * (self.offset + FRAGMENT_HEADER_SIZE)]

    def joined(self) -> memoryview:
        """All of the run as it came, writable. Valid until the next `receive`."""
        lies, size = self._lies, self.size
        if lies is not None:
            self._linear[:size] = b"".join(self.pieces())
            self._lies = None
            if lies is self._scatter and size > lies.size:
                self._misses += 1
                if self._misses >= _MAX_MISSES:
                    # Something else comes now. The next run is taken as it is and shows what.
                    self._scatter = None
                    self._misses = 0
                    self.whole = False
        return self._linear[:size]

    def pieces(self) -> list[memoryview]:
        """All of the run as it came, when joined. Valid until the next `receive`; asking changes nothing."""
        lies = self._lies
        if lies is None:
            return [self._linear[: self.size]]
        return lies.pieces(self.size) if isinstance(lies, _Scatter) else lies.pieces(self._first, self._next)

    def hit(self) -> None:
        """What was expected came."""
        self._misses = 0

    def _take(self, several: Several) -> None:
        """The next run of those datagrams that came at once."""
        self._first = first = self._next
        self._next = end = several.run_from(first)
        control = several.control(first)
        if control != self._seen:
            self._see(control)
        name = several.name(first)
        source = self._sources.get(name)
        self.source = source if source is not None else self._learn(name)
        size, stride = several.sizes[first], several.stride
        self._lies = several
        if end - first == 1:
            self.size = size
            self.segment = self._told or size
            if self._told:
                self._alone = _MAX_ALONE  # the kernel joins after all
        else:
            self.segment = size
            self.size = (end - first - 1) * size + several.sizes[end - 1]
        self.whole = stride < size <= several.size and not self._told
        if self.whole:
            self._look(
                several.headers[first * stride :], several.box[first * several.payload :], end - first,
                several.size, stride,
            )  # fmt: skip

    def _look_what_comes(self, several: Several, count: int) -> None:
        """See whether several datagrams at once are what comes, and of which size."""
        if self._alone < _MAX_ALONE:
            self._alone = self._alone + 1 if count == 1 else 0
        sizes = several.sizes
        if sizes.count(several.size) * 2 < count:
            other = max(set(sizes), key=sizes.count)
            if other == self._other:
                self._size = max(other, _MIN_SCATTERED)
            self._other = other

    def _expect_several(self, first: memoryview) -> None:
        """Have what waits taken at once from now on. `first`: what the last run began with."""
        kind = first[0]
        stride = self._strides.get(kind, FRAGMENT_HEADER_SIZE if kind == transport.TYPE else 0)
        if stride:
            several = self._several_kept = self._several_kept or Several()
            several.sizes = []
            self._size = max(self.size, _MIN_SCATTERED)
            several.fit(self._size, stride)
            self._several = several
            self._alone = self._other = 0

    def _expect(self, stride: int) -> None:
        """A run of messages with headers of `stride` bytes came: have the next one taken apart, if it may be like this
        one."""
        if self.segment >= _MIN_SCATTERED:
            self._scatter = _Scatter(self.segment, stride)

    def _look(self, headers: memoryview, box: memoryview, count: int, size: int, stride: int) -> None:
        """The run lies there, if it is `whole`: `count` datagrams of `size` bytes with headers of `stride` bytes."""
        self.headers, self._box, self.count = headers, box, count
        self.offset, self.payload = stride - FRAGMENT_HEADER_SIZE, size - stride

    def _see(self, control: bytes) -> None:
        """Other control data than before came."""
        known = self._controls.get(control)
        if known is None:
            if len(self._controls) >= MAX_KEPT:
                self._controls.clear()
            known = self._controls[control] = self._read_control(control)
        self._seen = control
        self._told, self.traffic_class = known

    def _read_control(self, control: bytes) -> tuple[int, int]:
        """What control data tells: the segment size (0: nothing to cut), and the traffic class."""
        segment = traffic_class = at = 0
        while at + CMSG.size <= len(control):
            length, level, kind = CMSG.unpack_from(control, at)
            data = control[at + CMSG.size : at + length]
            if (level, kind) == (SOL_UDP, UDP_GRO):
                segment = int.from_bytes(data, sys.byteorder)
            elif (level, kind) in TRAFFIC_CLASS.values():
                traffic_class = int.from_bytes(data, sys.byteorder)
            at += max(CMSG.size, -(-length // _ALIGNMENT) * _ALIGNMENT)
        return segment, traffic_class

    def _learn(self, name: bytes) -> Endpoint:
        if len(self._sources) >= MAX_KEPT:
            self._sources.clear()
        source = self._sources[name] = unpack_endpoint(name)
        return source


class _Scatter:
    """Where headers and box bytes of a run go that is cut each `size` bytes with `stride` bytes of headers."""

    __slots__ = ("box", "headers", "iovecs", "size", "stride")

    def __init__(self, size: int, stride: int) -> None:
        self.size = size
        self.stride = stride
        payload = size - stride
        count = -(-MAX_RUN // size)
        self.headers = memoryview(bytearray(count * stride))
        self.box = memoryview(bytearray(count * payload))
        self.iovecs = Iovecs(
            [
                view
                for index in range(count)
                for view in (
                    self.headers[index * stride : (index + 1) * stride],
                    self.box[index * payload : (index + 1) * payload],
                )
            ]
        )

    def pieces(self, size: int) -> list[memoryview]:
        """A run of `size` bytes as it came, when joined."""
        views = self.iovecs.views
        count, rest = divmod(size, self.size)
        pieces = views[: 2 * count]
        if rest:
            pieces.append(views[2 * count][:rest])
            if rest > self.stride:
                pieces.append(views[2 * count + 1][: rest - self.stride])
        return pieces
