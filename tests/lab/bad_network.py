"""Two engines whose datagrams pass a cable that can be made bad: direct, through a relay, or to a stock WireGuard."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from tests.lab.delay_link import Conditions, DelayLink
from tests.lab.engines import EngineHost, Key, wait_for_ping
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.shapes import Way
from tests.lab.wireguard import WireGuardGo

INNER: Final = {2: {4: "10.77.0.2", 6: "fd00::a"}, 3: {4: "10.77.0.3", 6: "fd00::b"}}
"""Overlay addresses by node number; the packets of `tests.wire.packet.packets` have the same."""

HOST_A, HOST_B = "198.51.100.1", "198.51.100.2"
FAR_RELAY, FAR_B = "203.0.113.1", "203.0.113.2"
GOOD: Final = Conditions(delay=0.001, seed=7)
NEVER: Final = ("internal_error", "tun_refused", "bad_offload", "wrong_source", "short_frame", "bad_frame_length")
"""Drops that no fault of a network may bring about between two honest nodes."""

_COUNTERS: Final = {"loss": "lost", "duplicate": "duplicated", "reorder": "reordered", "corrupt": "corrupted"}

Peer = Literal["record", "wireguard", "wireguard-go"]


def allowed(number: int) -> list[str]:
    return [f"{INNER[number][4]}/32", f"{INNER[number][6]}/128"]


class BadNetwork:
    """Node 2 on machine `a` (`one`), node 3 on `b` (`other`; None: it is `wireguard-go`).

    The cable, good at first, is between a and b, or between a and the relay. `without`: features that a's engine lacks.
    """

    def __init__(self, lab: Lab, *, peer: Peer = "record", without: Sequence[str] = (), relay: bool = False) -> None:
        self.a, self.b = lab.namespace("a"), lab.namespace("b")
        self.relay: EngineHost | None = None
        middle = lab.namespace("r") if relay else self.b
        self.link = _cable(lab, self.a, middle)
        if relay:
            lab.link(middle, f"{FAR_RELAY}/24", self.b, f"{FAR_B}/24")
        self.one = EngineHost(
            self.a, Key(), 2, addresses=_addresses(2), options=[f"--without={name}" for name in without]
        )
        self.other: EngineHost | None = None
        if peer == "wireguard-go":
            self._stock_peer()
        else:
            self.other = EngineHost(self.b, Key(), 3, addresses=_addresses(3))
            if relay:
                self.relay = EngineHost(middle, Key(), 1, options=["--relay-clients", "--no-tun"])
                _use_relay(self.relay, self.one, HOST_B)
                _use_relay(self.relay, self.other, FAR_RELAY)
            endpoints = ([], []) if relay else ([(HOST_B, self.other.port)], [(HOST_A, self.one.port)])
            for host, known, where in zip((self.one, self.other), (self.other, self.one), endpoints, strict=True):
                host.peer(known.key, known.number, allowed(known.number), where, transport=peer, cipher="aes-256-gcm")
        wait_for_ping(self.a, INNER[3][4])
        interface = self.other.ready["interface"] if self.other is not None else self.wireguard.interface
        self.way = Way(self.a, self.b, INNER[2], INNER[3], self.one.ready["interface"], interface)

    def _stock_peer(self) -> None:
        key = Key()
        self.wireguard = WireGuardGo(self.b, key, addresses=_addresses(3))
        self.b.run(["ip", "link", "set", self.wireguard.interface, "mtu", "1380"])
        self.wireguard.peer(self.one.key, allowed(2), endpoint=f"{HOST_A}:{self.one.port}")
        self.one.peer(key, 3, allowed(3), [(HOST_B, 51820)], transport="wireguard")

    @property
    def hosts(self) -> list[EngineHost]:
        """Our engines."""
        return [host for host in (self.one, self.other, self.relay) if host is not None]

    @contextlib.contextmanager
    def faults(self, **faults: float) -> Iterator[None]:
        """The cable has these faults, named as in `Conditions`, and each happens both ways before it loses them."""
        before = self.link.counters()
        self.link.change(**faults)
        yield
        self.link.change(**dict.fromkeys(faults, 0.0))
        for earlier, after in zip(before, self.link.counters(), strict=True):
            for fault in faults:
                assert getattr(after, _COUNTERS[fault]) > getattr(earlier, _COUNTERS[fault]), f"no {fault} happened"
            assert after.overflowed == earlier.overflowed, "this machine is too slow for the cable"

    def drops(self) -> Counter[str]:
        """Of all our engines, less the kernels' own multicast, which has no peer, and what needed not be sent."""
        counted: Counter[str] = Counter()
        for host in self.hosts:
            counted.update(host.inspect()["drops"])
        del counted["no_peer"], counted["not_unicast"], counted["ack_superseded"]
        return counted

    def end(self) -> None:
        """No engine failed, none had a bug, and the kernel took all that it was given."""
        drops = self.drops()
        assert not drops.keys() & set(NEVER), drops
        for host in self.hosts:
            assert host.stop()["failed"] == [], host.log()


def _addresses(number: int) -> list[str]:
    return [f"{INNER[number][4]}/24", f"{INNER[number][6]}/64"]


def _cable(lab: Lab, a: Namespace, b: Namespace) -> DelayLink:
    link = DelayLink(lab, "w", a, f"{HOST_A}/24", b, f"{HOST_B}/24", GOOD)
    ends = [(a, link.interface_a, HOST_A), (b, link.interface_b, HOST_B)]
    for (machine, interface, _), (other, other_interface, address) in (ends, ends[::-1]):
        # Who has which address is known for good: a damaged answer to ARP would cut the cable for a while.
        hardware = other.run(["cat", f"/sys/class/net/{other_interface}/address"]).stdout.strip()
        machine.run(["ip", "neighbour", "replace", address, "lladdr", hardware, "dev", interface, "nud", "permanent"])
    return link


def _use_relay(relay: EngineHost, host: EngineHost, address: str) -> None:
    ticket = 1000 + host.number
    relay.order("client", number=host.number, public_key=host.key.public_text, ticket=ticket)
    relay.inspect()  # orders are done in turn
    host.order("relay", endpoints=[[address, relay.port]], number=1, public_key=relay.key.public_text, ticket=ticket)
    wait_for(lambda: [each for each in host.events if each["name"] == "Observed"], "the relay's answer")
