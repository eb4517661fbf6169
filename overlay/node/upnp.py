"""UPnP with the router before this machine: found by SSDP, commanded by SOAP. What is said is `wire/portmap`'s.

Every connection goes to the gateway's address, whatever the router writes into its answers, and none is waited for
longer than `CALL_TIMEOUT`.
"""

import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

import anyio
import anyio.abc

from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint
from overlay.wire.portmap import LIFETIME, TRANSPORT, igd, ssdp
from overlay.wire.portmap.http import Call

SEARCH_TIMEOUT: Final = 1.2
"""s for an answer to a search, which may be held back for 1 s."""
GATHER: Final = 0.05
"""s after the first answer, for the others."""
LOCATIONS: Final = 4
"""Descriptions of one router that are looked at."""
CALL_TIMEOUT: Final = 1.0
"""s for one request to a router of the own network."""
LOOK: Final = 60.0
"""s between looks whether the mapping is still there: a router that started anew says so to nobody."""
PORTS_TRIED: Final = 4
"""External ports that are tried with a router that does not look for a free one itself."""


class Failed(Exception):
    """A sentence on why there is no mapping."""


@dataclass(frozen=True, slots=True)
class Device:
    """The router's way out. `own`: this machine's address in the router's network."""

    own: IPv4Address
    gateway: str
    service: igd.Service
    address: IPv4Address  # outside

    async def map(self, port: int) -> "Lease":
        """Have `port` mapped. Raises `Failed`."""
        lifetime = LIFETIME
        external = port if port >= igd.LOWEST_PORT else _some_port()
        name = "AddAnyPortMapping" if self.service.finds_ports else "AddPortMapping"
        for _ in range(PORTS_TRIED):
            try:
                result = await self.act(name, igd.mapping(TRANSPORT, external, self.own, port, lifetime))
                given = igd.reserved_port(result) if self.service.finds_ports else external
                renewal = anyio.current_time() + LIFETIME / 2
                return Lease(self, port, (str(self.address), given), lifetime, renewal)
            except igd.ActionRefused as error:
                refused = error
            except RemoteProtocolError as error:
                raise self.nonsense(error) from error
            if refused.code in (igd.INVALID_ARGS, igd.ONLY_PERMANENT_LEASES) and lifetime:
                lifetime = 0
            elif refused.code == igd.CONFLICT:
                external = _some_port()
            else:
                break
        raise Failed(f"By UPnP it refuses: {refused}.")

    async def look_up_address(self) -> IPv4Address:
        """The router's address outside, now. Raises `Failed`, `ActionRefused`, `RemoteProtocolError`."""
        return igd.external_address(await self.act("GetExternalIPAddress"))

    async def act(self, name: str, arguments: igd.Arguments = ()) -> dict[str, str]:
        """Raises `Failed` (no connection), `ActionRefused`, `RemoteProtocolError`."""
        headers, body = igd.action(self.service, name, arguments)
        control = self.service.control
        call = await _call(self.gateway, Call("POST", self.gateway, control.port, control.path, headers, body), control)
        return igd.parse_result(call.status, call.body, name)

    def nonsense(self, error: RemoteProtocolError) -> Failed:
        if error.reason == "upnp_no_address":
            return Failed("By UPnP it has no address outside.")
        return Failed(f"By UPnP it answers wrongly ({error.reason}).")


@dataclass(frozen=True, slots=True)
class Lease:
    """A mapping that is there. `lifetime` in s, as asked for; `renewal`: when it is due."""

    device: Device
    port: int
    external: Endpoint
    lifetime: int
    due: float

    @property
    def renewal(self) -> float:
        """s until the renewal is due."""
        return max(0.0, self.due - anyio.current_time())

    async def keep(self) -> "Lease":
        """The mapping as it is now: renewed if that is due, made anew if it is gone. Raises `Failed`."""
        device, external = self.device, self.external
        try:
            device = replace(device, address=await device.look_up_address())
            if self.renewal:
                entry = await device.act("GetSpecificPortMappingEntry", igd.entry(TRANSPORT, external[1]))
                if entry.get("NewInternalClient") == str(device.own):
                    return replace(self, device=device, external=(str(device.address), external[1]))
        except igd.ActionRefused as refused:
            if refused.code != igd.NO_SUCH_ENTRY:
                raise Failed(f"By UPnP it refuses: {refused}.") from refused
        except RemoteProtocolError as error:
            raise device.nonsense(error) from error
        return await device.map(self.port)

    async def remove(self) -> None:
        """Raises `Failed`."""
        with suppress(igd.ActionRefused, RemoteProtocolError):
            await self.device.act("DeletePortMapping", igd.entry(TRANSPORT, self.external[1]))


async def find(own: str, gateway: str) -> Device:
    """The gateway's best connection to the internet: one that is up, if there is one. Raises `Failed`."""
    found: list[Device] = []
    problem = Failed("Nor does it answer UPnP.")
    for location in await _search(own, gateway):
        try:
            call = await _call(gateway, Call("GET", gateway, location.port, location.path), location)
            services = igd.parse_description(call.body, location)
        except RemoteProtocolError as error:
            problem = Failed(f"By UPnP it describes itself wrongly ({error.reason}).")
            continue
        for service in services[:LOCATIONS]:
            device = Device(IPv4Address(own), gateway, service, IPv4Address(0))
            try:
                status = (await device.act("GetStatusInfo")).get("NewConnectionStatus", "")
                device = replace(device, address=await device.look_up_address())
            except (igd.ActionRefused, RemoteProtocolError):
                problem = Failed("By UPnP it has no address outside.")
                continue
            if status.lower() in ("connected", "up"):
                return device
            found.append(device)
    if not found:
        raise problem
    return found[0]


async def _search(own: str, gateway: str) -> Sequence[ssdp.Location]:
    found: dict[ssdp.Location, None] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as where:
        try:
            where.bind((own, 0))
            where.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, IPv4Address(own).packed)
            where.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        except OSError:
            return ()
        # To the gateway first, so that a firewall of this machine expects its answer.
        for host in (gateway, ssdp.GROUP):
            for target in ssdp.TARGETS:
                with suppress(OSError):
                    where.sendto(ssdp.search_request(target), (host, ssdp.PORT))
        with anyio.move_on_after(SEARCH_TIMEOUT) as patience:
            while len(found) < LOCATIONS:
                await anyio.wait_readable(where)
                with suppress(OSError, RemoteProtocolError):
                    data, source = where.recvfrom(ssdp.MAX_ANSWER_SIZE + 1)
                    if source[0] == gateway:
                        found[ssdp.parse_answer(data)] = None
                        patience.deadline = min(patience.deadline, anyio.current_time() + GATHER)
    return tuple(found)


async def _call(gateway: str, call: Call, location: ssdp.Location) -> Call:
    """Raises `Failed`, `RemoteProtocolError`."""
    try:
        with anyio.fail_after(CALL_TIMEOUT):
            async with await anyio.connect_tcp(gateway, location.port) as stream:
                await stream.send(call.request)
                while not call.receive(await _some(stream)):
                    pass
    except TimeoutError as error:
        raise Failed(f"By UPnP it does not answer within {CALL_TIMEOUT:g} s.") from error
    except (OSError, anyio.BrokenResourceError) as error:
        raise Failed("It announces UPnP, but is not reached by it.") from error
    return call


async def _some(stream: anyio.abc.ByteStream) -> bytes:
    try:
        return await stream.receive()
    except anyio.EndOfStream:
        return b""


def _some_port() -> int:
    return 2**15 + secrets.randbelow(2**14)
