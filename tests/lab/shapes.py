"""Every shape that a packet between two machines may have, each as a transfer that ends in equal bytes.

Most come from the kernel, as programs make it send them: TCP streams, UDP sockets (with `UDP_SEGMENT`, or so large that
IP fragments), pings. What no program makes it send is crafted, and put on the interface with its virtio-net header.
Knows addresses and interfaces, and nothing of the program under test.
"""

import contextlib
import errno
import hashlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple, Protocol

from overlay.wire.packet.superpacket import split
from tests.lab.netns import Namespace
from tests.lab.packet_socket import VNET_SIZE, PacketSocket
from tests.lab.units import HEADER, PATIENCE, Units, deliver
from tests.wire.packet.packets import TCP, UDP, Flow, internet_checksum

ICMP: Final = {4: 1, 6: 58}
GRE: Final = 47
UDP_SEGMENT: Final = 103
PORT: Final = 5001
BUFFER: Final = 4 << 20
_LOST: Final = (errno.EAGAIN, errno.ENOBUFS)
"""What a full queue answers: the packet is as good as lost, and will be sent again."""


@dataclass(frozen=True, slots=True)
class Way:
    """From one machine to another, inside: their addresses by IP version, and their interfaces."""

    sender: Namespace
    receiver: Namespace
    source: Mapping[int, str]
    target: Mapping[int, str]
    sender_interface: str
    receiver_interface: str


class Kind(NamedTuple):
    """What tells one shape of frame from another."""

    version: int
    protocol: int  # of the transport; behind IPv6's extension headers, that of the first of them is in `extra`
    gso_type: int = 0  # virtio_net_hdr's
    partial: bool = False  # its checksum is still to be made
    extra: bool = False  # IPv4 options, or IPv6 extension headers
    fragment: bool = False


_EXTENSIONS: Final = (0, 43, 44, 60)  # hop-by-hop, routing, fragment, destination


def kind_of(frame: bytes) -> Kind:
    """Of a frame that a kernel made."""
    partial, gso_type = frame[0] & 1 != 0, frame[1]
    packet = frame[VNET_SIZE:]
    if packet[0] >> 4 == 4:
        offset_field = struct.unpack_from(">H", packet, 6)[0]
        return Kind(4, packet[9], gso_type, partial, packet[0] != 0x45, offset_field & 0x3FFF != 0)
    protocol, at, fragment = packet[6], 40, False
    while protocol in _EXTENSIONS:
        fragment |= protocol == 44
        protocol, at = packet[at], at + (packet[at + 1] + 1) * 8
    return Kind(6, protocol, gso_type, partial, at > 40 and not fragment, fragment)


class Shape(Protocol):
    @property
    def kind(self) -> Kind:
        """What the sender's interface must have seen, if it has all offloads, for the transfer to have shown this."""
        ...

    def carry(self, way: Way, seed: int) -> tuple[str, str]:
        """Transfer something; SHA-256 at either end."""
        ...


def _socket(namespace: Namespace, version: int, kind: int, protocol: int = 0) -> socket.socket:
    with namespace.enter():
        made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind, protocol)
    made.setblocking(False)
    return made


Option = tuple[int, int, bytes]
"""level, name and value for `setsockopt`."""

ROUTER_OPTIONS: Final[Option] = (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")  # padding, the shortest
HOP_BY_HOP: Final[Option] = (socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, b"\0\0\x01\x04\0\0\0\0")
DESTINATION: Final[Option] = (
    socket.IPPROTO_IPV6,
    socket.IPV6_DSTOPTS,
    b"\0\x01\x1e\x0c" + bytes(12),
)  # experimental (RFC 4727)


@dataclass(frozen=True, slots=True)
class Stream:
    """A TCP connection with `size` bytes each way at once.

    `sysctls`: of `net.ipv4.`, for both machines. `window`: bytes that either end buffers (0: as the kernel likes), and
    `halfway`: called once half of the bytes came; with both, what is called happens while there is much to send.
    """

    version: int
    size: int = 1_500_000
    options: Sequence[Option] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    window: int = 0
    halfway: Callable[[], None] | None = None

    @property
    def kind(self) -> Kind:
        return Kind(self.version, TCP, 1 if self.version == 4 else 4, partial=True, extra=bool(self.options))

    def carry(self, way: Way, seed: int) -> tuple[str, str]:
        there, back = Random(seed).randbytes(self.size), Random(seed + 1).randbytes(self.size)
        with self._connection(way) as (client, server):
            received = _pump({client: there, server: back}, {client: len(back), server: len(there)}, self.halfway)
        return _digest(there + back), _digest(received[server] + received[client])

    @contextlib.contextmanager
    def _connection(self, way: Way) -> Iterator[tuple[socket.socket, socket.socket]]:
        with contextlib.ExitStack() as stack:
            for machine in (way.sender, way.receiver):
                for name, value in self.sysctls.items():
                    stack.enter_context(_sysctl(machine, f"net.ipv4.{name}", value))
            listener = stack.enter_context(_socket(way.receiver, self.version, socket.SOCK_STREAM))
            client = stack.enter_context(_socket(way.sender, self.version, socket.SOCK_STREAM))
            for each in (listener, client):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if self.window:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.window)
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.window)
                for option in self.options:
                    each.setsockopt(*option)
            listener.bind((way.target[self.version], PORT))
            listener.listen(1)
            listener.settimeout(PATIENCE)
            client.settimeout(PATIENCE)
            client.connect((way.target[self.version], PORT))
            server = stack.enter_context(listener.accept()[0])
            for each in (client, server):
                each.setblocking(False)
            yield client, server


@contextlib.contextmanager
def _sysctl(machine: Namespace, name: str, value: int) -> Iterator[None]:
    before = machine.run(["sysctl", "-n", name]).stdout.strip()
    machine.set(name, value)
    try:
        yield
    finally:
        machine.set(name, before)


def _pump(
    sending: Mapping[socket.socket, bytes],
    wanted: Mapping[socket.socket, int],
    halfway: Callable[[], None] | None,
) -> dict[socket.socket, bytes]:
    """Send and receive on all sockets at once; what each received. Raises `TimeoutError`."""
    half = sum(wanted.values()) // 2
    left = {each: memoryview(data) for each, data in sending.items()}
    received = {each: bytearray() for each in wanted}
    deadline = time.monotonic() + PATIENCE
    while any(left.values()) or any(len(received[each]) < size for each, size in wanted.items()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{[len(data) for data in received.values()]} bytes came")
        readable, writable, _ = select.select(received, [each for each in left if left[each]], [], 1.0)
        for each in writable:
            left[each] = left[each][each.send(left[each][: 1 << 18]) :]
        for each in readable:
            data = each.recv(1 << 18)
            assert data, "the connection ended early"
            received[each] += data
        if halfway is not None and sum(map(len, received.values())) >= half:
            halfway()
            halfway = None
    return {each: bytes(data) for each, data in received.items()}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Datagrams:
    """UDP sockets. `segments` above 1: so many datagrams in one `sendmsg` with `UDP_SEGMENT`."""

    version: int
    size: int  # bytes of payload
    count: int
    segments: int = 1
    options: Sequence[Option] = ()

    @property
    def kind(self) -> Kind:
        fragment = self.size > 1300
        return Kind(
            self.version,
            UDP,
            5 if self.segments > 1 else 0,
            partial=not fragment and not (self.options and self.version == 6),
            extra=bool(self.options),
            fragment=fragment,
        )

    def carry(self, way: Way, seed: int) -> tuple[str, str]:
        units = Units([self.size] * self.count, seed)
        with (
            _socket(way.receiver, self.version, socket.SOCK_DGRAM) as receiver,
            _socket(way.sender, self.version, socket.SOCK_DGRAM) as sender,
        ):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            receiver.bind((way.target[self.version], PORT))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            for option in self.options:
                sender.setsockopt(*option)
            sender.connect((way.target[self.version], PORT))

            def send(numbers: Sequence[int]) -> None:
                for at in range(0, len(numbers), self.segments):
                    pieces = [units.next_try(number) for number in numbers[at : at + self.segments]]
                    cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", self.size))] if len(pieces) > 1 else []
                    with _losses():
                        sender.sendmsg(pieces, cut)

            return deliver(units, send, receiver, lambda: _received(receiver))


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _LOST:
            raise


def _received(receiver: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield receiver.recv(1 << 16)
        except BlockingIOError:
            return


@dataclass(frozen=True, slots=True)
class Echo:
    """Pings with content, `size` bytes of it: it has to come back from the other machine's kernel, each ping once."""

    version: int
    size: int
    count: int

    @property
    def kind(self) -> Kind:
        return Kind(self.version, ICMP[self.version], fragment=self.size > 1300)

    def carry(self, way: Way, seed: int) -> tuple[str, str]:
        units = Units([self.size] * self.count, seed)
        request, reply = (8, 0) if self.version == 4 else (128, 129)
        with _socket(way.sender, self.version, socket.SOCK_RAW, ICMP[self.version]) as pinger:
            pinger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            pinger.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            pinger.connect((way.target[self.version], 0))

            def send(numbers: Sequence[int]) -> None:
                for number in numbers:
                    message = struct.pack(">BBHHH", request, 0, 0, 7, number) + units.next_try(number)
                    if self.version == 4:  # for ICMPv6 the kernel makes the checksum
                        message = message[:2] + struct.pack(">H", internet_checksum(message)) + message[4:]
                    with _losses():
                        pinger.send(message)

            def receive() -> Iterator[bytes]:
                for packet in _received(pinger):
                    message = packet[(packet[0] & 15) * 4 :] if self.version == 4 else packet
                    if message[0] == reply and message[8:16] == units.marker:
                        yield message[8:]

            return deliver(units, send, pinger, receive)


@dataclass(frozen=True, slots=True)
class Crafted:
    """Packets made by hand, on the sender's interface with their offload fields; on the receiver's, whole packets are
    compared. `segments` above 1: in superpackets; `partial`: with the checksum still to be made; `fragment`: IPv4's
    flags and offset field."""

    flow: Flow
    size: int  # bytes of payload, per packet
    count: int
    segments: int = 1
    partial: bool = False
    fragment: int = 0
    checksum: bool = True  # UDP over IPv4 may go without

    @property
    def kind(self) -> Kind:
        flow = self.flow
        gso_type = 0 if self.segments == 1 else 5 if flow.protocol == UDP else 1 if flow.version == 4 else 4
        fragment = self.fragment != 0 or flow.extension == 44
        return Kind(
            flow.version,
            flow.protocol,
            gso_type,
            partial=self.partial or self.segments > 1,
            extra=bool(flow.ip_extra) and not fragment,
            fragment=fragment,
        )

    def carry(self, way: Way, seed: int) -> tuple[str, str]:
        units = Units([self.size] * self.count, seed)
        sent: dict[bytes, bytes] = {}  # the piece's header → the plain packet that has to come
        with (
            PacketSocket(way.sender, way.sender_interface) as sender,
            PacketSocket(way.receiver, way.receiver_interface) as receiver,
        ):

            def send(numbers: Sequence[int]) -> None:
                for at in range(0, len(numbers), self.segments):
                    pieces = [units.next_try(number) for number in numbers[at : at + self.segments]]
                    frame, packets = self._frame(pieces, numbers[at])
                    for piece, packet in zip(pieces, packets, strict=True):
                        sent[piece[: HEADER.size]] = _comparable(packet)
                    with _losses():
                        sender.send(frame)

            def receive() -> Iterator[bytes]:
                for frame in receiver.frames():
                    for packet in split(memoryview(frame)):
                        at = packet.find(units.marker)
                        if at >= 0:
                            assert _comparable(packet) == sent[packet[at : at + HEADER.size]], "a packet came changed"
                            yield packet[at:]

            return deliver(units, send, receiver, receive)

    def _frame(self, pieces: Sequence[bytes], number: int) -> tuple[bytes, list[bytes]]:
        """A frame with these pieces, and the plain packets that it stands for."""
        numbers = {"identification": number + 1 & 0xFFFF, "sequence": number * self.size}
        data = b"".join(pieces)
        packets = [self._changed(packet) for packet in self.flow.stream(data, self.size, **numbers)]
        if len(pieces) > 1:
            return self.flow.superpacket(data, self.size, **numbers), packets
        if self.partial:
            return self.flow.partial(packets[0]), packets
        return bytes(VNET_SIZE) + packets[0], packets

    def _changed(self, packet: bytes) -> bytes:
        changed = bytearray(packet)
        if not self.checksum:
            changed[26:28] = bytes(2)
        if self.fragment:
            struct.pack_into(">HHH", changed, 6, self.fragment, changed[8] << 8 | changed[9], 0)
            struct.pack_into(">H", changed, 10, internet_checksum(bytes(changed[: self.flow.transport()])))
        return bytes(changed)


def _comparable(packet: bytes) -> bytes:
    """Less IPv4's identification and the checksum over it, where it means nothing (RFC 6864 §4.1)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + packet[6:10] + packet[12:]
    return packet
