"""The carriers: one stream through the relay with all that the nodes send going to it by udp, tcp, tls, ws or wss.

Whole daemons, as people run them, in one network: a pair of nodes for each carrier, and one with the direct path, all
up at once and asked in turn. Then what a connected node that does nothing costs the server, and how fast new ones join.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from tests.lab.bench import load
from tests.lab.bench.contenders import Ends
from tests.lab.bench.machine import cpu_seconds, resident_mb
from tests.lab.bench.result import Quantity, Result
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.bench.suites.tcp import throughput
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_links import NO_UDP
from tests.lab.topology import SERVER_ADDRESS, Network, build_internet

TITLE = "Through the relay, by each carrier"
DIRECT, BARE = "direct udp", "bare tcp, forwarded by the server's machine"
CARRIERS = ("udp", "tcp", "tls", "ws", "wss")
SPEED = "1 stream"
SHARE = Quantity("1 stream, share of direct udp", "")
RTT = Quantity("round trip of a byte by TCP, median", "ms", more_is_better=False)
ADDED = Quantity("the same, above that of bare TCP", "ms", more_is_better=False)
MEMORY = Quantity("the server's memory per idle node", "KB", more_is_better=False)
JOINED = Quantity("new nodes taken in", "1/s")
JOIN_CPU = Quantity("the server's CPU per new node", "ms", more_is_better=False)
ECHO_PORT, FORWARD_PORT = 5202, 5203
ECHOES = 300
RETURNED = Quantity("registered nodes back after a restart", "1/s")
DIALLED = Quantity("connections that each took to come back", "", more_is_better=False)
NODES, NODES_QUICK = 5000, 20
SETTLE = 8.0  # s until what a crowd was told is dealt with
_HELPER = (sys.executable, "-m", "tests.lab.bench.echo")


def _join(network: Network, carrier: str) -> tuple[str, str]:
    """Two nodes that reach each other by the relay alone, and that by `carrier` alone. "": no limits to them."""
    names = (f"{carrier or 'direct'}-a", f"{carrier or 'direct'}-b")
    for name, other in zip(names, reversed(names), strict=True):
        space = network[name].namespace
        if carrier:
            space.block(f"ip saddr {_outside(other)}")  # or they would have a direct path, by TCP where UDP is shut
        if carrier not in ("", "udp"):
            space.rules(NO_UDP)
    for name in names:
        network[name].overlay(
            *("up", "-", "--name", name, "--quiet", "--carrier", carrier or "udp"), given=network.invite()
        )
    address = network.address(names[1])
    machine = network[names[0]]
    wait_for(lambda: machine.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0, "a ping", 20)
    kinds = ("relay",) if carrier else ("udp", "lan")
    for one, other in (names, names[::-1]):
        wait_for(lambda one=one, other=other: network[one].path_kind(other) in kinds, f"the path is {kinds}", 20)  # type: ignore[misc]
    return names


def _outside(name: str) -> str:
    carrier, _, end = name.partition("-")
    return f"198.51.100.{20 + 2 * ('direct', *CARRIERS).index(carrier) + (end == 'b')}"


@contextlib.contextmanager
def pairs(bench: Bench, result: Result) -> Iterator[list[Ends]]:
    """A server, and for each carrier two nodes."""
    with Lab() as lab:
        names = [f"{kind}-{end}" for kind in ("direct", *CARRIERS) for end in "ab"]
        server, *spaces = [lab.namespace(name) for name in ("server", *names)]
        public = [(server, SERVER_ADDRESS), *((space, _outside(space.short_name)) for space in spaces)]
        network = Network(lab, build_internet(lab, public))
        for space in (server, *spaces):
            network.machine(space)
        network.start_server()
        server_pid = network.server.daemon_pid()
        assert server_pid is not None
        ready: list[Ends] = []
        for carrier in ("", *CARRIERS):
            name = carrier or DIRECT
            bench.say(f"{result.suite}: {name} comes up")
            try:
                one, other = _join(network, carrier)
                pids = [network[each].daemon_pid() for each in (one, other)]
                assert all(pids)
            except EXPECTED as error:
                result.fail(name, "did not come up", reason(error))
                continue
            a, b = network[one], network[other]
            processes = [pid for pid in pids if pid is not None]
            ready.append(
                Ends(
                    name,
                    *(a.namespace, b.namespace),
                    *(network.address(one), network.address(other)),
                    processes_a=processes[:1],
                    processes_b=[*processes[1:], server_pid],
                )
            )
        yield ready


def _round_trip(ends: Ends, address: str, port: int, count: int) -> float:
    """Median, ms."""
    done = ends.a.run([*_HELPER, "ask", address, str(port), str(count)], timeout=load.GRACE)
    return float(done.stdout) * 1e3


@contextlib.contextmanager
def _echo(joined: list[Ends], server_space: str) -> Iterator[None]:
    """Who answers on every b, and who passes bytes on to the first of them on the server's machine."""
    with contextlib.ExitStack() as stack:
        spaces = [ends.b.argv([*_HELPER, "answer", str(ECHO_PORT)]) for ends in joined]
        machine = joined[0].b.lab
        forward = [*_HELPER, "forward", str(FORWARD_PORT), _outside(joined[0].b.short_name), str(ECHO_PORT)]
        spaces.append(["ip", "netns", "exec", f"{machine.prefix}-{server_space}", *forward])
        for command in spaces:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            process.stdout.readline()  # it listens
        yield


def _ask_round_trips(bench: Bench, result: Result, joined: list[Ends]) -> None:
    count = 20 if bench.quick else ECHOES
    with _echo(joined, "server"):
        for at in range(bench.rounds):
            bench.say(f"{result.suite}: round trips, round {at + 1} of {bench.rounds}")
            try:
                bare = _round_trip(joined[0], SERVER_ADDRESS, FORWARD_PORT, count)
                result.add(BARE, at, [(RTT, bare)])
            except EXPECTED as error:
                result.fail(BARE, RTT.name, reason(error))
                continue
            for ends in [*joined[at % len(joined) :], *joined[: at % len(joined)]]:
                try:
                    taken = _round_trip(ends, ends.address_b, ECHO_PORT, count)
                except EXPECTED as error:
                    result.fail(ends.contender, RTT.name, reason(error))
                else:
                    result.add(ends.contender, at, [(RTT, taken), (ADDED, taken - bare)])


def _add_shares(result: Result) -> None:
    speed = next((quantity for quantity in result.samples if quantity.name == SPEED), None)
    direct = result.samples[speed].get(DIRECT, {}) if speed else {}
    for name in CARRIERS:
        for at, value in (result.samples[speed].get(name, {}) if speed else {}).items():
            if direct.get(at):
                result.add(name, at, [(SHARE, value / direct[at])])


class _Crowd:
    """The nodes of `tests.lab.bench.joiners`, in a process of their own."""

    def __init__(self, space: Namespace, invite: str, count: int, settle: float) -> None:
        helper = [sys.executable, "-m", "tests.lab.bench.joiners"]
        command = [*helper, "--count", str(count), "--settle", str(settle)]
        self._process = space.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say(invite)

    def ask(self, command: str) -> dict[str, float]:
        self.tell(command)
        return self.answer()

    def tell(self, command: str) -> None:
        self._say(command)

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        said: dict[str, float] = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in said:
            raise load.LoadFailed(said["error"])
        return said

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def join_crowd(bench: Bench, result: Result, count: int, at: int = 0) -> None:
    """`count` new nodes join a fresh server by tcp, stay, and come back when it was started anew."""
    name = f"{count} nodes by tcp"
    bench.say(f"{result.suite}: {name}")
    with Lab() as lab, contextlib.ExitStack() as stack:
        server, space = lab.namespace("server"), lab.namespace("crowd")
        network = Network(lab, lab.namespace("nowhere"))
        network.machine(server)
        lab.link(server, f"{SERVER_ADDRESS}/24", space, "198.51.100.2/24")
        server.route("198.18.0.0/15", "198.51.100.2")
        space.run(["ip", "route", "add", "local", "198.18.0.0/15", "dev", "lo"])
        try:
            network.start_server()
            crowd = _Crowd(space, network.invite("--uses", str(count)), count, 0.5 if bench.quick else SETTLE)
            stack.callback(crowd.end)
            pid = network.server.daemon_pid()
            assert pid is not None
            before, used = resident_mb([pid]), cpu_seconds([pid])
            joined = crowd.ask("join")["seconds"]
            spent = cpu_seconds([pid]) - used
            here = crowd.ask("settle")["connected"]
            assert here == count, here
            memory = resident_mb([pid]) - before
            result.add(
                name,
                at,
                [(MEMORY, memory * 1e3 / count), (JOINED, count / joined), (JOIN_CPU, spent * 1e3 / count)],
            )
            crowd.tell("return")
            network.server.overlay("down", "--quiet")
            network.start_server()
            back = crowd.answer()
            here = crowd.ask("settle")["connected"]
            assert here == count, here
            result.add(name, at, [(RETURNED, count / back["seconds"]), (DIALLED, back["dialled"] / count)])
        except EXPECTED as error:
            result.fail(name, "joining", reason(error))


def run(bench: Bench) -> Result:
    result = Result("carrier", TITLE, DIRECT)
    with pairs(bench, result) as joined:
        bench.ask(result, joined, throughput(SPEED, bench.seconds))
        _add_shares(result)
        if joined:
            _ask_round_trips(bench, result, joined)
    for at in range(bench.rounds):
        join_crowd(bench, result, bench.nodes or (NODES_QUICK if bench.quick else NODES), at)
    return result
