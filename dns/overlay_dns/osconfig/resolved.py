"""systemd-resolved over D-Bus: our interface has a name server, for our domains alone. org.freedesktop.resolve1(5).

What is set is of the link: when the interface goes, because the daemon was killed, resolved forgets it by itself.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from jeepney import DBusAddress, new_method_call

from overlay_dns.osconfig.bus import Bus

_MANAGER: Final = DBusAddress(
    "/org/freedesktop/resolve1", bus_name="org.freedesktop.resolve1", interface="org.freedesktop.resolve1.Manager"
)


class Resolved:
    """The system's resolved. All raise `OSError` when it does not answer or refuses. Blocking: for a thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def owner(self) -> str:
        """As `Bus.owner`."""
        return self._bus.owner(_MANAGER.bus_name)

    def apply(self, index: int, servers: Sequence[str], domains: Sequence[str], routes: Sequence[str]) -> None:
        """Ask `servers` for `domains` (searched too) and `routes` on the link `index`, and for nothing else.

        The route "." is for all names: resolved prefers it to the servers of links without such a one.
        """
        listed = [(2 if address.version == 4 else 10, address.packed) for address in map(ip_address, servers)]
        wanted = [(domain, False) for domain in domains] + [(route, True) for route in routes]
        for method, signature, *values in (
            ("SetLinkDNS", "ia(iay)", listed),
            ("SetLinkDomains", "ia(sb)", wanted),
            ("SetLinkDefaultRoute", "ib", "." in routes),
            ("SetLinkLLMNR", "is", "no"),
            ("SetLinkMulticastDNS", "is", "no"),
            ("SetLinkDNSSEC", "is", "no"),  # nobody signs our zones
            ("SetLinkDNSOverTLS", "is", "no"),
        ):
            self._bus.call(new_method_call(_MANAGER, method, signature, (index, *values)))
        self._bus.call(new_method_call(_MANAGER, "FlushCaches"))  # names that did not exist a moment ago

    def revert(self, index: int) -> None:
        """The link has nothing of ours any more."""
        self._bus.call(new_method_call(_MANAGER, "RevertLink", "i", (index,)))
