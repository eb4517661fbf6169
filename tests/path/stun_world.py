"""A machine behind a simulated NAT that looks at it, and a STUN server of two addresses, in virtual time."""

from random import Random
from typing import Protocol, Unpack

from overlay.path.observation import Ask, Observer
from overlay.testing import Internet, LinkSettings, Nat, VirtualClock
from overlay.wire.endpoint import Endpoint

ADDRESSES = ("198.51.100.1", "198.51.100.2")
PORTS = (443, 3478)
SERVERS: tuple[Endpoint, ...] = tuple((host, port) for host in ADDRESSES for port in PORTS)
OWN = "192.168.1.10"
OWN_PORT = 41_000


class Machine(Protocol):
    done: bool

    def asks_to_send(self) -> list[Ask]: ...
    def next_timeout(self) -> float | None: ...
    def handle_timeout(self, now: float) -> None: ...
    def answered(self, number: int, at: int, mapped: Endpoint, source: Endpoint, now: float) -> None: ...
    def refused(self, number: int, now: float) -> None: ...
    def arrived(self, number: int, source: Endpoint, now: float) -> None: ...


class World:
    """Without a NAT (`nat` stays None) the machine is on the internet itself."""

    def __init__(self, *, seed: int = 0, addresses: int = 2, ports: int = 2, **link: Unpack[LinkSettings]) -> None:
        self.clock = VirtualClock()
        self.internet = Internet(self.clock, seed=seed, **link)
        self.asked = 0
        self._hosts, self._ports = ADDRESSES[:addresses], PORTS[:ports]
        self._random = Random(seed)
        self._sockets: dict[int, int] = {0: OWN_PORT}
        self._network: Internet = self.internet
        self._address = OWN
        for host in self._hosts:
            self.internet.attach(host, self._serve)

    def put_behind(self, nat: Nat) -> None:
        self._network = nat

    def run(self, machine: Machine, within: float = 60.0) -> bool:
        """Let it ask and be answered till it is done."""
        self._machine = machine
        self._network.attach(self._address, self._receive)
        self.clock.watch(machine, self._send)
        self._send()
        return self.clock.run_until(lambda: machine.done, within)

    def _send(self) -> None:
        for ask in self._machine.asks_to_send():
            port = self._sockets.setdefault(ask.socket, self._random.randrange(1024, 65536))
            if isinstance(self._machine, Observer):
                self._machine.opened(ask.socket, port)
            self.asked += 1
            said = (ask.number, int(ask.change_address), int(ask.change_port), ask.response_port or 0)
            self._network.send((self._address, port), ask.to, b"?" + ",".join(map(str, said)).encode())

    def _receive(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        kind, number, *rest = datagram[:1], *datagram[1:].decode().split(",")
        now = self.clock.now
        at = next(socket for socket, port in self._sockets.items() if port == destination[1])
        if kind == b"?":
            self._machine.arrived(int(number), source, now)
        elif kind == b"!":
            self._machine.answered(int(number), at, (rest[0], int(rest[1])), source, now)
        else:
            self._machine.refused(int(number), now)
        self._send()

    def _serve(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        number, address, port, response_port = (int(each) for each in datagram[1:].split(b","))
        host_at, port_at = self._hosts.index(destination[0]), PORTS.index(destination[1])
        if port_at >= len(self._ports):
            return
        if host_at + address >= len(self._hosts) or (port and len(self._ports) < 2):
            self.internet.send(destination, source, b"x%d" % number)
            return
        origin = (self._hosts[(host_at + address) % len(self._hosts)], self._ports[(port_at + port) % len(self._ports)])
        answer = f"!{number},{source[0]},{source[1]}".encode()
        self.internet.send(origin, (source[0], response_port or source[1]), answer)
