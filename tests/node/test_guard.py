"""A daemon that is killed where its resolver stands alone in the system's file: real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from overlay_dns.osconfig.resolvconf import parse_nameservers
from tests.lab.netns import started, wait_for

FORMER = "nameserver 192.0.2.53\n"
DAEMON = """
import sys, time
from pathlib import Path
import msgspec
from overlay.daemon.state import StateDir
from overlay.node.guard import Guard
from overlay_dns.osconfig.bus import Bus
from overlay_dns.osconfig.decision import survey
from overlay_dns.osconfig.system import SystemDns

folder, guard = Path(sys.argv[1]), Guard()
state = StateDir(folder / "state").open()
with state.lock():
    look = lambda path, bus: msgspec.structs.replace(survey(path, bus), asks_all=True)
    bus = Bus(f"unix:path={folder}/no-bus")
    system = SystemDns(state, folder / "resolv.conf", bus=bus, look=look, guard=lambda: guard.start(state))
    assert system.apply("overlay0", ["10.77.0.2"], "local.test") == ["192.0.2.53"]
    print(guard._process.pid, flush=True)
    sys.stdin.readline()
    system.restore()
    guard.end()
"""


def start(folder: Path) -> tuple["subprocess.Popen[str]", int]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_names_are_put_back_after_a_kill_and_left_alone_after_an_end(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(FORMER)
    process, guard = start(tmp_path)
    with process:
        assert parse_nameservers(file.read_text()) == ["10.77.0.2"]
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: file.read_text() == FORMER, "it is as before", timeout=5)
    wait_for(lambda: started(guard) is None, "the guard is done")
    process, guard = start(tmp_path)
    with process:
        process.communicate("\n", timeout=10)
    assert file.read_text() == FORMER and process.returncode == 0
    assert started(guard) is None, "the guard ended, and its end was waited for"
