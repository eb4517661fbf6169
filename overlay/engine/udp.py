"""UDP sockets: runs of datagrams in and out with segmentation offload, and errors as words. Linux only.

A run is what the kernel takes and gives at once: datagrams of `segment` bytes each, one after the other, the last maybe
shorter. What it cannot do in one call is done here one datagram at a time, so that callers see runs only.

Datagrams carry DF, since the record layer cuts better than IP does: one that is too long for our own interface is
refused (`drops.SEND_TOO_LONG`), one that is too long further on is lost. What ICMP says of the path is not believed, as
anybody can say it: what the path takes is found by probes (`overlay.path.pmtu`).
"""

import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from overlay.engine import drops
from overlay.engine.features import Features
from overlay.engine.link import LINK_HOST, Link
from overlay.engine.msghdr import SOL_UDP, TRAFFIC_CLASS, UDP_GRO, UDP_SEGMENT, Name, Names, RecordMessage
from overlay.engine.run import MAX_RUN, Run
from overlay.errors import Exit, UserError
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import Layout

logger = logging.getLogger(__name__)

SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_DONT: Final = 0  # no DF: IP may fragment
PMTUDISC_PROBE: Final = 3  # DF, and EMSGSIZE above the interface's MTU, whatever ICMP said of the path's

SOCKET_BUFFER: Final = 7 << 20
"""Bytes asked for in either direction: a superpacket in flight per 0.1 ms at 10 Gb/s for 5 ms of our not looking."""

_MAX_MESSAGES: Final = 32
_PORT_ATTEMPTS: Final = 16

_REASONS: Final = {
    errno.EAGAIN: drops.SEND_BLOCKED,
    errno.ENOBUFS: drops.SEND_NO_BUFFERS,
    errno.ENOMEM: drops.SEND_NO_BUFFERS,
    errno.EMSGSIZE: drops.SEND_TOO_LONG,
    errno.ENETUNREACH: drops.SEND_UNREACHABLE,
    errno.EHOSTUNREACH: drops.SEND_UNREACHABLE,
    errno.ENETDOWN: drops.SEND_UNREACHABLE,
    errno.EADDRNOTAVAIL: drops.SEND_UNREACHABLE,
    errno.EPERM: drops.SEND_UNREACHABLE,  # a local firewall's "drop" on output
    errno.EACCES: drops.SEND_UNREACHABLE,
    errno.ECONNREFUSED: drops.SEND_UNREACHABLE,
}

Taken = tuple[memoryview, int, Endpoint, int]
"""A run as it came: bytes, segment size, source, traffic class."""

_SINGLES: Final = 8
"""Datagrams that come one by one before the next is expected to: a stream has some, too, and its runs are taken apart
by the kernel where they are expected."""

_ALONE_CONTROL: Final = 2 * socket.CMSG_SPACE(4)

Buffers = Sequence[bytes | bytearray | memoryview]


class UdpSocket:
    """One bound, non-blocking socket of one address family."""

    ordered = False
    """What waits for one socket has all others wait (`Outbox.busy`), so that nobody overtakes it anyway."""

    def __init__(self, sock: socket.socket, wanted: Features) -> None:
        """Takes `sock` over and probes what of `wanted` it can do."""
        sock.setblocking(False)
        self._socket = sock
        self._descriptor = sock.fileno()
        self._run = Run()
        self._names = Names(sock.family)
        self._places = [memoryview(bytearray(MAX_RUN))]  # of `receive_alone`
        self._singles = 0  # runs of one datagram each that came since the last of several
        self._messages: dict[Layout, RecordMessage] = {}
        self._ipv6 = sock.family == socket.AF_INET6
        self._unmarked = [(*TRAFFIC_CLASS[sock.family], bytes(4 if self._ipv6 else 1))]  # control data of most
        self._ancillary: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {(0, 0): []}
        self._set_fragmentation(PMTUDISC_PROBE)
        self._ask_traffic_class()
        self.features = replace(
            wanted,
            udp_gso=wanted.udp_gso and self._has_segmentation(),
            udp_gro=wanted.udp_gro and self._enable_receive_offload(),
            udp_buffers=self._enlarge_buffers(force=wanted.udp_buffers),
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def receive(self) -> Run | None:
        """The next run, valid until the next call; None: nothing waits.

        Raises `OSError` for an error that the socket reports; the next call may work.
        """
        run = self._run
        if not run.receive(self._descriptor):
            return None
        self._singles = 0 if run.segment < run.size else self._singles + 1
        return run

    def receive_alone(self) -> Taken | None:
        """As `receive`, for when one datagram is more likely than many: fewer calls, and many are copied once more.
        Bytes valid until the next call. None: ask `receive`."""
        if self._singles < _SINGLES:
            return None
        try:
            size, control, _, source = self._socket.recvmsg_into(self._places, _ALONE_CONTROL)
        except BlockingIOError:
            return None
        segment, traffic_class = size, 0
        if control != self._unmarked:
            for _, kind, data in control:
                if kind == UDP_GRO:
                    segment = int.from_bytes(data, sys.byteorder)
                    if segment < size:
                        self._singles = 0
                else:
                    traffic_class = data[0] if len(data) == 1 else int.from_bytes(data, sys.byteorder) & 0xFF
        return self._places[0][:size], segment, source if len(source) == 2 else _endpoint6(*source), traffic_class

    def plain_sender(self, *, nobody_waits: bool = False) -> Callable[[memoryview, Endpoint], object] | None:
        """What sends a datagram without a traffic class in the fewest steps, and raises `OSError`; None: use `send`."""
        return self._socket.sendto

    def begin(self) -> Run:
        """Where runs will lie; what waits now waited together."""
        self._run.begin()
        return self._run

    def record_limit(self, layout: Layout) -> int:
        """Bytes of the largest box that `message(layout)` sends: a batch, or a datagram where nothing segments."""
        if not self.features.udp_msghdr:
            return 0
        return layout.largest_batch if self.features.udp_gso else layout.payload

    def message(self, layout: Layout) -> RecordMessage:
        """What sends the records of `layout` on this socket in one call each."""
        message = self._messages.get(layout)
        if message is None:
            if len(self._messages) >= _MAX_MESSAGES:
                self._messages.clear()
            message = self._messages[layout] = RecordMessage(layout)
        return message

    def name(self, endpoint: Endpoint) -> Name | None:
        """The endpoint for `RecordMessage.send`; None: it is none of this family."""
        try:
            return self._names[endpoint]
        except OSError:
            return None

    def send(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """Send a run: `buffers` joined, cut each `segment` bytes; 0: one datagram. Returns "" or the reason of a drop.

        When a run has to go one by one, the reason is that of its first datagram that did not go; later ones did not.
        """
        try:
            if segment and not self.features.udp_gso:
                return self._send_singly(buffers, segment, endpoint, traffic_class)
            self._socket.sendmsg(buffers, self._control(segment, traffic_class), 0, endpoint)
        except OSError as error:
            if segment and error.errno in (errno.EIO, errno.EINVAL):
                return self._send_without_offload(error, buffers, segment, endpoint, traffic_class)
            return _reason(error)
        return ""

    def send_fragmented(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """As `send`, but IP may fragment: for what cannot be cut smaller."""
        self._set_fragmentation(PMTUDISC_DONT)
        try:
            if segment and self.features.udp_gso:
                try:
                    self._socket.sendmsg(buffers, self._control(segment, traffic_class), 0, endpoint)
                    return ""
                except OSError as error:
                    # The last two: segments above the path MTU that the kernel knows are not fragmented as a run.
                    if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                        return _reason(error)
            return self._send_singly(buffers, segment, endpoint, traffic_class)
        finally:
            self._set_fragmentation(PMTUDISC_PROBE)

    def forwards(self, send_buffer: int) -> None:
        """What is relayed goes on to others from here: leave it as it comes, and have the kernel hold `send_buffer`
        bytes of what goes out at most (and as much again of its own bookkeeping)."""
        self._run.keep_relayed()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_buffer)
        except OSError:  # not privileged: the plain option is cut to net.core.wmem_max, which is less still
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

    def close(self) -> None:
        self._socket.close()

    def _send_without_offload(
        self, error: OSError, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int
    ) -> str:
        """The kernel refused a run. EIO: the outgoing device has no checksum offload. EINVAL: on older kernels also a
        segment above the path MTU, so that one is only known by what becomes of the single datagrams."""
        outcome = self._send_singly(buffers, segment, endpoint, traffic_class)
        if error.errno == errno.EIO or not outcome:
            logger.warning("no segmentation offload on this UDP socket (%s); sending one by one", error.strerror)
            self.features = replace(self.features, udp_gso=False)
        return outcome

    def _send_singly(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int) -> str:
        control = self._control(0, traffic_class)
        for datagram in datagrams(buffers, segment):
            try:
                if control:
                    self._socket.sendmsg((datagram,), control, 0, endpoint)
                else:
                    self._socket.sendto(datagram, endpoint)
            except OSError as error:
                return _reason(error)
        return ""

    def _control(self, segment: int, traffic_class: int) -> list[tuple[int, int, bytes]]:
        ancillary = self._ancillary.get((segment, traffic_class))
        if ancillary is None:
            if len(self._ancillary) >= 4096:
                self._ancillary.clear()
            ancillary = self._ancillary[segment, traffic_class] = []
            if segment:
                ancillary.append((SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment)))
            if traffic_class:
                ancillary.append((*TRAFFIC_CLASS[self._socket.family], struct.pack("@i", traffic_class)))
        return ancillary

    def _ask_traffic_class(self) -> None:
        """Have each run tell its DSCP and ECN."""
        if self._ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)

    def _set_fragmentation(self, mode: int) -> None:
        if self._ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mode)

    def _has_segmentation(self) -> bool:
        try:
            self._socket.getsockopt(SOL_UDP, UDP_SEGMENT)
        except OSError as error:
            logger.info("no UDP segmentation offload (%s); sending one by one", error.strerror)
            return False
        return True

    def _enable_receive_offload(self) -> bool:
        try:
            self._socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError as error:
            logger.info("no UDP receive offload (%s); receiving one by one", error.strerror)
            return False
        return True

    def _enlarge_buffers(self, *, force: bool) -> bool:
        forced = force
        for forcing, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            if forced:
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, forcing, SOCKET_BUFFER)
                    continue
                except OSError as error:
                    logger.info("large socket buffers refused (%s); taking what is allowed", error.strerror)
                    forced = False
            self._socket.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)  # cut to net.core.[rw]mem_max
        return forced


def _endpoint6(host: str, port: int, flow: int, scope: int) -> Endpoint:
    """An IPv6 source as `socket` has it."""
    return (f"{host}%{socket.if_indextoname(scope)}" if scope and host.startswith("fe80:") else host), port


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, drops.SEND_REFUSED)


def datagrams(buffers: Buffers, segment: int) -> Iterator[bytes]:
    """What a run is on the wire: the joined buffers cut each `segment` bytes (0: not cut)."""
    joined = b"".join(buffers)
    for start in range(0, len(joined), segment or len(joined) or 1):
        yield joined[start : start + segment] if segment else joined


class UdpSockets:
    """The engine's sockets: one port number for both families, and links, each of which is one more way out."""

    def __init__(self, ipv4: UdpSocket, ipv6: UdpSocket | None) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.port = ipv4.port
        self.links: dict[Endpoint, Link] = {}
        self.special: dict[Endpoint, UdpSocket] = {}
        """Endpoints that are reached by a socket of their own: the NAT before us lets them in there alone."""
        self.lively_links: set[Link] = set()
        """Those that something happened to in this turn of the loop."""

    def all(self) -> list[UdpSocket]:
        own = [self.ipv4] if self.ipv6 is None else [self.ipv4, self.ipv6]
        return [*own, *self.special.values()] if self.special else own

    def to(self, endpoint: Endpoint) -> UdpSocket | Link | None:
        """What reaches `endpoint`; None: this machine lacks its family, or the link is gone."""
        host = endpoint[0]
        if self.special and endpoint in self.special:
            return self.special[endpoint]
        if ":" in host:
            return self.ipv6
        return self.ipv4 if host != LINK_HOST else self.links.get(endpoint)

    def send(self, buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
        """As `UdpSocket.send`, past the outbox."""
        sock = self.to(endpoint)
        return drops.SEND_NO_FAMILY if sock is None else sock.send(buffers, segment, endpoint, traffic_class)

    @property
    def features(self) -> Features:
        found = self.ipv4.features
        if self.ipv6 is not None:
            other = self.ipv6.features
            found = replace(
                found,
                udp_gso=found.udp_gso and other.udp_gso,
                udp_gro=found.udp_gro and other.udp_gro,
                udp_buffers=found.udp_buffers and other.udp_buffers,
            )
        return replace(found, udp_ipv6=self.ipv6 is not None)

    def close(self) -> None:
        for sock in self.all():
            sock.close()
        for link in self.links.values():
            link.close()
        self.links.clear()
        self.special.clear()


MakeSocket = Callable[[socket.AddressFamily], socket.socket]


def _new_socket(family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM)


def open_udp(port: int, wanted: Features, new_socket: MakeSocket = _new_socket) -> UdpSockets:
    """Bind `port` (0: one that is free in both families) on all addresses.

    Raises `UserError`: port-taken, port-not-permitted, udp-failed.
    """
    for attempt in range(_PORT_ATTEMPTS):
        last = port != 0 or attempt == _PORT_ATTEMPTS - 1
        try:
            return _open_pair(port, wanted, new_socket)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and not last:
                continue  # the port that IPv4 picked is taken in IPv6: pick anew
            raise _explained(error, port) from error
    raise AssertionError("the last attempt returns or raises")


def _open_pair(port: int, wanted: Features, new_socket: MakeSocket) -> UdpSockets:
    ipv4 = _bind(new_socket(socket.AF_INET), "0.0.0.0", port, wanted)
    try:
        ipv6 = _open_ipv6(ipv4.port, wanted, new_socket) if wanted.udp_ipv6 else None
    except BaseException:
        ipv4.close()
        raise
    return UdpSockets(ipv4, ipv6)


def _open_ipv6(port: int, wanted: Features, new_socket: MakeSocket) -> UdpSocket | None:
    try:
        sock = new_socket(socket.AF_INET6)
    except OSError as error:
        logger.info("no IPv6 on this machine (%s)", error.strerror)
        return None
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return _bind(sock, "::", port, wanted)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        logger.info("IPv6 is switched off on this machine")
        return None


def _bind(sock: socket.socket, host: str, port: int, wanted: Features) -> UdpSocket:
    try:
        sock.bind((host, port))
        return UdpSocket(sock, wanted)
    except BaseException:
        sock.close()
        raise


def _explained(error: OSError, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            "port-taken",
            f"UDP port {port} is taken by another program.",
            "Choose another port, or end the program that has it ('ss -ulpn' names it).",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(
            "port-not-permitted",
            f"UDP port {port} is not permitted.",
            "Run it as root, or choose a port from 1024 up.",
            Exit.REFUSED,
        )
    return UserError("udp-failed", f"UDP port {port} could not be opened: {error.strerror or error}.")
