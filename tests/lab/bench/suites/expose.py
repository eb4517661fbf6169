"""Exposures: a service of a node, published on the server, used by somebody who has nothing of ours.

Whole daemons, as people run them, in one network of three machines, user, server and node; beside them, on the same
machines and up at once, two haproxy in a row, which are the yardstick, and others that publish services, found on PATH.
"""

import contextlib
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.machine import resident_mb
from tests.lab.bench.publishers import HAPROXY, HOST, Publisher, Stage
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet
from tests.programs import nginx_command

TITLE = "Exposures"
OURS = "overlay, dynamic tcp"
SINGLE, TLS = "overlay, single", "overlay, dynamic tls"
BARE = "overlay itself"
TUNNELS = {OURS: "tcp", SINGLE: "single", TLS: "tls"}
NODE_ADDRESS, USER_ADDRESS = "198.51.100.21", "198.51.100.90"
_ADDRESSES = (USER_ADDRESS, SERVER_ADDRESS)
TARGETS = {"bulk": load.IPERF_PORT, "web": 3000, "echo": 5202}
FIRST_PORT = 7000
PORTS_EACH = 20

BULK = Quantity("1 stream by tcp", "Gb/s")
SHARE_SINGLE = Quantity("1 stream, single ÷ the overlay itself", "")
SHARE_TCP = Quantity("1 stream, dynamic tcp ÷ haproxy ×2", "")
SHARE_TLS = Quantity("1 stream, dynamic tls ÷ haproxy ×2", "")
CONNECTIONS = Quantity("new tcp connections", "1/s")
REQUESTS = Quantity("http requests, small, keep-alive", "1/s")
AT_HALF = Quantity("the same at half that rate, 99 %", "ms", more_is_better=False)
ADDED = Quantity("round trip of a byte above that of bare tcp, median", "ms", more_is_better=False)
MEMORY = Quantity("the server's memory per idle user by tcp", "KB", more_is_better=False)
MEMORY_HTTP = Quantity("the same by http", "KB", more_is_better=False)
USERS, USERS_QUICK = 1000, 100
AT_ONCE, AT_HALF_ONCE = 64, 32  # users of wrk
ECHOES = 300
_ECHO = (sys.executable, "-m", "tests.lab.bench.echo")
_DELAY = """local mean = {mean}
function init(args) math.randomseed(os.time()) end
function delay() return math.random(0, 2 * mean) end
"""
"""wrk's script: milliseconds before each request, drawn anew, so that requests do not come in step."""


@dataclass
class Way(Ends):
    """A contender with its ports for users on the server, by target. `server_pids`: who holds their connections."""

    ports: Mapping[str, int] = field(default_factory=dict)
    site: int | None = None
    server_pids: Sequence[int] = ()


def _start_nginx(lab: Lab, node: Machine) -> None:
    folder = lab.directory / "nginx"
    folder.mkdir()
    web = f"""
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    server {{
        listen 127.0.0.1:{TARGETS["web"]} backlog=4096;
        location / {{ default_type text/plain; return 200 "{"x" * 100}"; }}
    }}"""
    command = nginx_command(folder, web, connections=4096)
    node.namespace.popen(command, stderr=subprocess.DEVNULL)


def _echoes(user: Namespace, port: int) -> bool:
    return user.run([*_ECHO, "ask", SERVER_ADDRESS, str(port), "1"], check=False).returncode == 0


def _expose(network: Network, user: Namespace, name: str, first_port: int) -> Way:
    node, tunnel = network["node"], TUNNELS[name]
    ports = {target: first_port + at for at, target in enumerate(TARGETS, 1)}
    for target, port in ports.items():
        words = ("expose", f"tcp://127.0.0.1:{TARGETS[target]}", "--public", str(port), "--tunnel", tunnel)
        node.overlay(*words, "--quiet")
    site = ports["echo"] + 1
    words = ("expose", f"http://127.0.0.1:{TARGETS['web']}", "--public", str(site), "--tunnel", tunnel)
    node.overlay(*words, "--background", "--quiet")
    pid = network.server.daemon_pid()
    assert pid is not None
    return Way(name, user, node.namespace, *_ADDRESSES, ports=ports, site=site, server_pids=(pid,))


def _publish(publisher: Publisher, playing: Stage, user: Namespace, first_port: int) -> Way:
    made = publisher.publish(playing, first_port)
    return Way(made.name, user, playing.node, *_ADDRESSES, ports=made.ports, site=made.site, server_pids=made.pids)


@contextlib.contextmanager
def stage(bench: Bench, result: Result, publishers: Sequence[Publisher]) -> Iterator[list[Ends]]:
    """All of them up, each proven to work. Those that do not come up are left out."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "node", "user")}
        public = {"server": SERVER_ADDRESS, "node": NODE_ADDRESS, "user": USER_ADDRESS}
        network = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        user, node = spaces["user"], spaces["node"]
        for name in ("server", "node"):
            network.machine(spaces[name])
        user.set("net.ipv4.tcp_tw_reuse", 1)
        network.start_server()
        network.join("node")
        _start_nginx(lab, network["node"])
        echo = node.popen([*_ECHO, "answer", str(TARGETS["echo"])], stdout=subprocess.PIPE)
        assert echo.stdout is not None
        echo.stdout.readline()  # it listens
        playing = Stage(spaces["server"], node, SERVER_ADDRESS, NODE_ADDRESS, TARGETS)
        ways: list[Ends] = []
        comers: list[tuple[str, Callable[[int], Way]]] = [
            *((name, functools.partial(_expose, network, user, name)) for name in TUNNELS),
            *((each.name, functools.partial(_publish, each, playing, user)) for each in publishers),
        ]
        for at, (name, come) in enumerate(comers):
            bench.say(f"{result.suite}: {name} comes up")
            try:
                way = come(FIRST_PORT + at * PORTS_EACH)
                wait_for(lambda way=way: _echoes(user, way.ports["echo"]), "an echo")  # type: ignore[misc]
            except EXPECTED as error:
                result.fail(name, "did not come up", reason(error))
            else:
                ways.append(way)
        ways.append(Ends(BARE, spaces["server"], node, network.address("server"), network.address("node")))
        yield ways
        network.stop_all()


def _ways(joined: Sequence[Ends]) -> list[Way]:
    return [each for each in joined if isinstance(each, Way)]


def _wrk(way: Way, url: str, seconds: int, *options: str, users: int = AT_ONCE) -> tuple[float, float]:
    """→ requests per second; the latency, s, that 99 % did not exceed."""
    command = ["wrk", "--threads", "1", "--connections", str(users), "--duration", str(seconds), "--latency"]
    done = way.a.run([*command, *options, url], timeout=seconds + load.GRACE)
    return parse_wrk(done.stdout)


def parse_wrk(output: str) -> tuple[float, float]:
    """What `wrk --latency` printed. Raises `LoadFailed` if requests failed."""
    failed = re.search(r"Non-2xx.*|Socket errors: connect (?!0,).*|.*timeout (?!0\b)\d+", output)
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    high = re.search(r"99% +([\d.]+)(us|ms|s)\b", output)
    if failed or rate is None or high is None or not float(rate[1]):
        raise load.LoadFailed(f"wrk: {failed[0].strip() if failed else 'no result'}")
    return float(rate[1]), float(high[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[high[2]]


def _bulk(bench: Bench, result: Result, joined: Sequence[Ends]) -> None:
    def probe(ends: Ends) -> list[Sample]:
        port = ends.ports["bulk"] if isinstance(ends, Way) else load.IPERF_PORT
        return [(BULK, load.tcp(ends, bench.seconds, "-p", str(port)))]

    bench.ask(result, joined, ("1 stream", probe))
    speeds = result.samples.get(BULK, {})
    for quantity, name, other in (
        (SHARE_TCP, OURS, HAPROXY),
        (SHARE_TLS, TLS, HAPROXY),
        (SHARE_SINGLE, SINGLE, BARE),
    ):
        for at in speeds.get(name, {}).keys() & speeds.get(other, {}).keys():
            result.add(name, at, [(quantity, speeds[name][at] / speeds[other][at])])


def _connections(bench: Bench, result: Result, joined: Sequence[Ends]) -> None:
    def probe(ends: Ends) -> list[Sample]:
        assert isinstance(ends, Way)
        url = f"http://{SERVER_ADDRESS}:{ends.ports['web']}/"
        return [(CONNECTIONS, _wrk(ends, url, bench.seconds, "--header", "Connection: close")[0])]

    bench.ask(result, _ways(joined), ("new connections", probe))


def _requests(bench: Bench, result: Result, joined: Sequence[Ends]) -> None:
    def probe(ends: Ends) -> list[Sample]:
        assert isinstance(ends, Way)
        url, header = f"http://{SERVER_ADDRESS}:{ends.site}/", ("--header", f"Host: {HOST}")
        rate, _ = _wrk(ends, url, bench.seconds, *header)
        # Each asks again after a pause: the time that the answer takes is little beside that. It takes a while until
        # the first requests, which wait for connections to the target, are less than one of a hundred.
        script = ends.a.lab.directory / "delay.lua"
        script.write_text(_DELAY.format(mean=max(1, round(2000 * AT_HALF_ONCE / rate))))
        _, high = _wrk(ends, url, 2 * bench.seconds, *header, "--script", str(script), users=AT_HALF_ONCE)
        return [(REQUESTS, rate), (AT_HALF, high * 1e3)]

    bench.ask(result, [way for way in _ways(joined) if way.site is not None], ("requests", probe))


def _round_trips(bench: Bench, result: Result, joined: Sequence[Ends]) -> None:
    count = 20 if bench.quick else ECHOES

    def ask(way: Way, host: str, port: int) -> float:
        return float(way.a.run([*_ECHO, "ask", host, str(port), str(count)], timeout=load.GRACE).stdout) * 1e3

    def probe(ends: Ends) -> list[Sample]:
        assert isinstance(ends, Way)
        bare = ask(ends, NODE_ADDRESS, TARGETS["echo"])
        return [(ADDED, ask(ends, SERVER_ADDRESS, ends.ports["echo"]) - bare)]

    bench.ask(result, _ways(joined), ("round trips", probe))


def _memory(bench: Bench, result: Result, joined: Sequence[Ends]) -> None:
    """Of each server once, ours with its first tunnel alone: what a process has taken, it keeps for the next users."""
    count = USERS_QUICK if bench.quick else USERS
    for way in _ways(joined):
        if way.contender in (SINGLE, TLS):
            continue
        with contextlib.ExitStack() as stay:  # the one kind of users beside the other
            for quantity, port, site in ((MEMORY, way.ports["echo"], ()), (MEMORY_HTTP, way.site, (HOST,))):
                if port is None:
                    continue
                bench.say(f"{result.suite}: {count} users, {way.contender}")
                try:
                    before = resident_mb(way.server_pids)
                    stay.enter_context(_users(way, port, site, count))
                    result.add(way.contender, 0, [(quantity, (resident_mb(way.server_pids) - before) * 1e3 / count)])
                except EXPECTED as error:
                    result.fail(way.contender, f"{count} users at once", reason(error))


@contextlib.contextmanager
def _users(way: Way, port: int, site: Sequence[str], count: int) -> Iterator[None]:
    """So many who are there and say nothing."""
    helper = [sys.executable, "-m", "tests.lab.bench.users", SERVER_ADDRESS, str(port), str(count), *site]
    process = way.a.popen(helper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said.startswith(f"{count} "):
            raise load.LoadFailed(said.strip() or "no answer")
        yield
    finally:
        process.stdin.close()
        process.wait()


PARTS: Mapping[str, Callable[[Bench, Result, Sequence[Ends]], None]] = {
    "memory": _memory,
    "bulk": _bulk,
    "connections": _connections,
    "requests": _requests,
    "round-trips": _round_trips,
}


def run(bench: Bench) -> Result:
    result = Result("expose", TITLE, OURS)
    with stage(bench, result, bench.publishers) as joined:
        for part in PARTS.values():
            part(bench, result, joined)
    return result
