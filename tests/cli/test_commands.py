"""The command line as people and scripts meet it, without a daemon: help, errors, exit codes, sources of options."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlay.wire.control.invite import Invite
from overlay_cli.main import main

COMMANDS = (
    "server",
    "invite",
    "up",
    "down",
    "status",
    "capture",
    "dns",
    "expose",
    "netcheck",
    "node",
    "ping",
    "version",
    "why",
)
ALL = (
    *((name,) for name in COMMANDS),
    ("expose", "ls"),
    ("expose", "rm"),
    ("expose", "logs"),
    ("expose", "inspect"),
    ("expose", "replay"),
    ("expose", "tcp://127.0.0.1:1"),
    ("connect", "ls"),
    ("connect", "rm"),
    ("connect", "db"),
)
ALL_WITH_NODE = (
    *ALL,
    ("node", "ls"),
    ("node", "rm"),
    ("node", "rename"),
    ("dns", "add"),
    ("dns", "ls"),
    ("dns", "rm"),
    ("dns", "query"),
    ("dns", "status"),
)
OVERLAY = str(Path(sys.executable).parent / "overlay")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OVERLAY_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, environment: Mapping[str, str] | None = None, given: str = "") -> tuple[int, str, str]:
    """The command in a process of its own, as a person runs it."""
    done = subprocess.run(
        [OVERLAY, *arguments],
        input=given,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ALL_WITH_NODE, ids=" ".join)
def test_help_shows_one_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert capsys.readouterr().out.count("Example: ") == 1


def test_commands_without_arguments_show_help_and_say_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["node"], ["expose"], ["dns"]):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert "Usage: overlay" in captured.out + captured.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("statsu", "status"), ("invit", "invite"), ("expsoe", "expose"), ("sever", "server")]
)
def test_an_unknown_command_suggests_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "unknown-command" and f"'{meant}'" in error["message"]


def test_a_mistyped_word_after_expose_is_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expose", "lss"]) == 2
    assert "Did you mean 'ls'?" in capsys.readouterr().err


def test_an_error_is_a_sentence_and_a_hint_on_standard_error(tmp_path: Path) -> None:
    code, out, err = run("status", "--state", str(tmp_path))
    assert code == 3 and out == ""
    message, hint = err.splitlines()
    assert message.startswith("overlay: ") and str(tmp_path) in message and "overlay up" in hint


def test_an_error_with_json_is_one_document_on_standard_output(tmp_path: Path) -> None:
    code, out, err = run("status", "--json", "--state", str(tmp_path))
    assert code == 3 and err == ""
    assert set(json.loads(out)["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("down",),
        ("invite",),
        ("expose", "ls"),
        ("expose", "rm", "x1"),
        ("expose", "logs", "x1"),
        ("expose", "inspect", "x1"),
        ("expose", "replay", "r1"),
        ("expose", "tcp://[::1]:80", "--public", "9000"),
        ("capture",),
        ("capture", "b"),
        ("ping", "b"),
        ("why", "b"),
        ("dns", "add", "api", "A", "192.0.2.1"),
        ("dns", "ls"),
        ("dns", "rm", "api"),
        ("dns", "query", "b"),
        ("dns", "status"),
        ("node", "ls"),
        ("node", "rm", "a"),
        ("node", "rename", "a", "b"),
    ],
    ids=" ".join,
)
def test_commands_that_need_a_daemon_say_so(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--state", str(tmp_path), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "not-running"


@pytest.mark.parametrize("expires", ["", "24", "h", "1y", "-1h", "24h!"])
def test_a_length_of_time_that_is_none(expires: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invite", "--expires", expires, "--state", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad-duration"


def test_an_empty_standard_input_is_no_invite(tmp_path: Path) -> None:
    code, out, _ = run("up", "-", "--state", str(tmp_path), "--json")
    assert code == 2 and json.loads(out)["error"]["code"] == "invite-empty"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    number = json.loads(capsys.readouterr().out)["version"]
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"overlay {number}\n"


# where options come from ---------------------------------------------------------------------------------------------


def answer_to_invite(tmp_path: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Which `--expires` counts: a bad one is named in the error before any daemon is asked."""
    _, out, _ = run("invite", "--json", "--state", str(tmp_path), *arguments, environment=environment)
    message: str = json.loads(out)["error"]["message"]
    return message


def test_command_line_over_environment_over_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('expires = "file"\n')
    assert "'file'" in answer_to_invite(tmp_path)
    environment = {"OVERLAY_EXPIRES": "environment"}
    assert "'environment'" in answer_to_invite(tmp_path, environment=environment)
    assert "'line'" in answer_to_invite(tmp_path, "--expires", "line", environment=environment)


def test_a_rate_from_wherever_it_comes_is_read_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: str) -> str:
        assert main(["server", "--json", "--state", str(tmp_path / "new"), *arguments]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "bad-rate" and not (tmp_path / "new" / "lock").exists()
        return str(error["message"])

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text('relay-rate = "file"\n')
    assert "'file'" in refusal()
    monkeypatch.setenv("OVERLAY_RELAY_RATE", "environment")
    assert "'environment'" in refusal()
    assert "'100'" in refusal("--relay-rate", "100")


def test_state_from_the_environment(tmp_path: Path) -> None:
    code, _, err = run("status", environment={"OVERLAY_STATE": str(tmp_path)})
    assert code == 3 and str(tmp_path) in err


def test_a_file_for_several_commands_is_no_mistake_in_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text('domain = "home.test"\nuses = 5\nno-tun = true\nlisten = ["0.0.0.0:4433"]\n')
    assert main(["invite", "--state", str(tmp_path)]) == 3
    assert "No daemon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("name = \n", "config-malformed", "config.toml"),
        ('nam = "x"\n', "config-unknown-option", "'name'"),
        ("[up]\nname = 1\n", "config-unknown-option", "'up'"),
        ("uses = 0\n", "usage", "uses"),
    ],
)
def test_a_mistake_in_the_file(
    text: str, code: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert main(["invite", "--json", "--state", str(tmp_path)]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code and names in error["message"] + error["hint"]


@pytest.mark.parametrize("command", ["up", "server"])
def test_dscp_is_hidden_or_copied_and_nothing_else(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--dscp", "lower", "--state", str(tmp_path)]) == 2
    assert "'lower' is not one of 'hide', 'copy'" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text('dscp = "higher"\n')
    assert main([command, "--state", str(tmp_path)]) == 2
    assert "'higher'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("203.0.113.7", "with a port"),
        ("home.example:41641", "does not appear to be"),
        ("203.0.113.7:0", "from 1 to 65535"),
        ("127.0.0.1:41641", "no peer can reach"),
    ],
)
def test_an_endpoint_that_nobody_could_use_is_refused_before_anything_starts(
    endpoint: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["up", "--json", "--state", str(tmp_path), "--endpoint", "203.0.113.7:41641", "--endpoint", endpoint]
    assert main(command) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "endpoint-invalid" and says in error["message"] and "--endpoint" in error["hint"]


def test_an_upstream_that_is_none_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for upstream, says in (("dns.google", "no IP address"), ("corp example=10.0.0.1", "'corp example' is no domain")):
        assert main(["up", "--json", "--state", str(tmp_path), "--upstream", "9.9.9.9", "--upstream", upstream]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "upstream-invalid" and says in error["message"] and "tls://" in error["hint"]
    (tmp_path / "config.toml").write_text('upstream = ["corp.example=10.0.0.1:0"]\n')
    assert main(["up", "--state", str(tmp_path)]) == 2
    assert "no valid port" in capsys.readouterr().err


def test_port_mapping_is_on_or_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--port-mapping", "maybe", "--state", str(tmp_path)]) == 2
    assert "'maybe' is not one of 'on', 'off'" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text('port-mapping = "never"\n')
    assert main(["up", "--state", str(tmp_path)]) == 2
    assert "'never'" in capsys.readouterr().err


# what a start costs --------------------------------------------------------------------------------------------------


HEAVY = ("anyio", "msgspec", "sqlalchemy", "alembic", "scapy", "pyroute2", "cryptography", "nacl", "starlette")
HEAVY_TOO = ("uvicorn", "dnslib", "pydantic", "rich", "overlay.wire", "overlay.engine", "overlay.node", "asyncio")


def test_status_imports_nothing_heavy_before_it_asks(tmp_path: Path) -> None:
    program = (
        "import sys; from overlay_cli.main import main; "
        f"main(['status', '--json', '--state', {str(tmp_path)!r}]); "
        "sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) & set(HEAVY + HEAVY_TOO) == set()


def test_status_starts_in_a_fifth_of_a_second(tmp_path: Path) -> None:
    """Processor time of the best of some runs, so that what else this machine does is not measured."""
    best = 60.0
    for _ in range(8):
        before = os.times()
        assert run("status", "--json", "--state", str(tmp_path))[0] == 3
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    assert best < 0.2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--carrier", "quic"), "carrier-unknown", "there are auto, udp, tls, wss, tcp, ws"),
        (("--carrier", "udp,,tls"), "carrier-unknown", "is not a carrier"),
        (("--proxy", "socks5://proxy:1080"), "proxy-invalid", "not by socks5://"),
        (("--proxy", "http://proxy:99999"), "proxy-invalid", "address is wrong"),
        (("--proxy", "http://proxy/path"), "proxy-invalid", "a host and a port"),
        (("--ca", "no-such-file.pem"), "ca-missing", "no-such-file.pem"),
    ],
)
def test_a_wrong_way_to_the_server_is_wrong_usage(
    arguments: tuple[str, ...], code: str, words: str, tmp_path: Path
) -> None:
    exit_code, out, _ = run("up", "--state", str(tmp_path), "--json", *arguments)
    error = json.loads(out)["error"]
    assert (exit_code, error["code"]) == (2, code)
    assert words in error["message"]


@pytest.mark.parametrize("name", ["OVERLAY_PROXY", "HTTPS_PROXY", "https_proxy"])
def test_the_proxy_may_come_from_the_environment(name: str, tmp_path: Path) -> None:
    exit_code, out, _ = run("up", "--state", str(tmp_path), "--json", environment={name: "ftp://proxy"})
    assert (exit_code, json.loads(out)["error"]["code"]) == (2, "proxy-invalid")


def test_the_carriers_may_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('carrier = "smoke"\n')
    exit_code, out, _ = run("up", "--state", str(tmp_path), "--json")
    assert (exit_code, json.loads(out)["error"]["code"]) == (2, "carrier-unknown")


def test_netcheck_needs_a_server(tmp_path: Path) -> None:
    exit_code, out, _ = run("netcheck", "--state", str(tmp_path), "--json")
    assert (exit_code, json.loads(out)["error"]["code"]) == (2, "not-joined")


def test_netcheck_reports_also_what_does_not_work(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        invite = Invite((f"127.0.0.1:{bound.getsockname()[1]}",), bytes(32), bytes(16), "local.test").encode()
        arguments = ("netcheck", invite, "--state", str(tmp_path), "--carrier", "tcp")
        exit_code, out, _ = run(*arguments, "--json")
        report = json.loads(out)
        assert (exit_code, report["best"], report["udp"]) == (5, None, "unknown")
        assert report["carriers"] == [
            {"carrier": "tcp", "works": False, "address": None, "latency_ms": None, "why": "connection refused"}
        ]
        exit_code, out, _ = run(*arguments)
    assert exit_code == 5
    assert "the server is not reached" in out and "connection refused" in out
