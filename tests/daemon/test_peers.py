"""`overlay ping` and the local API behind it, over a real socket: what is printed, JSON, exit codes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette

from overlay.daemon.capture import capture_routes
from overlay.daemon.localapi import on_user_error, serve_local_api
from overlay.daemon.peers import LONGEST_PATIENCE, CandidateStatus, PathStatus, PingResult, WhyReport, peer_routes
from overlay.errors import UserError
from overlay_cli.main import main
from tests.daemon.capture_source import Source

RELAY = PathStatus(kind="relay", endpoint=None, since=0.0, mtu=1428)
DIRECT = PathStatus(kind="udp", endpoint="198.51.100.7:41641", since=1.0, mtu=1444)


REPORT = WhyReport(
    name="b",
    addresses=("10.77.0.3",),
    online=True,
    path=RELAY,
    rtt_ms=None,
    active=True,
    reason="no-answer",
    sentence="One endpoint of b asked without an answer.",
    own_nat="An easy one.",
    peer_nat="A hard one.",
    relay=True,
    next_call_s=3.5,
    candidates=(
        CandidateStatus(
            endpoint="198.51.100.7:41641",
            kind="udp",
            origin="observed",
            state="silent",
            pings=5,
            pinged_s=1.0,
            answered_s=None,
            rtt_ms=None,
            next_try_s=12.0,
        ),
    ),
)


class Peer(Source):
    """One peer, b, which answers with what the test says, one after the other; the last one for ever."""

    def __init__(self, *answers: PingResult) -> None:
        super().__init__(lambda write: anyio.lowlevel.checkpoint())
        self.answers = list(answers)
        self.patience: list[float] = []

    def find_peer(self, text: str) -> dict[str, Any]:
        return super().find_peer("b" if text == "3" else text)

    async def ping(self, number: int, patience: float) -> PingResult:
        assert number == 3
        self.patience.append(patience)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def why(self, number: int) -> WhyReport:
        assert number == 3
        return REPORT


@contextmanager
def served(peer: Peer, state: Path) -> Iterator[None]:
    app = Starlette(routes=[*capture_routes(peer), *peer_routes(peer)], exception_handlers={UserError: on_user_error})
    with start_blocking_portal() as portal:
        future, _ = portal.start_task(serve_local_api, app, state)
        try:
            yield
        finally:
            future.cancel()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay_cli.commands.peer.INTERVAL", 0.0)


def answer(path: PathStatus | None, rtt: float | None) -> PingResult:
    return PingResult(path=path, rtt_ms=rtt)


def run(state: Path, *arguments: str) -> int:
    return main(["ping", *arguments, "--state", str(state)])


def test_a_line_for_each_answer_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = Peer(answer(RELAY, 3.0), answer(None, None), answer(DIRECT, 1.0))
    with served(peer, tmp_path):
        assert run(tmp_path, "b", "-c", "3", "--timeout", "0.5") == 0
    assert capsys.readouterr().out.splitlines() == [
        "b (10.77.0.3) by relay: 3.00 ms",
        "b (10.77.0.3): no answer",
        "b (10.77.0.3) by direct udp 198.51.100.7:41641: 1.00 ms",
        "3 sent, 2 answered; round trip min 1.00, avg 2.00, max 3.00 ms",
    ]
    assert peer.patience == [0.5, 0.5, 0.5]


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(DIRECT, 1.25)), tmp_path):
        assert run(tmp_path, "b", "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["peer"], document["sent"], document["answered"], document["avg_ms"]) == ("b", 5, 5, 1.25)
    assert document["answers"][0]["path"]["kind"] == "udp"


def test_until_direct_ends_with_the_first_direct_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(RELAY, 3.0), answer(DIRECT, 1.0)), tmp_path):
        assert run(tmp_path, "b", "--until-direct") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_never_direct_is_exit_code_5(tmp_path: Path) -> None:
    with served(Peer(answer(RELAY, 3.0)), tmp_path):
        assert run(tmp_path, "b", "--until-direct", "-c", "2") == 5


def test_no_answer_at_all_is_exit_code_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(None, None)), tmp_path):
        assert run(tmp_path, "b", "-c", "1") == 5
    assert capsys.readouterr().out.splitlines()[-1] == "1 sent, 0 answered"


def test_nobody_of_that_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(RELAY, 3.0)), tmp_path):
        assert run(tmp_path, "nobody") == 1
    assert "There is no peer 'nobody'." in capsys.readouterr().err


@pytest.mark.parametrize("patience", [0, -1, LONGEST_PATIENCE + 1, True, "1", None, [1]])
def test_a_patience_that_is_none(patience: Any, tmp_path: Path) -> None:
    from overlay.daemon.client import LocalClient

    with served(Peer(answer(RELAY, 3.0)), tmp_path), pytest.raises(UserError) as caught:
        LocalClient(tmp_path).request("POST", "/v1/peers/b/ping", {"patience": patience})
    assert caught.value.code == "bad-request"


def test_why_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(RELAY, 3.0)), tmp_path):
        assert main(["why", "b", "--state", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert main(["why", "b", "--json", "--state", str(tmp_path)]) == 0
        document = json.loads(capsys.readouterr().out)
    for words in ("b: relay", REPORT.sentence, "An easy one.", "A hard one.", "198.51.100.7:41641", "never", "in 12 s"):
        assert words in shown, shown
    assert (document["reason"], document["candidates"][0]["pings"]) == ("no-answer", 5)


def test_why_of_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(Peer(answer(RELAY, 3.0)), tmp_path):
        assert main(["why", "nobody", "--state", str(tmp_path)]) == 1
    assert "There is no peer 'nobody'." in capsys.readouterr().err
