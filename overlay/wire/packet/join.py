"""Packets of one flow, put together into superpackets: GRO, the inverse of `superpacket.split`.

Joined is only what `split` would cut to the same packets again, by Linux's rules. Checksums are verified before they
are replaced by the superpacket's, or damage would be given a right one; where one is still to be made
(`virtio.NEEDS_CSUM`), none is computed. Knows no records, devices or sessions.

Each packet is taken for itself only where it must be. A row of packets that a sender cut from one superpacket is read
as a table of equal rows: what all must share is compared as it stands in the first.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ip, virtio
from overlay.wire.packet.ip import Octets
from overlay.wire.packet.rows import seems_followed, take_frames, take_padded
from overlay.wire.packet.segments import Segments, tcp_segment, udp_datagram
from overlay.wire.packet.virtio import NO_OFFLOAD, VIRTIO_HEADER, VIRTIO_HEADER_SIZE


def join(packets: Iterable[Octets], *, tcp: bool = True, udp: bool = True) -> list[Octets]:
    """Plain packets, in order → frames in which neighbours of one flow are one superpacket.

    Put together are whole packets with right checksums that differ only in what `split` counts on: TCP segments with
    ACK or ACK and PSH and a payload, next to one another in sequence; UDP datagrams of one size, the last may be
    smaller. Packets of one flow never overtake one another, except TCP segments that stood in the wrong order. `tcp`,
    `udp`: what the device takes (`TUN_F_TSO*`, `TUN_F_USO*`). Never raises: what it does not know, it leaves alone.
    """
    joiner = _Joiner(tcp, udp)
    for packet in packets:
        joiner.add(memoryview(packet))
    return joiner.frames()


def join_padded(
    packets: memoryview, stride: int, drops: Counter[str], *, tcp: bool = True, udp: bool = True
) -> list[Octets]:
    """As `join`, for packets side by side, each padded to `stride` bytes; the last, or an only one, may be shorter.

    What cannot be a packet is left out and counted in `drops`, by the reasons of `ip.total_length`.
    """
    size = len(packets)
    if 0 < size <= stride:  # one alone
        try:
            return [b"".join((NO_OFFLOAD, ip.trim(packets)))]
        except RemoteProtocolError as error:
            drops[error.reason] += 1
            return []
    joiner = _Joiner(tcp, udp)
    at = 0
    while at < size:
        try:
            at += stride * joiner.add_padded(packets[at:], stride)
        except RemoteProtocolError as error:
            drops[error.reason] += 1
            at += stride
    return joiner.frames()


def join_frames(frames: Sequence[memoryview], *, tcp: bool = True, udp: bool = True) -> list[Octets]:
    """As `join`, for frames that `virtio.validate` has passed; what cannot be joined comes back as the same object.

    A checksum that is still to be made is not verified: the record that brought the frame was authenticated. Frames
    that are superpackets already grow further, if their segment sizes agree.
    """
    if not _of_one_flow(frames):
        return list(frames)
    joiner = _Joiner(tcp, udp)
    at = 0
    while at < len(frames):
        at += joiner.add_frames(frames, at)
    return joiner.frames()


def join_unchecked(
    frames: Sequence[memoryview], drop: Callable[[str], None], *, tcp: bool = True, udp: bool = True
) -> list[Octets]:
    """As `join_frames`, for frames that `virtio.validate` has not seen yet: those that it refuses are left out, and
    `drop` is told the reason. Those that are like the one before but for what counts on are right if it is."""
    joiner = _Joiner(tcp, udp)
    at = 0
    while at < len(frames):
        frame = frames[at]
        try:
            virtio.validate(frame, frame[VIRTIO_HEADER_SIZE:])
        except RemoteProtocolError as error:
            drop(error.reason)
            at += 1
        else:
            at += joiner.add_frames(frames, at)
    return joiner.frames()


def _of_one_flow(frames: Sequence[memoryview]) -> bool:
    """May two of the frames be of one flow? A cheap question; no is certain, as far as anything could be joined."""
    if len(frames) < 2:
        return False
    flows: set[bytes] = set()
    for number, frame in enumerate(frames, 1):
        # Addresses and ports, of IPv4 without options and of IPv6 without extension headers.
        flows.add((frame[22:34] if frame[VIRTIO_HEADER_SIZE] == 0x45 else frame[18:54]).tobytes())
        if len(flows) < number:
            return True
    return False


class _Joiner:
    """The packets of one batch, in order, and the last run of each flow in it, to which more may come."""

    __slots__ = ("_last", "_output", "_protocols")

    def __init__(self, tcp: bool, udp: bool) -> None:
        self._protocols = {protocol for protocol, wanted in ((ip.TCP, tcp), (ip.UDP, udp)) if wanted}
        self._output: list[Segments | Octets] = []
        self._last: dict[bytes, Segments] = {}

    def frames(self) -> list[Octets]:
        return [entry.build() if isinstance(entry, Segments) else entry for entry in self._output]

    def add(self, packet: memoryview) -> None:
        run = self._read(packet, None, 0, 0)
        if run is not None:
            self._place(run)

    def add_padded(self, packets: memoryview, stride: int) -> int:
        """Add the first of the packets, and those after it that follow at once. Returns how many."""
        run = self._read(ip.trim(packets[:stride]), None, 0, 0)
        if run is None:
            return 1
        if seems_followed(run, packets, stride):
            take_padded(run, packets, stride)
        number = run.packets
        self._place(run)
        return number

    def add_frames(self, frames: Sequence[memoryview], at: int) -> int:
        """Add the frame at `at`, and those after it that follow at once. Returns how many."""
        frame = frames[at]
        flags, gso_type, _, gso_size, _, _ = VIRTIO_HEADER.unpack_from(frame)
        partial = flags & virtio.NEEDS_CSUM
        run = self._read(frame[VIRTIO_HEADER_SIZE:], frame, gso_size if gso_type else 0, partial)
        if run is None:
            return 1
        if partial and not run.ended and at + 1 < len(frames) and run.right():
            take_frames(run, frames, at + 1)
        number = run.packets
        self._place(run)
        return number

    def _read(self, packet: memoryview, frame: memoryview | None, gso_size: int, partial: int) -> Segments | None:
        """A packet that may be joined, if its checksums are right. None: it may not, and was passed on.

        `frame`: what `packet` came in, if in one; `partial`: non-zero if its checksum is still to be made.
        """
        size = len(packet)
        if size >= 28 and packet[0] == 0x45 and packet[2] << 8 | packet[3] == size:
            transport = 20
            protocol = packet[9]
            flow = packet[9:10].tobytes() + packet[12:24].tobytes()
            whole = not (packet[6] & 0x3F or packet[7])
        elif size >= 48 and packet[0] >> 4 == 6 and (packet[4] << 8 | packet[5]) + 40 == size:
            transport = 40
            protocol = packet[6]
            flow = packet[6:7].tobytes() + packet[8:44].tobytes()
            whole = True
        else:
            # Options, extension headers, or nothing known: it may belong to any flow, and none may overtake it.
            self._last.clear()
            self._output.append(frame if frame is not None else b"".join((NO_OFFLOAD, packet)))
            return None
        if not whole:
            self._last.clear()  # a fragment shows no ports
        elif protocol in self._protocols:
            read = tcp_segment if protocol == ip.TCP else udp_datagram
            run = read(packet, frame, flow, transport, gso_size, partial)
            if run is not None:
                return run
        self._last.pop(flow, None)  # none of its flow overtakes it
        self._output.append(frame if frame is not None else b"".join((NO_OFFLOAD, packet)))
        return None

    def _place(self, run: Segments) -> None:
        """Put it under the last run of its flow, or make it that."""
        last = self._last.get(run.flow)
        if last is not None:
            is_tcp = run.is_tcp
            if (not is_tcp or last.sequence + last.tail & 0xFFFFFFFF == run.sequence) and last.takes(run):
                last.append(run)
                return
            if is_tcp and run.sequence + run.tail & 0xFFFFFFFF == last.sequence and run.takes(last):
                run.append(last)
                run.position = last.position
                self._output[last.position] = run
                self._last[run.flow] = run
                return
        run.position = len(self._output)
        self._output.append(run)
        self._last[run.flow] = run
