"""What feeds the taps: stands before the methods of `Tun`, `UdpSocket` and `Link` while there are any. Engine thread.

While no tap is on, nothing of this is in a packet's way: the first one puts functions before the methods that move
packets, the last one takes them away again. So a method that is looked up at each call may be tapped, and callers must
not keep it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from overlay.engine.link import Link
from overlay.engine.msghdr import Name, RecordMessage
from overlay.engine.peers import Peers
from overlay.engine.relay_role import RelayRole
from overlay.engine.run import Run
from overlay.engine.tap import Octets, Tap
from overlay.engine.tun import Tun
from overlay.engine.udp import Buffers, UdpSocket, UdpSockets
from overlay.wire.disco import DISCO_TYPE
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.virtio import VIRTIO_HEADER_SIZE
from overlay.wire.record import fragments
from overlay.wire.record.buffers import Layout
from overlay.wire.relay import RELAY_TYPE
from overlay.wire.stream.framing import Frame
from overlay.wire.wireguard import transport

_UNIFORM_COLUMNS: Final = (0, 4, 5, 6, 7)
"""Bytes of a datagram that say whose it is: message type; receiver index, sender's or destination's number."""


class Taps:
    """The taps that are on, and the functions that feed them. Engine thread."""

    def __init__(self, tun: Tun | None, sockets: UdpSockets, peers: Peers, role: RelayRole | None) -> None:
        self._tun = tun
        self._sockets = sockets
        self._peers = peers
        self._role = role
        self._inner: list[Tap] = []
        self._outer: list[Tap] = []

    def start(self, tap: Tap) -> None:
        """From now on."""
        self.stop(tap)
        if tap.inner:
            self._inner.append(tap)
        if tap.outer:
            self._outer.append(tap)
        self._hook()

    def stop(self, tap: Tap) -> None:
        """No more; one that is not on is off already."""
        self._inner = [other for other in self._inner if other is not tap]
        self._outer = [other for other in self._outer if other is not tap]
        self._hook()

    def _hook(self) -> None:
        """Instance attributes stand before the class's methods: setting one puts us in the way, deleting it out."""
        if self._tun is not None:
            _replace(self._tun, self._inner, {"read": self._tapped_read, "write": self._tapped_write})
        ways: list[UdpSocket | Link] = [*self._sockets.all(), *self._sockets.links.values()]
        for way in ways:
            self._hook_way(way)
        self._peers.forget_channels()  # they keep what `message` gave

    def added(self, way: UdpSocket | Link) -> None:
        """One more socket or link; nobody uses it yet."""
        if self._outer:
            self._hook_way(way)

    def passed(self, datagram: Octets, port: int, endpoint: Endpoint, outbound: bool) -> None:
        """A datagram passed a socket that is none of the engine's ways."""
        if self._outer:
            self._outer_passed((datagram,), 0, port, endpoint, outbound)

    def _hook_way(self, way: UdpSocket | Link) -> None:
        sends = partial(self._tapped_send, way)
        _replace(way, self._outer, {"send": sends, "send_fragmented": sends, "plain_sender": _nothing})
        if isinstance(way, Link):
            _replace(way, self._outer, {"receive": partial(self._tapped_frames, way)})
            return
        _replace(way, self._outer, {"receive": partial(self._tapped_receive, way)})
        _replace(way, self._outer, {"message": partial(self._tapped_message, way)})
        _replace(way, self._outer, {"receive_alone": _nothing})  # the others serve

    # --- in a packet's way --------------------------------------------------------------------------------------------

    def _tapped_read(self, read: Callable[[memoryview, int], int]) -> Callable[..., int]:
        def tapped(view: memoryview, at: int = 0) -> int:
            size = read(view, at)
            if size:
                self._inner_passed(view[at + 4 : at + size], True)
            return size

        return tapped

    def _tapped_write(self, write: Callable[[Octets], str]) -> Callable[..., str]:
        def tapped(packet: Octets) -> str:
            outcome = write(packet)
            if not outcome:
                self._inner_passed(packet, False)
            return outcome

        return tapped

    def _tapped_receive(self, sock: UdpSocket, receive: Callable[[], Run | None]) -> Callable[[], Run | None]:
        def tapped() -> Run | None:
            run = receive()
            if run is not None:
                self._outer_passed(run.pieces(), run.segment, sock.port, run.source, False)
            return run

        return tapped

    def _tapped_frames(
        self, link: Link, receive: Callable[[float], list[Frame] | None]
    ) -> Callable[[float], list[Frame] | None]:
        def tapped(now: float) -> list[Frame] | None:
            ends = link.ends()  # before it may be lost
            frames = receive(now)
            for run, segment in frames or ():
                self._link_passed(link, ends, (run,), segment, False)
            return frames

        return tapped

    def _tapped_message(
        self, sock: UdpSocket, message: Callable[[Layout], RecordMessage]
    ) -> Callable[[Layout], "_TappedMessage"]:
        def tapped(layout: Layout) -> _TappedMessage:
            return _TappedMessage(message(layout), layout, sock.port, self._outer_passed)

        return tapped

    def _tapped_send(
        self, way: UdpSocket | Link, send: Callable[[Buffers, int, Endpoint, int], str]
    ) -> Callable[..., str]:
        def tapped(buffers: Buffers, segment: int, endpoint: Endpoint, traffic_class: int = 0) -> str:
            ends = way.ends() if isinstance(way, Link) else None
            outcome = send(buffers, segment, endpoint, traffic_class)
            if outcome:
                return outcome
            if isinstance(way, Link):
                self._link_passed(way, ends, buffers, segment, True)
            else:
                self._outer_passed(buffers, segment, way.port, endpoint, True)
            return outcome

        return tapped

    def _link_passed(
        self, link: Link, ends: tuple[int, Endpoint] | None, buffers: Buffers, segment: int, outbound: bool
    ) -> None:
        if ends is not None:
            owner = link.client if link.peer is None else link.peer
            self._outer_passed(buffers, segment, ends[0], link.endpoint, outbound, ends[1], owner)

    def _inner_passed(self, frame: Octets, outbound: bool) -> None:
        for tap in self._inner:
            if tap.number is None or self._owner(frame, outbound) == tap.number:
                tap.put_inner(frame, outbound)

    def _outer_passed(
        self,
        buffers: Buffers,
        segment: int,
        port: int,
        endpoint: Endpoint,
        outbound: bool,
        shown: Endpoint | None = None,
        owner: int | None = None,
    ) -> None:
        """`port`: ours. `shown`: the other end, where `endpoint` is the engine's name for it. `owner`: the node that is
        there, if that is known of the way itself."""
        there = shown or endpoint
        for tap in self._outer:
            number = tap.number
            if number is None or number == owner:
                tap.put_outer(buffers, segment, port, there, outbound)
                continue
            # A received run may hold messages of several nodes: the relay's port is theirs all.
            run = b"".join(buffers)
            for part in (run,) if _uniform(run, segment) else _datagrams(run, segment):
                if self._concerns(part, endpoint, outbound, number):
                    tap.put_outer((part,), segment, port, there, outbound)

    # --- whose it is --------------------------------------------------------------------------------------------------

    def _owner(self, frame: Octets, outbound: bool) -> int | None:
        """Number of the peer that has a packet's other address."""
        at = VIRTIO_HEADER_SIZE
        if len(frame) >= at + 20 and frame[at] >> 4 == 4:
            address = bytes(frame[at + 16 : at + 20] if outbound else frame[at + 12 : at + 16])
        elif len(frame) >= at + 40 and frame[at] >> 4 == 6:
            address = bytes(frame[at + 24 : at + 40] if outbound else frame[at + 8 : at + 24])
        else:
            return None
        peer = self._peers.allowed.lookup(address)
        return None if peer is None else peer.number

    def _concerns(self, message: bytes, endpoint: Endpoint, outbound: bool, number: int) -> bool:
        """Does this message go to that node or come from it, as far as can be told without opening it?"""
        kind = message[0] if message else -1
        named = int.from_bytes(message[4:8], "little") if len(message) >= 8 else None
        client = self._role.clients.get(number) if self._role is not None else None
        if client is not None and client.address == endpoint:
            return True
        if kind == RELAY_TYPE:
            return named == number
        if kind == DISCO_TYPE and not outbound:
            return named == number
        if kind in (transport.TYPE, fragments.MESSAGE_TYPE) and not outbound and named is not None:
            receiver = self._peers.receivers.get(named)
            return receiver is not None and receiver.peer.number == number
        peer = self._peers.by_number.get(number)
        if peer is None:
            return False
        return (peer.address == endpoint and not peer.relayed) or endpoint in peer.config.endpoints


class _TappedMessage:
    """In the place of a `RecordMessage`, for as long as its sender keeps it."""

    def __init__(
        self,
        message: RecordMessage,
        layout: Layout,
        port: int,
        passed: Callable[[Buffers, int, int, Endpoint, bool], None],
    ) -> None:
        self._message = message
        self._layout = layout
        self._port = port
        self._passed = passed

    def send(self, descriptor: int, name: Name, size: int, traffic_class: int = 0) -> int:
        failed = self._message.send(descriptor, name, size, traffic_class)
        if not failed:
            for buffers, segment in self._layout.batches(size):
                self._passed(buffers, segment, self._port, name.endpoint, True)
        return failed


def _replace(target: object, taps: list[Tap], hooks: dict[str, Callable[[Any], Callable[..., Any]]]) -> None:
    """Put `hooks` before the methods they are named after while there are taps, and take them away after."""
    attributes = vars(target)
    for name, hook in hooks.items():
        if taps and name not in attributes:
            attributes[name] = hook(getattr(target, name))
        elif not taps:
            attributes.pop(name, None)


def _nothing(method: Callable[..., object]) -> Callable[..., None]:
    return lambda **_: None


def _uniform(run: bytes, segment: int) -> bool:
    """Do all datagrams of the run concern the same node, by their headers?"""
    return not 0 < segment < len(run) or all(
        column.count(column[0]) == len(column) for at in _UNIFORM_COLUMNS if (column := run[at::segment])
    )


def _datagrams(run: bytes, segment: int) -> list[bytes]:
    return [run[at : at + segment] for at in range(0, len(run), segment)]
