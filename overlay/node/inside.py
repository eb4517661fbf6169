"""Networks that are within this machine: bridges that only containers and virtual machines are on."""

from ipaddress import ip_network
from pathlib import Path
from typing import Final

from overlay.engine.api import Network
from overlay.node.interface import Machine

SYSFS: Final = Path("/sys/class/net")


def networks_inside(machine: Machine, sysfs: Path = SYSFS) -> tuple[Network, ...]:
    """Those that `machine` has a route to over such a bridge."""
    bridges = {name for name in {route.interface for route in machine.routes} if _is_inside(sysfs / name)}
    found = (ip_network(route.destination) for route in machine.routes if route.interface in bridges)
    return tuple(network for network in found if network.prefixlen)  # a way out is none


def _is_inside(interface: Path) -> bool:
    """A bridge without a card, or anything above a card, among its ports."""
    if not (interface / "bridge").is_dir():
        return False
    try:
        ports = [interface.parent / port.name for port in (interface / "brif").iterdir()]
        return not any((port / "device").exists() or any(port.glob("lower_*")) for port in ports)
    except OSError:
        return False
