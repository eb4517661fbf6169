"""Ways back to users whose own addresses the connections to a target bear (`--transparent`).

The target answers to an address that is somebody else's; that answer must come to this machine's socket. For each
target there is a routing rule, `from TARGET ipproto … sport … lookup TABLE`, and in that table each user who is here
now is an address of this machine (`local USER dev lo`). So nothing but this target's answers to these users is led
back; no sysctl, no mark and no firewall rule is needed, and reverse path filters have nothing to say: on this machine a
packet keeps the route that it was sent by, and one of the local network comes in where the way to its sender goes out.

A target by UDP that is bound to all addresses may ask for the route before it has chosen its own. For that there is a
second rule, `from 0.0.0.0`, and the route names the source that it is to choose. IPv6 has no such rule: there, none of
the target's own says `from`, and who comes to the same port by another way at the same time has no answer.

What is set up is written down first, and taken away when nobody needs it any more, at the end, and after a kill at the
next start. Nothing of it outlives a reboot. Linux only.
"""

import errno
import logging
import secrets
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus
from pyroute2 import AsyncIPRoute, NetlinkError

from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.proxy_protocol import Transport

FILE: Final = "return-routes.json"
PRIORITY: Final = 5100  # of the rules: behind the table `local` (0), before `main` (32766) and the usual VPNs' rules
LINGER: Final = 120.0  # s after a user's last connection: the kernel may go on ending it for a minute (FIN_WAIT_2)
MOST_USERS: Final = 4096  # addresses of one target; to take away as many routes takes two seconds
_SWEEP_INTERVAL: Final = 10.0  # s
_FIRST_TABLE: Final = 1 << 30  # tables of small numbers are people's
_LOCAL: Final = 2  # RTN_LOCAL: rtnetlink(7)
_UNICAST: Final = 1  # RTN_UNICAST
_HOST_SCOPE: Final = 254  # RT_SCOPE_HOST: what a local route of IPv4 must have
_PROTOCOLS: Final[dict[Transport, int]] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_NO_WAY: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)  # none, or one that refuses
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EAFNOSUPPORT)

_log = logging.getLogger(__name__)


class UnusableAddress(OSError):
    """No connection can bear this user's address. `reason` names the drop counter."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule and its table, as the state folder has them."""

    table: int
    protocol: int
    port: int
    address: str  # the target's
    sourced: bool = True  # it always says the target's address

    @property
    def family(self) -> int:
        return int(socket.AF_INET6 if ":" in self.address else socket.AF_INET)

    def attributes(self) -> list[dict[str, Any]]:
        """Of each rule that the kernel gets for it."""
        made = {
            "family": self.family,
            "priority": PRIORITY,
            "table": self.table,
            "ip_proto": self.protocol,
            "sport_range": f"{self.port}:{self.port}",
        }
        if not self.sourced and self.family == socket.AF_INET6:
            return [made]
        sources = [self.address] if self.sourced else [self.address, "0.0.0.0"]
        return [{**made, "src": each, "src_len": ip_address(each).max_prefixlen} for each in sources]


class RuleFile(msgspec.Struct, frozen=True, kw_only=True):
    rules: tuple[Rule, ...] = ()


@dataclass(eq=False)
class _Way:
    rule: Rule
    local: bool  # the target is on this machine
    users: dict[str, int] = field(default_factory=dict)  # address → connections
    resting: OrderedDict[str, float] = field(default_factory=OrderedDict)  # those without any → since when


class Hold:
    """A user's address is led back until `release`, and a while longer. Releasing twice is of no effect."""

    def __init__(self, way: _Way, user: str) -> None:
        self._way: _Way | None = way
        self._user = user

    def release(self) -> None:
        way, self._way = self._way, None
        if way is None or self._user not in way.users:  # released, or all has been taken away
            return
        way.users[self._user] -= 1
        if not way.users[self._user]:
            way.resting[self._user] = anyio.current_time()


class ReturnRoutes:
    """`hold` works while `run` runs."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._ways: dict[tuple[Endpoint, Transport], _Way] = {}
        self._netlink: AsyncIPRoute | None = None
        self._lock = anyio.Lock()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then all is taken away. Signals `started` once what an earlier run left is gone."""
        async with AsyncIPRoute() as netlink:
            try:
                await self._restore(netlink)
                self._netlink = netlink
                task_status.started()
                while True:
                    await anyio.sleep(_SWEEP_INTERVAL)
                    await self._sweep(anyio.current_time() - LINGER)
            finally:
                self._netlink = None
                with anyio.CancelScope(shield=True):
                    async with self._lock:
                        await self._remove(netlink, list(self._ways))

    async def restore(self) -> bool:
        """Take away what an earlier run left, as `run` does when it starts. → whether there was something"""
        async with AsyncIPRoute() as netlink:
            return await self._restore(netlink)

    async def is_local(self, address: str) -> bool:
        """Whether it is one of this machine's. Raises `OSError`."""
        async with self._using() as netlink:
            return await _kind(netlink, address) == _LOCAL

    async def hold(self, target: Endpoint, transport: Transport, user: str) -> Hold:
        """Have what the target says to this address come here. Raises `OSError`: `UnusableAddress` if it is this
        machine's own, or none of a single host somewhere."""
        way = self._ways.get((target, transport))
        if way is None or user not in way.users:
            async with self._using() as netlink:
                way = self._ways.get((target, transport)) or await self._make(netlink, target, transport)
                if user not in way.users:
                    await self._add(netlink, way, user)
        way.users[user] += 1
        way.resting.pop(user, None)
        return Hold(way, user)

    # inside ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[AsyncIPRoute]:
        """One at a time, to the end: the kernel answers at once, and a request cut short would leave its answer."""
        async with self._lock:
            if self._netlink is None:
                raise OSError(errno.ENETDOWN, "the network is not up on this machine")
            with anyio.CancelScope(shield=True):
                try:
                    yield self._netlink
                except NetlinkError as error:
                    raise OSError(error.code, str(error.args[-1])) from error

    async def _make(self, netlink: AsyncIPRoute, target: Endpoint, transport: Transport) -> _Way:
        local = await _kind(netlink, target[0]) == _LOCAL
        rule = Rule(
            table=_FIRST_TABLE + secrets.randbelow(_FIRST_TABLE),
            protocol=_PROTOCOLS[transport],
            port=target[1],
            address=target[0],
            sourced=transport == "tcp" or not local,
        )
        await self._note([*(way.rule for way in self._ways.values()), rule])
        for attributes in rule.attributes():
            await netlink.rule("add", **attributes)
        way = self._ways[target, transport] = _Way(rule, local)
        return way

    async def _add(self, netlink: AsyncIPRoute, way: _Way, user: str) -> None:
        if len(way.users) >= MOST_USERS:
            if not way.resting:
                raise UnusableAddress("transparent_too_many_users", "too many users are there at once")
            await self._leave(netlink, way, next(iter(way.resting)))
        if await _kind(netlink, user) not in (_UNICAST, None):
            raise UnusableAddress("transparent_own_address", "the user's address is one of this machine's own")
        await netlink.route("replace", **_route(way.rule, user), **({"prefsrc": way.rule.address} if way.local else {}))
        way.users[user] = 0
        way.resting[user] = anyio.current_time()

    async def _leave(self, netlink: AsyncIPRoute, way: _Way, user: str) -> None:
        way.users.pop(user, None)
        way.resting.pop(user, None)
        await _unless_gone(netlink.route, **_route(way.rule, user))

    async def _sweep(self, before: float) -> None:
        """Take away what has rested since `before`."""
        if not any(way.resting or not way.users for way in self._ways.values()):
            return
        async with self._using() as netlink:
            for way in self._ways.values():
                while way.resting and next(iter(way.resting.values())) <= before:
                    await self._leave(netlink, way, next(iter(way.resting)))
            await self._remove(netlink, [key for key, way in self._ways.items() if not way.users])

    async def _remove(self, netlink: AsyncIPRoute, keys: list[tuple[Endpoint, Transport]]) -> None:
        if not keys:
            return
        for key in keys:
            way = self._ways.pop(key)
            for attributes in way.rule.attributes():
                await _unless_gone(netlink.rule, **attributes)
            for user in tuple(way.users):
                await self._leave(netlink, way, user)
        await self._note_fewer()

    async def _restore(self, netlink: AsyncIPRoute) -> bool:
        try:
            left = self._state.read_struct(FILE, RuleFile)
        except UserError as error:
            _log.warning("what an earlier run left is not known: %s", error)
            return False
        if left is None:
            return False
        for rule in left.rules:
            for attributes in rule.attributes():
                await _unless_gone(netlink.rule, **attributes)
            try:
                async for message in await netlink.get_routes(family=rule.family, table=rule.table):
                    if message.get("table") == rule.table:  # a kernel that does not filter sends all
                        await _unless_gone(netlink.route, **_route(rule, message.get("dst")))
            except NetlinkError as error:
                _log.warning("table %d cannot be read: %s", rule.table, error.args[-1])
        await self._note_fewer()
        _log.warning("took away %d routing rules that an earlier run left", len(left.rules))
        return True

    async def _note(self, rules: list[Rule]) -> None:
        """Raises `OSError`."""
        try:
            if rules:
                await anyio.to_thread.run_sync(self._state.write_struct, FILE, RuleFile(rules=tuple(rules)))
            else:
                await anyio.to_thread.run_sync(self._state.remove, FILE)
        except UserError as error:
            raise OSError(errno.EIO, str(error)) from error

    async def _note_fewer(self) -> None:
        """What the folder has beyond this does no harm at the next start."""
        try:
            await self._note([way.rule for way in self._ways.values()])
        except OSError as error:
            _log.warning("%s", error.strerror)


def _route(rule: Rule, user: str) -> dict[str, Any]:
    return {
        "family": rule.family,
        "dst": f"{user}/{ip_address(user).max_prefixlen}",
        "type": "local",
        "scope": _HOST_SCOPE,
        "oif": socket.if_nametoindex("lo"),
        "table": rule.table,
    }


async def _kind(netlink: AsyncIPRoute, address: str) -> int | None:
    """What a route to it is; None: there is none."""
    try:
        messages = await netlink.route("get", dst=address)
    except NetlinkError as error:
        if error.code in _NO_WAY:
            return None
        raise
    return int(messages[0]["type"])


async def _unless_gone(change: Any, **attributes: Any) -> None:
    """`change("del", …)` of what another may have taken away already."""
    try:
        await change("del", **attributes)
    except NetlinkError as error:
        if error.code not in _GONE:
            _log.warning("a route or rule could not be taken away: %s", error.args[-1])
