"""How this node reaches its server: which carriers may be used, what worked on this network, and is a better one back.

Control connections and data links both come from here. Knows carriers and names; neither messages nor the engine.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
import anyio.to_thread
import msgspec

from overlay.carrier.carriers import CARRIERS, CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.choice import BetterSearch, Favourite, Favourites
from overlay.carrier.connection import ControlConnection
from overlay.carrier.dialling import Found, find_server, options_at
from overlay.carrier.look_up import LookUp, system_look_up
from overlay.carrier.openers import OPENERS
from overlay.carrier.proxy import excepted
from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.interface import Machine, network_key, read_machine
from overlay.wire.control.address import ServerAddress
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay_dns.lookup import look_up
from overlay_dns.upstream import Upstream

FAVOURITES_FILE = "carriers.json"
DIAL_TIMEOUT = 10.0
"""Seconds to find the server by any way."""
FIRST_LINGER = 2.0
"""Seconds for what is silent once all else has refused, where the server was reached before: it may be starting anew.
Twice as long each time that nothing is found, so that the slowest way is given its time, too."""
LOOK_TIMEOUT = 3.0
"""Seconds for a better carrier to prove itself: one that takes longer is no better."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to look for, and how."""

    addresses: tuple[str, ...]
    server_key: bytes
    private_key: bytes = field(repr=False)
    carriers: tuple[CarrierName, ...] = CARRIERS
    options: DialOptions = field(default_factory=DialOptions, repr=False)  # a proxy's password
    no_proxy: str = ""  # hosts that the proxy is not for, as in NO_PROXY


class Ways:
    """See the module's docstring."""

    def __init__(
        self,
        target: Target,
        state: StateDir,
        upstreams: Callable[[], Sequence[Upstream]] = lambda: (),
        *,
        openers: Mapping[CarrierName, Opener] = OPENERS,
        read_host: Callable[[], Awaitable[Machine]] = read_machine,
        wall: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`upstreams`: whom our resolver asks, while it is the system's for all names; else empty."""
        self.carrier: CarrierName | None = None  # of the control connection, the last one
        self.why = ""
        self._target = target
        self._state = state
        self._upstreams = upstreams
        self._openers = openers
        self._read_host = read_host
        self._wall = wall
        self._usable = tuple(carrier for carrier in target.carriers if carrier in openers)
        self._search = BetterSearch(self._usable, uniform)
        self._search_changed = anyio.Event()
        self._favourites = self._remembered()
        self._linger = DIAL_TIMEOUT
        self._server: tuple[ServerAddress, Endpoint] | None = None  # where it was found last
        self._plain: tuple[ServerAddress, bytes, DialOptions] | None = None  # for a pin, there
        self._found: Found | None = None  # by the search for a better one, the last time

    @property
    def stream_carriers(self) -> tuple[CarrierName, ...]:
        """Those that can carry a data link; the one of the control connection first."""
        streams = [carrier for carrier in self._usable if carrier != "udp"]
        return tuple(sorted(streams, key=lambda carrier: carrier != self.carrier))

    async def dial(self) -> ControlConnection:
        """By whatever works: what worked last on this network first. Raises `UserError` as `find_server` does."""
        network = await self._network()
        favourite = self._favourites.of(network, self._usable, self._wall())
        if favourite is not None and self._search.is_unsteady(favourite.carrier):
            favourite = None
        # What is let through at first and then cut off must not be all that is ever tried.
        carriers = self._search.steady_first() or self._target.carriers
        try:
            found = await self._find(carriers, DIAL_TIMEOUT, favourite, self._linger)
        except UserError:
            self._linger = min(DIAL_TIMEOUT, 2 * self._linger)
            raise
        self._linger = FIRST_LINGER
        await self._take(found, network)
        return found.connection

    async def dial_stream(self, carriers: Sequence[CarrierName]) -> ControlConnection:
        """For a data link. Raises `UserError` as `find_server` does."""
        return (await self._find(carriers, DIAL_TIMEOUT, None)).connection

    async def dial_plain(self, carrier: CarrierName, pin: bytes) -> CarrierStream:
        """A stream to where the server was found last, without the Noise channel; `pin`: of its certificate. Raises
        `OSError`, `RemoteProtocolError`."""
        if self._server is None:
            raise OSError("the server has not been found yet")
        address, endpoint = self._server
        if self._plain is None or self._plain[:2] != (address, pin):
            options = replace(self._target.options, pin=pin or self._target.options.pin)
            self._plain = address, pin, options_at(address, options, partial(excepted, self._target.no_proxy))
        # A reverse proxy takes one carrier alone.
        return await self._openers[address.carrier or carrier](endpoint, self._plain[2])

    async def better(self) -> ControlConnection:
        """Wait until a carrier that is wished for more than the one in use has proven itself. → a connection over it"""
        while True:
            self._search_changed = anyio.Event()
            with anyio.move_on_at(self._search.next_timeout() or float("inf")):
                await self._search_changed.wait()
            carriers = self._search.due(anyio.current_time())
            if not carriers:
                continue
            try:
                found = await self._find(carriers, LOOK_TIMEOUT, None)
            except UserError as error:
                _log.debug("no better carrier: %s", error.message)
                continue
            self._found = found
            return found.connection

    async def taken_over(self, connection: ControlConnection) -> None:
        """The connection that `better` found is the one in use from now on."""
        _log.info("%s works: it takes the place of %s", connection.carrier, self.carrier)
        self.carrier = connection.carrier
        self.why = "first choice" if connection.carrier == self._usable[0] else "better than what was used before"
        self._search.connected(connection.carrier, anyio.current_time())
        if self._found is not None and self._found.connection is connection:
            self._server = self._found.address, connection.remote_address
            await self._remember(await self._network(), connection.carrier, str(self._found.address))

    def lost(self) -> None:
        """The connection in use is gone."""
        self._search.lost(anyio.current_time())
        self._search_changed.set()

    def link_changed(self) -> None:
        """The machine's addresses or routes are others."""
        self._search.link_changed(anyio.current_time())
        self._search_changed.set()

    # inside ----------------------------------------------------------------------------------------------------------

    async def _find(
        self,
        carriers: Sequence[CarrierName],
        seconds: float,
        favourite: Favourite | None,
        linger: float = float("inf"),
    ) -> Found:
        target = self._target
        return await find_server(
            target.addresses,
            target.server_key,
            target.private_key,
            seconds,
            carriers=carriers,
            openers=self._openers,
            options=target.options,
            favourite=favourite,
            linger=linger,
            look_up=self.look_up,
            direct=partial(excepted, target.no_proxy),
        )

    async def look_up(self, host: str, port: int) -> list[Endpoint]:
        """A name's endpoints, by the system's resolver as it is without us. As `overlay.carrier.look_up.LookUp`."""
        upstreams = self._upstreams()
        if not upstreams:
            return await system_look_up(host, port)
        return [canonical_endpoint(address, port) for address in await look_up(host, upstreams)]

    async def _take(self, found: Found, network: str) -> None:
        self.carrier, self.why = found.connection.carrier, found.why
        self._server = found.address, found.connection.remote_address
        better = self._usable[: self._usable.index(self.carrier)]
        cut_off = [carrier for carrier in better if self._search.is_unsteady(carrier)]
        if cut_off:
            self.why = f"{' and '.join(cut_off)}: worked, and did not last"
        _log.info("the server is reached by %s (%s)", self.carrier, self.why)
        self._search.connected(found.connection.carrier, anyio.current_time())
        self._search_changed.set()
        try:
            await self._remember(network, found.connection.carrier, str(found.address))
        except BaseException:
            found.connection.lose("closed")  # cancelled: nobody would close it
            raise

    async def _network(self) -> str:
        try:
            return network_key(await self._read_host())
        except Exception as error:  # netlink's errors have no common base; without a memory it goes on as well
            _log.debug("the machine's routes cannot be read: %s", error)
            return ""

    def _remembered(self) -> Favourites:
        try:
            return self._state.read_struct(FAVOURITES_FILE, Favourites) or Favourites()
        except UserError as error:
            _log.warning("which carriers worked is forgotten: %s", error)
            return Favourites()

    async def _remember(self, network: str, carrier: CarrierName, address: str) -> None:
        if not network:
            return
        known = self._favourites.of(network, CARRIERS, self._wall())
        favourite = Favourite(network=network, carrier=carrier, address=address, wall=self._wall())
        self._favourites = self._favourites.remember(favourite)
        if known is not None and msgspec.structs.replace(known, wall=favourite.wall) == favourite:
            if favourite.wall - known.wall < 3600:
                return  # no write for each reconnection
        try:
            await anyio.to_thread.run_sync(self._state.write_struct, FAVOURITES_FILE, self._favourites)
        except UserError as error:
            _log.debug("which carrier worked is not kept: %s", error)


__all__ = ["DIAL_TIMEOUT", "LookUp", "Target", "Ways"]
