"""What the event loop asks of the engine's thread: answered, and not answered."""

import threading

import anyio

from overlay.daemon.peers import PathStatus, PingResult
from overlay.engine.api import Command, PathSnapshot, PingAnswer, PingPeer
from overlay.node.pings import ping

PATH = PathSnapshot("udp", ("2001:db8::1", 41641), 1.5, 1444)


def test_an_answer_from_another_thread() -> None:
    def post(command: Command) -> None:
        assert isinstance(command, PingPeer) and command.number == 3
        threading.Thread(target=command.reply, args=(PingAnswer(PATH, 0.0123456),)).start()

    result = anyio.run(ping, post, 3, 8.0)
    path = PathStatus(kind="udp", endpoint="[2001:db8::1]:41641", since=1.5, mtu=1444)
    assert result == PingResult(path=path, rtt_ms=12.346)


def test_no_answer_is_a_result_too() -> None:
    asked: list[Command] = []
    assert anyio.run(ping, asked.append, 3, 0.01) == PingResult(path=None, rtt_ms=None)
    (command,) = asked
    assert isinstance(command, PingPeer)
    command.reply(PingAnswer(PATH, 0.5))  # late: nobody minds
