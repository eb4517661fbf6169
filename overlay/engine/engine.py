"""The engine as the rest of the program holds it: open, start, post, stop. Owns the thread; knows no packet.

Only the engine thread touches engine state. Everybody else puts commands into a deque and writes to an eventfd; events
come out through the callback, on the engine thread.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from overlay.engine import features
from overlay.engine.api import AddLink, Command, EngineConfig, EngineFailed, Event
from overlay.engine.features import Features
from overlay.engine.loop import Loop
from overlay.engine.tun import Tun, open_tun
from overlay.engine.udp import open_udp
from overlay.errors import LocalProtocolError, UserError

logger = logging.getLogger(__name__)

SWITCH_INTERVAL: Final = 0.0005
"""s; after this long a thread that runs Python gives way to the engine, where the interpreter's own 5 ms would show in
every round trip."""

OpenTun = Callable[[str, Features], Tun]


class Engine:
    """One data plane. `on_event` is called on the engine thread and must only hand over."""

    def __init__(
        self,
        config: EngineConfig,
        on_event: Callable[[Event], None],
        *,
        wanted: Features = features.ALL,
        open_tun: OpenTun = open_tun,
    ) -> None:
        """`wanted`: the kernel features to use if they are there. `open_tun`: another source of packets, for tests."""
        self.interface: str | None = None
        """Name of the TUN device, once started."""
        self.port = 0
        """UDP port, once started."""
        self._config = config
        self._on_event = on_event
        self._wanted = wanted
        self._open_tun = open_tun
        self._commands: deque[Command] = deque()
        self._wakeup = -1
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._lock = threading.Lock()  # guards the eventfd's life against `post` and `stop` of several threads

    def start(self) -> None:
        """Open interface and sockets, and start the thread.

        Raises `UserError`: those of `open_tun` and `open_udp`.
        """
        if self._thread is not None:
            raise LocalProtocolError("an engine starts once")
        tun = None if self._config.interface is None else self._open_tun(self._config.interface, self._wanted)
        try:
            sockets = open_udp(self._config.port, self._wanted)
        except BaseException:
            if tun is not None:
                tun.close()
            raise
        wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            loop = Loop(self._config, tun, sockets, wakeup, self._commands, self._on_event)
        except BaseException:
            os.close(wakeup)
            sockets.close()
            if tun is not None:
                tun.close()
            raise
        self.interface = None if tun is None else tun.name
        self.port = sockets.port

        def main() -> None:
            try:
                loop.run()
            except UserError as error:
                logger.error("%s", error.message)
                self._on_event(EngineFailed(error))
            except BaseException as error:
                logger.exception("the engine failed")
                self._on_event(EngineFailed(error))
            finally:
                loop.close()
                sockets.close()
                _discard(self._commands)
                if tun is not None:
                    tun.close()

        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        with self._lock:
            self._loop, self._wakeup = loop, wakeup
            self._thread = threading.Thread(target=main, name="overlay-engine", daemon=True)
            self._thread.start()
            os.eventfd_write(wakeup, 1)  # for what was posted before

    def post(self, *commands: Command) -> None:
        """Hand commands over, in order. From any thread, also before `start`; after `stop` they are ignored."""
        if self._stopped:
            _discard(deque(commands))
            return
        self._commands.extend(commands)
        self._wake()

    def stop(self) -> None:
        """End the thread, close interface and sockets. Returns when that is done; again is harmless.

        From the event callback it only asks for it, since the engine thread cannot wait for itself.
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._stopped = True
        loop.stop()
        self._wake()
        if thread is threading.current_thread():
            return
        thread.join()
        with self._lock:
            wakeup, self._wakeup = self._wakeup, -1
        if wakeup >= 0:
            os.close(wakeup)

    def _wake(self) -> None:
        with self._lock:
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)


def _discard(commands: deque[Command]) -> None:
    """Nobody does these any more: what they hand over is closed."""
    while commands:
        command = commands.popleft()
        if isinstance(command, AddLink):
            command.handed.socket.close()
