"""The system's message bus. Blocking, for a thread: one connection per call, as calls are rare."""

import os
from typing import Any, Final

from jeepney import DBusErrorResponse
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

TIMEOUT: Final = 3.0
"""Seconds for one call; services answer in milliseconds, or they hang."""
SYSTEM_BUS: Final = "unix:path=/var/run/dbus/system_bus_socket"


class Bus:
    """All raise `OSError` when there is no bus, or who is called does not answer or refuses."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS)

    def names(self) -> frozenset[str]:
        """Who is on the bus; nobody if there is no bus."""
        try:
            return frozenset(self.call(message_bus.ListNames())[0])
        except OSError:
            return frozenset()

    def owner(self, name: str) -> str:
        """The unique name behind `name` now: another one after a restart. "" when it is away."""
        try:
            return str(self.call(message_bus.GetNameOwner(name))[0])
        except OSError:
            return ""

    def call(self, message: Any) -> Any:
        """The reply's body, a tuple."""
        try:
            connection: DBusConnection
            with open_dbus_connection(self._address) as connection:
                return unwrap_msg(connection.send_and_get_reply(message, timeout=TIMEOUT))
        except DBusErrorResponse as error:
            raise OSError(f"a service of the system refuses: {error}") from error
        except (ValueError, EOFError, KeyError, RuntimeError) as error:  # what is there is no message bus
            raise OSError(f"the system's message bus cannot be used: {error}") from error
