"""What tests and simulations stand on: virtual time, links with faults, NATs, two ends of a session, a TUN in memory.

Small, deterministic, and free of the protocols' logic: a rule that is wrong must not be wrong here too.
"""

from overlay.testing.clock import Timed, VirtualClock
from overlay.testing.link import Link
from overlay.testing.nat import Internet, Nat
from overlay.testing.pair import End, LinkSettings, Pair
from overlay.testing.tun import FakeTun, TunPacket

__all__ = [
    "End",
    "FakeTun",
    "Internet",
    "Link",
    "LinkSettings",
    "Nat",
    "Pair",
    "Timed",
    "TunPacket",
    "VirtualClock",
]
