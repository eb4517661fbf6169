"""systemd-resolved over D-Bus: our interface has a name server, for our domains alone. org.freedesktop.resolve1(5).

What is set is of the link: when the interface goes, because the daemon was killed, resolved forgets it by itself.
"""

import os
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from jeepney import DBusAddress, DBusErrorResponse, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

TIMEOUT: Final = 3.0
"""Seconds for one call; resolved answers in milliseconds, or it hangs."""
BUS: Final = "unix:path=/var/run/dbus/system_bus_socket"

_MANAGER: Final = DBusAddress(
    "/org/freedesktop/resolve1", bus_name="org.freedesktop.resolve1", interface="org.freedesktop.resolve1.Manager"
)


class Resolved:
    """The system's resolved. All raise `OSError` when it does not answer or refuses. Blocking: for a thread."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", BUS)

    def bus_names(self) -> frozenset[str]:
        """Who is on the bus; nobody if there is no bus."""
        try:
            return frozenset(self._call(message_bus.ListNames())[0])
        except OSError:
            return frozenset()

    def owner(self) -> str:
        """The unique name that resolved has on the bus now: another one after its restart. "" when it is away."""
        try:
            return str(self._call(message_bus.GetNameOwner(_MANAGER.bus_name))[0])
        except OSError:
            return ""

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
            self._call(new_method_call(_MANAGER, method, signature, (index, *values)))
        self._call(new_method_call(_MANAGER, "FlushCaches"))  # names that did not exist a moment ago

    def revert(self, index: int) -> None:
        """The link has nothing of ours any more."""
        self._call(new_method_call(_MANAGER, "RevertLink", "i", (index,)))

    def _call(self, message: Any) -> Any:
        try:
            connection: DBusConnection
            with open_dbus_connection(self._address) as connection:
                return unwrap_msg(connection.send_and_get_reply(message, timeout=TIMEOUT))
        except DBusErrorResponse as error:
            raise OSError(f"systemd-resolved refuses: {error}") from error
        except (ValueError, EOFError, KeyError, RuntimeError) as error:  # what is there is no message bus
            raise OSError(f"the system's message bus cannot be used: {error}") from error
