"""Who may use what is exposed, and how much, with real programs: curl and nginx, a changing policy, an end in time."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.lab.conftest import tracked
from tests.lab.netns import Lab, wait_for
from tests.lab.test_expose import NAME, PORT, curl, start_nginx, status_of
from tests.lab.topology import SERVER_ADDRESS, Machine, Network, build_internet

pytestmark = pytest.mark.lab

USER = "198.51.100.90"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, a node with nginx on it, and a user without anything of ours."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "a", "user")}
        public = {"server": SERVER_ADDRESS, "a": "198.51.100.21", "user": USER}
        made = Network(lab, build_internet(lab, [(spaces[name], address) for name, address in public.items()]))
        for name in ("server", "a"):
            made.machine(spaces[name])
        with tracked(made):
            made.start_server("--listen", "0.0.0.0:443", "--listen", "0.0.0.0:80")
            made.join("a")
            start_nginx(lab, spaces["a"])
            wait_for(lambda: made["a"].run("curl", "-s", f"127.0.0.1:{PORT}/", check=False).stdout, "nginx answers")
            yield made
            made.stop_all()


def site(network: Network, *options: str) -> dict[str, object]:
    exposed: dict[str, object] = network["a"].overlay_json("expose", str(PORT), "--host", NAME, *options)
    return exposed


def status_now(network: Network) -> str:
    """Of the site; "000" where the answer is cut off, since it ends just then."""
    resolve = f"{NAME}:80:{SERVER_ADDRESS}"
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", resolve, f"http://{NAME}/"]
    return str(network.lab.namespaces["user"].run(command, check=False).stdout)


def test_passwords_tokens_and_a_link_with_curl(network: Network) -> None:
    exposed = site(network, "--users", "new", "--bearer", "new", "--secret-link")
    secrets = exposed["secrets"]
    assert isinstance(secrets, dict) and exposed["url"] == secrets["link"]
    user = f"{secrets['user']}:{secrets['password']}"
    where = f"https://{NAME}/who"
    assert status_of(network, where) == status_of(network, "-u", f"{secrets['user']}:wrong", where) == "401"
    seen = curl(network, "--http1.1", "-v", "--stderr", "-", "-u", user, where, where)
    assert seen.count("HTTP/1.1 200 OK") == 2 and f"{USER} https {NAME}" in seen
    assert curl(network, "-H", f"Authorization: Bearer {secrets['bearer']}", where).startswith(USER)
    jar = str(network.lab.directory / "jar")
    assert curl(network, "-L", "-c", jar, "-b", jar, str(secrets["link"])) == "home\n"
    assert curl(network, "-b", jar, where).startswith(USER)
    a = network["a"]
    kept = (a.state / "exposures.json").read_text() + json.dumps(a.overlay_json("expose", "ls"))
    assert not any(str(secret) in kept for name, secret in secrets.items() if name != "user")
    a.overlay("expose", "rm", str(exposed["id"]))


def test_networks_heads_and_the_end_in_time(network: Network) -> None:
    a = network["a"]
    denied = site(network, "--deny", f"{USER}/32")
    assert status_of(network, f"http://{NAME}/") == "403"
    a.overlay("expose", "rm", str(denied["id"]))
    began = time.monotonic()
    exposed = site(
        network, "--allow", USER, "--host-header", "inner.test", "--response-header", "X-By: us", "--expires", "3s"
    )
    answer = curl(network, "-i", f"http://{NAME}/who")
    assert answer.endswith(f"{USER} http inner.test HTTP/1.1\n") and "X-By: us" in answer
    wait_for(lambda: status_now(network) == "404", "it ends")
    assert time.monotonic() - began >= 2.9
    wait_for(lambda: not a.overlay_json("expose", "ls")["exposures"], "the node has it no more")
    assert f"exposure {exposed['id']} at {NAME} is gone" in (a.state / "overlay.log").read_text()


@pytest.mark.parametrize("tunnel", ["single", "tcp"])
def test_a_bandwidth_holds_for_tcp_by_every_tunnel(network: Network, tunnel: str) -> None:
    a = network["a"]
    port = a.overlay_json(
        "expose", f"tcp://127.0.0.1:{PORT}", "--public", "9000", "--tunnel", tunnel, "--bandwidth", "80Mbit"
    )
    took = float(
        curl(
            network, "-r", "0-9999999", "-o", "/dev/null", "-w", "%{time_total}", f"http://{SERVER_ADDRESS}:9000/large"
        )
    )
    assert took >= 0.8  # 10 MB in a second, less what may go at once and lies between
    a.overlay("expose", "rm", port["id"])


def test_a_policy_that_changes_takes_a_lease_away(network: Network) -> None:
    a, server = network["a"], network["server"]
    policy = server.state / "policy.toml"
    exposed = site(network)
    assert status_of(network, f"http://{NAME}/") == "200"
    policy.write_text("[[rule]]\nnodes = ['a']\nhosts = ['*.shop.test']\nports = ['9000-9099']\n")
    wait_for(lambda: status_now(network) == "404", "the policy counts")
    log = a.state / "overlay.log"
    wait_for(
        lambda: (
            f"exposure {exposed['id']} at {NAME} is gone: the server has ended it, as the server's policy"
            in log.read_text()
        ),
        "the node hears why",
    )
    refused = a.overlay("expose", str(PORT), "--host", NAME, check=False)
    assert refused.returncode == 4 and f"does not let node 'a' have the name {NAME}" in refused.stderr
    refused = a.overlay("expose", "tcp://127.0.0.1:22", "--public", "22", check=False)
    assert refused.returncode == 4 and "It may have: 9000-9099." in refused.stderr
    assert server.overlay_json("status")["drops"]["policy_forbids"] == 2
    policy.unlink()
    wait_for(lambda: allowed(a), "the policy is gone")


def allowed(machine: Machine) -> bool:
    done = machine.overlay("expose", str(PORT), "--host", NAME, check=False)
    return done.returncode == 0
