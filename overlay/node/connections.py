"""Local ports that lead to private exposures of peers and that the daemon holds open: `overlay connect NAME
--background`. As exposures do, they outlive restarts, until somebody ends them.

What is not reached, or not allowed any more, is tried again: meanwhile nothing listens there. Ports are opened with the
rights of the daemon, so that whose they are is asked before (`check_port`).
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node.connecting import Connecting, bind_local, parse_listen
from overlay.node.kept import not_up
from overlay.wire.control.messages import Connected
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

FILE: Final = "connections.json"
MOST: Final = 64
RETRY: Final = 5.0  # s until what the server was not there for, or whose port was taken, is tried again
REFUSED_RETRY: Final = 60.0  # s until what the server has refused is: the peer may expose it again
LONGEST_NAME: Final = 64  # characters
LONGEST_TOKEN: Final = 8192
_UNPRIVILEGED: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_log = logging.getLogger(__name__)

Connect = Callable[[str, str], Awaitable[Connected]]
"""Has this node let in at the private exposure of this name, with this token. Raises `UserError`."""


class KeptConnection(msgspec.Struct, frozen=True, kw_only=True):
    """As the state folder has it."""

    id: str
    name: str  # of the private exposure
    listen: str  # "127.0.0.1:5432"
    token: str = ""


class ConnectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    listen: str
    node: str = ""  # whose exposure it is; "": not known yet
    protocol: Literal["tcp", "udp"] | None = None  # None: not known yet
    connections: int = 0  # open now
    problem: str = ""  # why it does not work; "": it does


class _KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    connections: tuple[KeptConnection, ...] = ()


class _Running:
    """One, while the node is in its network."""

    def __init__(self, kept: KeptConnection) -> None:
        self.kept = kept
        self.at_work: Connecting | None = None
        self.node = ""
        self.protocol: Literal["tcp", "udp"] | None = None
        self.problem = ""
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()

    def took(self, first: Connected, at_work: Connecting) -> None:
        self.at_work, self.problem = at_work, ""
        self.node, self.protocol = first.node, "udp" if first.datagrams else "tcp"

    def status(self) -> ConnectionStatus:
        at_work = self.at_work
        return ConnectionStatus(
            id=self.kept.id,
            name=self.kept.name,
            listen=self.kept.listen,
            node=self.node,
            protocol=self.protocol,
            connections=0 if at_work is None else at_work.connections,
            problem=self.problem or (at_work.trouble if at_work is not None else ""),
        )


class Connections:
    """They are opened and ended one after another."""

    def __init__(self, state: StateDir, connect: Connect) -> None:
        """Raises `UserError` ("state-corrupt")."""
        stored = state.read_struct(FILE, _KeptFile) or _KeptFile()
        self._kept = {each.id: each for each in stored.connections}
        self._running: dict[str, _Running] = {}
        self._state = state
        self._connect = connect
        self._lock = anyio.Lock()
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with anyio.create_task_group() as self._tasks:
                for each in self._kept.values():
                    self._start(_Running(each))
                await anyio.sleep_forever()
        finally:
            self._tasks, self._running = None, {}

    def status(self) -> tuple[ConnectionStatus, ...]:
        return tuple(
            ConnectionStatus(id=name, name=kept.name, listen=kept.listen, problem=not_up().message)
            if (it := self._running.get(name)) is None
            else it.status()
            for name, kept in self._kept.items()
        )

    async def add(self, name: str, listen: str, token: str, owner: int) -> ConnectionStatus:
        """Listen for programs of this machine from now on. `listen`: as `parse_listen` takes it; `owner`: uid of who
        asks. Raises `UserError`: "bad-request", "port-permission", "too-many-connections", "not-up", and what the
        server, `parse_listen` and `bind_local` do."""
        endpoint = _checked(name, listen, token)
        check_port(endpoint, owner)
        async with self._lock:
            if self._tasks is None:
                raise not_up()
            if len(self._kept) >= MOST:
                raise UserError(
                    "too-many-connections",
                    f"{MOST} are open in the background already.",
                    "End one with 'overlay connect rm ID'.",
                    Exit.REFUSED,
                )
            first = await self._connect(name, token)
            bound = bind_local(endpoint, datagrams=first.datagrams)
            try:
                number = max((int(each.removeprefix("c")) for each in self._kept), default=0) + 1
                where = format_endpoint(bound.getsockname()[:2])
                kept = KeptConnection(id=f"c{number}", name=name, listen=where, token=token)
                await self._save({**self._kept, kept.id: kept})
            except BaseException:
                bound.close()
                raise
            it = _Running(kept)
            it.took(first, Connecting(bound, first, self._asker(kept)))
            self._start(it)
            return it.status()

    async def remove(self, name: str) -> None:
        """End one, and what is open through it; its port is free then. Raises `UserError` ("connection-unknown")."""
        async with self._lock:
            if name not in self._kept:
                raise UserError(
                    "connection-unknown",
                    f"Nothing called '{name[:64]}' is open in the background.",
                    "See 'overlay connect ls' for what is.",
                )
            await self._save({key: each for key, each in self._kept.items() if key != name})
            it = self._running.pop(name, None)
            if it is not None:
                it.scope.cancel()
                await it.ended.wait()

    # inside ----------------------------------------------------------------------------------------------------------

    def _start(self, it: _Running) -> None:
        if self._tasks is None:  # taken down while the server was asked: opened at the next start
            if it.at_work is not None:
                it.at_work.close()
            return
        self._running[it.kept.id] = it
        self._tasks.start_soon(self._keep, it)

    async def _keep(self, it: _Running) -> None:
        try:
            with it.scope:
                while True:
                    pause = await self._try(it)
                    await anyio.sleep(pause)
        finally:
            it.ended.set()

    async def _try(self, it: _Running) -> float:
        """Until it does not work any more. → s until the next try"""
        try:
            if it.at_work is None:
                first = await self._connect(it.kept.name, it.kept.token)
                bound = bind_local(parse_endpoint(it.kept.listen), datagrams=first.datagrams)
                it.took(first, Connecting(bound, first, self._asker(it.kept)))
            assert it.at_work is not None
            await it.at_work.run()
        except UserError as error:
            problem = f"{error.message} {error.hint}".strip()
            if problem != it.problem:
                _log.warning("%s at %s does not work: %s", it.kept.name, it.kept.listen, problem)
                it.problem = problem
            return REFUSED_RETRY if error.exit_code in (Exit.REFUSED, Exit.USAGE) else RETRY
        finally:
            it.at_work = None
        return RETRY

    def _asker(self, kept: KeptConnection) -> Callable[[], Awaitable[Connected]]:
        return lambda: self._connect(kept.name, kept.token)

    async def _save(self, kept: dict[str, KeptConnection]) -> None:
        file = _KeptFile(connections=tuple(kept.values()))
        await anyio.to_thread.run_sync(self._state.write_struct, FILE, file)
        self._kept = kept


def check_port(endpoint: Endpoint, owner: int, lowest: int | None = None) -> None:
    """Whether this user may listen there himself. `lowest`: the first port that everybody may take; None: as the system
    has it. Raises `UserError` ("port-permission", exit 4)."""
    if lowest is None:
        try:
            lowest = int(_UNPRIVILEGED.read_text())
        except (OSError, ValueError):
            lowest = 1024
    if owner != 0 and 0 < endpoint[1] < lowest:
        raise UserError(
            "port-permission",
            f"You may not listen at {format_endpoint(endpoint)}.",
            f"Choose a port from {lowest} on, or run it with sudo.",
            Exit.REFUSED,
        )


def _checked(name: str, listen: str, token: str) -> Endpoint:
    if not 0 < len(name) <= LONGEST_NAME or len(token) > LONGEST_TOKEN:
        raise UserError("bad-request", "Name what a peer exposes by --private NAME.", exit_code=Exit.USAGE)
    return parse_listen(listen)
