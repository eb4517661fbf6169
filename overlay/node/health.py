"""Whether the target of an exposure is well: looked at each second from here, where that costs no traffic, and told
when it changes. One failure may be chance: what changes is looked at a second time, at once.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.http import read_head
from overlay.node.kept import Kept
from overlay.node.target_end import TargetEnd, TargetStream
from overlay.wire.control.messages import Health, Message
from overlay.wire.ingress.http1 import HttpError, parse_response
from overlay.wire.ingress.proxy_protocol import ProxyHeader, encode

INTERVAL: Final = 1.0  # s
AGAIN: Final = 0.2  # s until what has changed is looked at once more
TIMEOUT: Final = 0.7  # s for the target to answer: with the others, a target that hangs is known within 3 s
_FIRST_BAD: Final = 400  # status: redirections are an answer
_log = logging.getLogger(__name__)

Open = Callable[[], Awaitable[TargetStream]]
"""A connection to the target. Raises `OSError`, whose text is the end of a sentence."""


class HealthCheck:
    """`way`: "tcp", "http" or "http:/path"."""

    def __init__(self, way: str, host: str, open_target: Open, tell: Callable[[str], None]) -> None:
        """`tell` hears why the target is not well, or "" when it is, the first time and when it changes. `host`: for
        HTTP's Host field."""
        self.problem: str | None = None  # None: not known yet
        self._http, _, path = way.partition(":")
        self._path = path or "/"
        self._host = host
        self._open = open_target
        self._tell = tell

    async def run(self) -> None:
        """Until cancelled."""
        doubted = False
        while True:
            found = await self.look()
            if self.problem is None or (bool(found) != bool(self.problem) and doubted):
                self.problem, doubted = found, False
                self._tell(found)
            else:
                doubted = bool(found) != bool(self.problem)
            await anyio.sleep(AGAIN if doubted else INTERVAL)

    async def look(self) -> str:
        """Why it is not well, in words; "": it is."""
        stream: TargetStream | None = None
        try:
            with anyio.fail_after(TIMEOUT):
                stream = await self._open()
                return await self._ask(stream) if self._http == "http" else ""
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s"
        except OSError as error:
            return error.strerror or str(error) or "it takes no connections"
        finally:
            if stream is not None:
                stream.close()

    async def _ask(self, stream: TargetStream) -> str:
        lines = (f"GET {self._path} HTTP/1.1", f"Host: {self._host}", "Connection: close", "", "")
        try:
            await stream.send("\r\n".join(lines).encode())
            head, _ = await read_head(stream)
            status = parse_response(head, b"GET").status
        except HttpError:
            return "what it answers is not HTTP"
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return "it closes the connection without an answer"
        return "" if status < _FIRST_BAD else f"it answers {status}"


class Checks:
    """Of all exposures that have one."""

    def __init__(self, tell: Callable[[Health], Coroutine[Any, Any, None]]) -> None:
        """`tell` sends to the server, if it is there."""
        self._tell = tell
        self._running: dict[str, tuple[HealthCheck, anyio.CancelScope]] = {}

    def start(self, tasks: TaskGroup, name: str, way: str, host: str, open_target: Open) -> None:
        """Look after the target of the exposure `name`, until `stop`."""

        def changed(problem: str) -> None:
            _log.info("the target of %s: %s", name, problem or "it is well")
            tasks.start_soon(self._tell, Health(id=name, problem=problem))

        async def run() -> None:
            with scope:
                await check.run()

        self.stop(name)
        check, scope = HealthCheck(way, host, open_target, changed), anyio.CancelScope()
        self._running[name] = check, scope
        tasks.start_soon(run)

    def look_after(self, tasks: TaskGroup | None, kept: Kept, inside: TargetEnd | None) -> None:
        """See whether the target of this exposure is well, if somebody wants to know."""
        self.stop(kept.id)
        if kept.terms.health and inside is not None and tasks is not None:
            host = kept.target.partition("://")[2].partition("/")[0]
            opening = encode(ProxyHeader(), kept.terms.told.proxy_protocol)  # as who is no user
            self.start(tasks, kept.id, kept.terms.health, host, partial(inside.open, None, opening))

    def stop(self, name: str) -> None:
        if name in self._running:
            self._running.pop(name)[1].cancel()

    def clear(self) -> None:
        """All of them have ended."""
        self._running.clear()

    async def tell_all(self) -> None:
        """To a server that may know nothing of it."""
        for name, (check, _) in tuple(self._running.items()):
            if check.problem is not None:
                await self._tell(Health(id=name, problem=check.problem))

    def problem(self, name: str) -> str | None:
        """Why the target is not well; None: it is, or nobody has looked."""
        running = self._running.get(name)
        return running[0].problem or None if running is not None else None


async def say_nothing(_message: Message) -> None:
    """Where there is no server to tell."""
