"""Records that people put into the zone: added on one machine, resolved on another within a second, gone after `rm`."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from overlay.errors import Exit
from tests.lab.netns import Lab, wait_for
from tests.lab.test_node_daemon import Host

pytestmark = pytest.mark.lab


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host, Host]]:
    """A server and two nodes a and b on one switch."""
    with Lab() as lab:
        switch = lab.namespace("switch")
        machines = [lab.namespace(name) for name in ("server", "a", "b")]
        lab.bridge(switch, [], [(each, f"203.0.113.{number}/24") for number, each in enumerate(machines, 1)])
        server, a, b = (Host(each, lab.directory / each.name) for each in machines)
        server.done("server", "--json")
        try:
            for host, name in ((a, "a"), (b, "b")):
                host.namespace.resolv_conf.write_text("nameserver 192.0.2.53\n")
                host.done("up", server.done("invite").strip(), "--name", name)
            yield server, a, b
        finally:
            for host in (b, a, server):
                host.overlay("down")


def within_a_second(seen: Callable[[], bool], what: str) -> None:
    """Asks until it is so; the last question may have begun when the second was not over."""
    started = time.monotonic()
    asked = 0.0

    def look() -> bool:
        nonlocal asked
        asked = time.monotonic()
        return seen()

    wait_for(look, what)
    assert asked - started < 1.0, what


def test_added_on_one_found_on_another_gone_after_rm(hosts: tuple[Host, Host, Host]) -> None:
    server, a, b = hosts

    def dig(*question: str) -> list[str]:
        found: str = b.namespace.run(["dig", "+short", *question]).stdout
        return found.splitlines()

    assert a.done("dns", "add", "api", "A", "192.0.2.7") == "api.local.test  A  192.0.2.7\n"
    within_a_second(lambda: dig("api.local.test") == ["192.0.2.7"], "dig finds it on b")
    assert b.namespace.run(["getent", "ahostsv4", "api.local.test"]).stdout.split()[0] == "192.0.2.7"
    a.done("dns", "add", "www", "CNAME", "api")
    within_a_second(lambda: dig("www.local.test") == ["api.local.test.", "192.0.2.7"], "an alias leads to it")
    a.done("dns", "add", "_ssh._tcp.a", "SRV", "0 5 22 a")
    within_a_second(lambda: dig("_ssh._tcp.a.local.test", "SRV") == ["0 5 22 a.local.test."], "a service is found")
    assert dig("any.a.local.test") == dig("a.local.test") != []
    code, _, errors = b.overlay("dns", "rm", "api")
    assert code == Exit.REFUSED and "those of node 'a'" in errors
    a.done("dns", "rm", "api")
    within_a_second(lambda: dig("api.local.test") == [], "it is gone")
    assert "NXDOMAIN" in b.namespace.run(["dig", "api.local.test"]).stdout
    assert "www.local.test" in b.done("dns", "ls")
    server.done("dns", "rm", "www")
    within_a_second(lambda: dig("www.local.test") == [], "the server's host may remove anybody's")


def test_query_and_status_say_where_answers_come_from(hosts: tuple[Host, Host, Host]) -> None:
    _, a, _ = hosts
    answer = json.loads(a.done("dns", "query", "b", "--json"))
    assert (answer["source"], answer["zone"], answer["rcode"]) == ("zone", "local.test", "NOERROR")
    assert answer["answers"][0].startswith("b.local.test. 5 IN A ")
    assert "NXDOMAIN from the network's zone local.test" in a.done("dns", "query", "nobody")
    status = json.loads(a.done("dns", "status", "--json"))
    assert "local.test" in status["zones"] and status["way"] == "file" and status["endpoint"].endswith(":53")
    assert status["upstreams"] == ["192.0.2.53"] and "192.0.2.53" in a.done("dns", "status")
    code, _, errors = a.overlay("dns", "query", "b", "NOTHING")
    assert code == Exit.USAGE and "no type of record" in errors
