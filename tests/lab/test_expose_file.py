"""Many exposures by a file, and the inspector, as people use them: real daemons, curl before them."""

import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab.browser import Browser
from tests.lab.conftest import tracked
from tests.lab.netns import Lab, wait_for
from tests.lab.published import ROOT, exposed, program
from tests.lab.topology import OVERLAY, SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with a site at port 3000, and a user without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "user")}
        public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "user": "198.51.100.90"}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", "a"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join("a")
            www = lab.directory / "www"
            www.mkdir()
            (www / "index.html").write_text("home\n")
            spaces["a"].popen([sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", str(www), "3000"])
            wait_for(lambda: made["a"].run("curl", "-s", "127.0.0.1:3000", check=False).stdout, "the site answers")
            yield made
            made.stop_all()


def replace(file: Path, text: str) -> None:
    """As editors save: a new file takes the name of the old one."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.rename(new, file)


def curl(network: Network, host: str, *arguments: str, path: str = "/") -> str:
    resolve = ("--resolve", f"{host}:80:{SERVER_ADDRESS}")
    command = ["curl", "-sS", "--max-time", "20", *resolve, *arguments, f"http://{host}{path}"]
    return str(network.lab.namespaces["user"].run(command).stdout)


def entries(a: Machine) -> dict[str, Any]:
    return {each["entry"]["name"]: each for each in a.status()["exposures"] if each["entry"] is not None}


def entry(name: str, host: str, target: str = "3000") -> str:
    return f'[exposures.{name}]\ntarget = "{target}"\nhost = "{host}"\n'


def test_a_file_is_followed_until_ctrl_c(network: Network) -> None:
    a, file, log = network["a"], network.lab.directory / "e.toml", network.lab.directory / "log"
    file.write_text(entry("web", "web.test") + entry("old", "old.test"))
    planned = a.overlay("expose", "--file", str(file), "--check").stdout
    assert "+ web  would be published: web.test → 3000" in planned and entries(a) == {}
    with log.open("w") as out:
        staying = a.popen(OVERLAY, "expose", "--file", str(file), stdout=out, stderr=subprocess.STDOUT)
    wait_for(lambda: "Following" in log.read_text(), "it is published")
    web = entries(a)["web"]["id"]
    assert curl(network, "web.test") == "home\n" == curl(network, "old.test")

    replace(file, entry("web", "web.test") + entry("new", "new.test") + "hots = 1\n")
    wait_for(lambda: "Did you mean 'host'?" in log.read_text(), "the mistake is said")
    assert set(entries(a)) == {"web", "old"}, "nothing is changed"

    replace(file, entry("web", "web.test") + entry("new", "new.test") + entry("twice", "web.test"))
    wait_for(lambda: "+ new" in log.read_text(), "the new one is published")
    wait_for(lambda: "! twice" in log.read_text(), "the one that is refused is said")
    assert set(entries(a)) == {"web", "new"} and entries(a)["web"]["id"] == web
    assert curl(network, "new.test", path="/?q") == "home\n"
    wait_for(lambda: "/?q" in log.read_text(), "requests are shown")
    (line,) = [line for line in log.read_text().splitlines() if line.endswith("/?q")]
    assert line.startswith("new  ")

    staying.send_signal(signal.SIGINT)
    assert staying.wait(20) == 130
    assert entries(a) == {}


def test_the_daemon_follows_a_file_and_remembers_it(network: Network) -> None:
    a, file = network["a"], network.lab.directory / "background.toml"
    file.write_text(entry("web", "web.test"))
    a.overlay("expose", "--file", str(file), "--background")
    assert curl(network, "web.test") == "home\n"
    foreground = a.overlay("expose", "--file", str(file), check=False)
    assert foreground.returncode == 1 and "followed in the background" in foreground.stderr
    replace(file, entry("web", "web.test") + entry("more", "more.test"))
    wait_for(lambda: set(entries(a)) == {"web", "more"}, "the change is applied")

    replace(file, "[exposures.web]\n")
    wait_for(lambda: "has no target" in a.overlay("expose", "ls").stderr, "the mistake is shown")
    assert set(entries(a)) == {"web", "more"}

    a.kill_daemon()
    replace(file, entry("more", "more.test"))
    a.overlay("up", "--quiet")
    wait_for(lambda: set(entries(a)) == {"more"}, "what changed meanwhile is applied", 30)
    shown = a.overlay("expose", "ls").stdout
    assert "name" in shown and "more.test" in shown
    a.overlay("expose", "rm", "more")
    assert a.overlay_json("expose", "rm", str(file))["entries"] == []
    assert a.overlay_json("expose", "ls") == {"exposures": [], "files": []}


class Terminal:
    """A terminal of 40 lines, and what a program wrote there."""

    def __init__(self, machine: Machine, *command: str) -> None:
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (40, 80))
        plain = ("env", "-uLINES", "-uCOLUMNS")  # which would stand for the terminal's own size
        self.process = machine.popen(*plain, *command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self._said = b""

    def said(self) -> str:
        with suppress(OSError):  # nothing new, or the program has ended
            while data := os.read(self._ours, 65536):
                self._said += data
        return self._said.decode(errors="replace")

    def wait(self, *texts: str, timeout: float = 20.0) -> None:
        """Until all of it was said since the last key."""
        try:
            wait_for(lambda: all(text in self.said() for text in texts), f"{texts} is shown", timeout)
        except TimeoutError as error:
            error.add_note(self.said()[-3000:])
            raise

    def type(self, keys: str) -> None:
        self._said = b""
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        wait_for(lambda: self.said() is None or self.process.poll() is not None, "the program ends")
        os.close(self._ours)
        return self.process.wait()


def test_requests_are_inspected_and_sent_again(network: Network) -> None:
    a = network["a"]
    terminal = Terminal(a, OVERLAY, "expose", "3000", "--host", "web.test", "--inspect")
    terminal.wait("No requests yet.")
    assert curl(network, "web.test", "-H", "Authorization: Bearer s3cret", path="/?first") == "home\n"
    terminal.wait("/?first")
    terminal.type("\r")
    terminal.wait("Bearer ••••••", "home")
    assert "s3cret" not in terminal.said()
    terminal.type("r")
    terminal.wait("was sent again")

    (exposure,) = a.status()["exposures"]
    listed = a.overlay_json("expose", "inspect", exposure["id"])
    first, second = listed["exchanges"]
    assert (first["target"], first["source"], second["replay_of"]) == ("/?first", "198.51.100.90", first["id"])
    page = a.run("curl", "-sS", "--max-time", "20", listed["url"]).stdout
    assert "<title>overlay inspector</title>" in page
    again = a.overlay_json("expose", "replay", first["id"])
    assert again["summary"]["status"] == 200 and again["answer"]["body"]["text"] == "home\n"
    assert "X-Overlay-Replay: 1" in a.overlay("expose", "replay", first["id"]).stdout

    terminal.type("q")
    assert terminal.end() == 0
    assert a.status()["exposures"] == [] and a.overlay("expose", "replay", first["id"], check=False).returncode == 1


def test_a_websocket_is_inspected_and_notices_nothing(network: Network) -> None:
    a, user = network["a"], network.lab.namespaces["user"]
    service = a.popen(*program("chat", "3001"), cwd=ROOT)
    wait_for(lambda: a.run("curl", "-s", "127.0.0.1:3001", check=False).stdout, "the service answers")
    with exposed(a, "3001", "--host", "chat.test", "--inspect") as made:
        said = user.run(program("talk", "ws", "chat.test"), cwd=ROOT).stdout
        assert json.loads(said) == {"echo": True, "protocol": "chat", "pong": True, "closed": 1000}

        def seen() -> Any:
            return a.overlay_json("expose", "inspect", made["id"])["exchanges"][0]

        wait_for(lambda: seen()["state"] == "done", "its end is seen")
        assert (seen()["status"], seen()["upgraded"], seen()["target"]) == (101, True, "/socket")
        assert min(seen()["sent"], seen()["received"]) > 5_000_000
        again = a.overlay("expose", "replay", seen()["id"], check=False)
        assert again.returncode == 1 and "asked for another protocol" in again.stderr
    service.terminate()
    service.wait()


def test_the_page_shows_requests_and_sends_them_again_in_a_browser(network: Network) -> None:
    a = network["a"]
    exposure = a.overlay_json("expose", "3000", "--host", "web.test", "--inspect", "--background")
    page = a.overlay_json("expose", "inspect", exposure["id"])["url"]
    curl(network, "web.test", "-H", "Authorization: Bearer s3cret", path="/?<b>first</b>")
    with Browser(a.namespace, network.lab.directory / "chromium") as browser:

        def shown(part: str) -> str:
            return str(browser.run(f"document.querySelector({part!r})?.innerText ?? ''"))

        browser.open(page)
        wait_for(lambda: "/?<b>first</b>" in shown("#rows"), "the request is in the list")
        browser.run("document.querySelector('#rows tr').click()")
        wait_for(lambda: "home" in shown("#messages"), "its details are shown")
        assert "Bearer ••••••" in shown("#messages") and "s3cret" not in browser.run("document.body.innerHTML")
        browser.run("document.querySelector('#secrets').click()")
        wait_for(lambda: "Bearer s3cret" in shown("#messages"), "secrets are shown when they are asked for")
        browser.run("document.querySelector('#replay').click()")
        wait_for(lambda: "replay of r" in shown("#facts"), "it was sent again")
        assert "X-Overlay-Replay" in shown("#messages") and "s3cret" not in shown("#messages")
        curl(network, "web.test", path="/?second")
        wait_for(lambda: "/?second" in shown("#rows"), "what comes is shown as it comes")
        assert browser.run("document.querySelectorAll('#rows tr').length") == 3
        assert browser.complaints == []
    a.overlay("expose", "rm", exposure["id"])
