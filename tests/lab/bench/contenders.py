"""What can join two machines, so that programs on them talk: the bare network, and ours in its several ways.

A contender is given two machines that already reach each other on the outside (`HOST_A`, `HOST_B`), and gives them
inside addresses. The others' programs are in `rivals`.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from overlay.engine.api import Cipher
from overlay.node import ciphers
from tests.lab.delay_link import Conditions, DelayLink
from tests.lab.engines import EngineHost, Key
from tests.lab.netns import Lab, Namespace, wait_for

HOST_A, HOST_B = "198.51.100.1", "198.51.100.2"
INNER_A, INNER_B = "10.9.0.2", "10.9.0.3"
NUMBER_A, NUMBER_B = 2, 3
STRANGERS_FROM = IPv4Address("10.10.0.0")
FIRST_STRANGER = 10  # node number
USUAL_MTU = 1500


@dataclass
class Ends:
    """Two joined machines. Load goes from a to b. The processes are those of the contender, by id."""

    contender: str
    a: Namespace
    b: Namespace
    address_a: str = INNER_A
    address_b: str = INNER_B
    processes_a: Sequence[int] = ()
    processes_b: Sequence[int] = ()
    outside: str = "eth0"  # a's interface below
    cable: DelayLink | None = None

    @property
    def processes(self) -> list[int]:
        return [*self.processes_a, *self.processes_b]


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        """Make the inside network; it need not carry packets yet. `strangers`: peers that `a` has besides b."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What is between two machines, on the outside."""

    mtu: int = USUAL_MTU
    conditions: Conditions | None = None

    def lay(self, lab: Lab, name: str) -> tuple[Namespace, Namespace, DelayLink | None]:
        """Two new machines, named after `name`, and what delays their packets, if anything does."""
        cable = None
        a, b = lab.namespace(f"{name}a"), lab.namespace(f"{name}b")
        if self.conditions is not None:
            cable = DelayLink(lab, f"{name}w", a, f"{HOST_A}/24", b, f"{HOST_B}/24", self.conditions)
        else:
            lab.link(a, f"{HOST_A}/24", b, f"{HOST_B}/24")
        if self.mtu != USUAL_MTU:
            for machine in (a, b):
                machine.run(["ip", "link", "set", "eth0", "mtu", str(self.mtu)])
        return a, b, cable


PLAIN_WIRE = Wire()


def strangers_of(count: int) -> list[tuple[bytes, str]]:
    """`count` peers that nobody is: public key and inside network. Any 32 bytes are an X25519 public key."""
    return [(os.urandom(32), f"{STRANGERS_FROM + number}/32") for number in range(count)]


class Veth:
    """The network below itself: what the kernel does without a tunnel."""

    name = "veth"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        return Ends(self.name, a, b, HOST_A, HOST_B)


class Overlay:
    """Two of our engines with the direct path. `cipher` None: what this machine is fastest at, as nodes choose it."""

    def __init__(self, name: str = "overlay", *, transport: str = "record", cipher: Cipher | None = None) -> None:
        self.name = name
        self._transport = transport
        self._cipher = cipher or ciphers.measure()[0]

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        ours = EngineHost(a, Key(), NUMBER_A, addresses=[f"{INNER_A}/15"])
        theirs = EngineHost(b, Key(), NUMBER_B, addresses=[f"{INNER_B}/15"])
        for number, (key, network) in enumerate(strangers_of(strangers), FIRST_STRANGER):
            ours.order(
                "peer",
                number=number,
                public_key=base64.b64encode(key).decode(),
                allowed=[network],
                transport=self._transport,
                cipher=self._cipher,
            )
        kind = {"transport": self._transport, "cipher": self._cipher}
        theirs.peer(ours.key, NUMBER_A, [f"{INNER_A}/32"], [(HOST_A, ours.port)], **kind)
        ours.peer(theirs.key, NUMBER_B, [f"{INNER_B}/32"], [(HOST_B, theirs.port)], **kind)
        return Ends(self.name, a, b, processes_a=[ours.process.pid], processes_b=[theirs.process.pid])


class RelayedOverlay:
    """Two of our engines that know no direct path, and a third on a machine between them that relays."""

    def __init__(self, name: str = "overlay, relayed") -> None:
        self.name = name
        self._cipher = ciphers.measure()[0]

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        """The relay is a machine of its own, with a cable to each end: a and b do not see each other there."""
        lab = a.lab
        middle = lab.namespace(f"{a.short_name}r")
        lab.link(middle, "203.0.113.1/30", a, "203.0.113.2/30")
        lab.link(middle, "203.0.113.5/30", b, "203.0.113.6/30")
        relay = EngineHost(middle, Key(), 1, addresses=["10.9.0.1/24"], options=["--relay-clients"])
        ours = EngineHost(a, Key(), NUMBER_A, addresses=[f"{INNER_A}/24"])
        theirs = EngineHost(b, Key(), NUMBER_B, addresses=[f"{INNER_B}/24"])
        for host, at, inner in ((ours, "203.0.113.1", INNER_A), (theirs, "203.0.113.5", INNER_B)):
            ticket = int.from_bytes(os.urandom(8), "little")
            relay.order("client", number=host.number, public_key=host.key.public_text, ticket=ticket)
            relay.peer(host.key, host.number, [f"{inner}/32"])
            host.order("relay", endpoints=[[at, relay.port]], number=1, public_key=relay.key.public_text, ticket=ticket)
            host.peer(relay.key, 1, ["10.9.0.1/32"])
            wait_for(lambda host=host: any(e["name"] == "Observed" for e in host.events), "the relay's answer")  # type: ignore[misc]
        theirs.peer(ours.key, NUMBER_A, [f"{INNER_A}/32"], cipher=self._cipher)
        ours.peer(theirs.key, NUMBER_B, [f"{INNER_B}/32"], cipher=self._cipher)
        return Ends(
            self.name,
            *(a, b),
            processes_a=[ours.process.pid],
            processes_b=[theirs.process.pid, relay.process.pid],
            outside="eth1",
        )
