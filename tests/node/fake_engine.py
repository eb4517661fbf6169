"""An engine without packets, for tests of what drives it."""

from collections.abc import Callable

from overlay.engine.api import (
    AddLink,
    Command,
    EngineConfig,
    EngineSnapshot,
    Event,
    Inspect,
    PeerSnapshot,
    StartTap,
    StopTap,
)


class FakeEngine:
    """Keeps its commands, answers `Inspect`, and lets a test raise events. Starts no thread."""

    def __init__(self, config: EngineConfig, on_event: Callable[[Event], None]) -> None:
        self.config = config
        self.on_event = on_event
        self.interface: str | None = None
        self.port = 41641
        self.running = False
        self.commands: list[Command] = []
        self.peers: tuple[PeerSnapshot, ...] = ()
        self.timestamp = 0

    def start(self) -> None:
        self.running = True

    def post(self, *commands: Command) -> None:
        for command in commands:
            if isinstance(command, Inspect):
                command.reply(self.snapshot())
            elif isinstance(command, StopTap):
                command.stopped()
            else:
                if isinstance(command, StartTap):
                    command.started()
                self.commands.append(command)

    def stop(self) -> None:
        self.running = False
        for command in self.commands:
            if isinstance(command, AddLink):
                command.handed.socket.close()

    def take(self) -> list[Command]:
        taken, self.commands = self.commands, []
        return taken

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(
            interface=None,
            port=self.port,
            peers=self.peers,
            relay_rtt=None,
            drops={"bad_tag": 2},
            features={"udp_gso": True},
            relayed_bytes=0,
            relay_waiting=0,
            timestamp=self.timestamp,
        )


class Engines:
    """Makes fake engines and keeps them; what a `Member` takes as `start_engine`."""

    def __init__(self) -> None:
        self.made: list[FakeEngine] = []

    def __call__(self, config: EngineConfig, on_event: Callable[[Event], None]) -> FakeEngine:
        self.made.append(FakeEngine(config, on_event))
        return self.made[-1]

    @property
    def last(self) -> FakeEngine:
        return self.made[-1]
