"""Real engines on loopback sockets, with a socket pair where the TUN device would be. For this folder's tests."""

import os
import queue
import socket
import struct
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Self

from overlay.engine import Engine, Features, api
from overlay.engine.tun import Tun
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.checksum import pseudo_header, sum16
from overlay.wire.packet.virtio import NO_OFFLOAD, VIRTIO_HEADER_SIZE
from overlay.wire.wireguard.primitives import clamp, public_key

PATIENCE = 10.0  # s that a test waits for what should take milliseconds


def fake_tun(features: Features) -> tuple[Tun, socket.socket]:
    """A `Tun` and its other end, which trades `virtio header | packet`, one per message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.settimeout(PATIENCE)
    return Tun(ours, "fake0", features), theirs


def udp4(source: str, destination: str, payload: bytes, ports: tuple[int, int] = (1000, 2000)) -> bytes:
    """An IPv4 UDP packet with right checksums."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    length = 8 + len(payload)
    datagram = struct.pack(">HHHH", *ports, length, 0) + payload
    checksum = 0xFFFF - (pseudo_header(addresses, 17, length) + sum16(datagram)) % 0xFFFF
    datagram = datagram[:6] + struct.pack(">H", checksum) + datagram[8:]
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 1, 0x4000, 64, 17, 0) + addresses
    header = header[:10] + struct.pack(">H", 0xFFFF - sum16(header)) + header[12:]
    return header + datagram


def acknowledgement(source: str, destination: str, port: int, number: int) -> bytes:
    """An IPv4 packet with a TCP header that acknowledges up to `number`, and nothing else; without checksums."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    tcp = struct.pack(">HHIIBBHHH", port, 443, 1, number, 5 << 4, 0x10, 500, 0, 0)
    return struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, 0x4000, 64, 6, 0) + addresses + tcp


def udp6(source: str, destination: str, payload: bytes) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    length = 8 + len(payload)
    datagram = struct.pack(">HHHH", 1000, 2000, length, 0) + payload
    checksum = 0xFFFF - (pseudo_header(addresses, 17, length) + sum16(datagram)) % 0xFFFF
    return (
        struct.pack(">IHBB", 6 << 28, length, 17, 64) + addresses + datagram[:6] + struct.pack(">H", checksum) + payload
    )


class Machine:
    """One engine with its end of the fake TUN, its events and its key. Overlay addresses: 10.0.0.N and fd00::N."""

    def __init__(self, number: int, *, relay_clients: bool = False, wanted: Features | None = None) -> None:
        self.number = number
        self.private_key = clamp(os.urandom(32))
        self.public_key = public_key(self.private_key)
        self.ticket = int.from_bytes(os.urandom(8), "little")
        self.events: queue.Queue[api.Event] = queue.Queue()
        config = api.EngineConfig(
            private_key=self.private_key, number=number, interface="fake0", relay_clients=relay_clients
        )
        self.engine = Engine(
            config, self.events.put, wanted=wanted or Features(), open_tun=lambda name, found: self._open_tun(found)
        )
        self.tun: socket.socket

    def _open_tun(self, features: Features) -> Tun:
        tun, self.tun = fake_tun(features)
        return tun

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
        self.tun.close()

    @property
    def address(self) -> str:
        return f"10.0.0.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd00::{self.number}"

    @property
    def endpoint(self) -> Endpoint:
        return ("127.0.0.1", self.engine.port)

    def config(
        self,
        *,
        endpoints: tuple[Endpoint, ...] | None = None,
        transport: str = "record",
        cipher: api.Cipher = "chacha20-poly1305",
        preshared_key: bytes | None = None,
    ) -> api.PeerConfig:
        """This machine as a peer of others."""
        return api.PeerConfig(
            number=self.number,
            public_key=self.public_key,
            allowed=(ip_network(f"{self.address}/32"), ip_network(f"{self.address6}/128")),
            endpoints=(self.endpoint,) if endpoints is None else endpoints,
            transport="record" if transport == "record" else "wireguard",
            cipher=cipher,
            preshared_key=preshared_key,
        )

    def send(self, packet: bytes, header: bytes = NO_OFFLOAD) -> None:
        """The kernel sends a packet into the interface."""
        self.tun.send(header + packet)

    def receive(self) -> bytes:
        """What the engine gave to the kernel next, without its virtio header."""
        return self.receive_frame()[VIRTIO_HEADER_SIZE:]

    def receive_frame(self) -> bytes:
        return self.tun.recv(1 << 17)

    def silent(self) -> bool:
        """Has the kernel nothing to take right now?"""
        self.tun.setblocking(False)
        try:
            self.tun.recv(1 << 17, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.tun.settimeout(PATIENCE)
        return False

    def snapshot(self) -> api.EngineSnapshot:
        replies: queue.Queue[api.EngineSnapshot] = queue.Queue()
        self.engine.post(api.Inspect(replies.put))
        return replies.get(timeout=PATIENCE)

    def path_kind(self) -> str | None:
        """Of the way to the only peer."""
        (peer,) = self.snapshot().peers
        return None if peer.path is None else peer.path.kind

    def wait_for(self, kind: type[api.Event]) -> api.Event:
        """The next event of that kind; others before it are dropped."""
        while True:
            event = self.events.get(timeout=PATIENCE)
            if isinstance(event, kind):
                return event

    def set_relay(self, relay: "Machine") -> None:
        """Have `relay` carry for this machine; both ends are told."""
        relay.engine.post(api.SetClient(self.number, self.public_key, self.ticket))
        self.engine.post(api.SetRelay((relay.endpoint,), relay.number, relay.public_key, self.ticket))


def acquaint(one: Machine, other: Machine, *, cipher: api.Cipher = "chacha20-poly1305", direct: bool = True) -> None:
    """Make them peers of each other."""
    endpoints = None if direct else ()
    one.engine.post(api.SetPeer(other.config(endpoints=endpoints, cipher=cipher)))
    other.engine.post(api.SetPeer(one.config(endpoints=endpoints, cipher=cipher)))
