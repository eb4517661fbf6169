"""Names of exposures from inside: the public name leads straight to the node where it can, and the service is found."""

from collections.abc import Iterator

import pytest

from overlay.errors import Exit
from tests.lab.netns import Lab, wait_for
from tests.lab.topology import SERVER_ADDRESS, Network, one_lan, start_dns, start_web

pytestmark = pytest.mark.lab

NAME = "app.example.org"
PUBLIC_DNS = "198.51.100.54"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server and two nodes a and b that are up, and a public DNS where the name leads to the server."""
    with Lab() as lab:
        network = one_lan(lab)
        network.internet.address("br0", f"{PUBLIC_DNS}/24")
        start_dns(network.internet, PUBLIC_DNS, 53, NAME, SERVER_ADDRESS)
        for machine in network.machines.values():
            machine.namespace.resolv_conf.write_text(f"nameserver {PUBLIC_DNS}\n")
        network.start_server("--domain", "local.test", "--domain", "corp.example")
        network.join("a", "b")
        try:
            yield network
        finally:
            network.stop_all()


def test_a_public_name_leads_straight_to_the_node(network: Network) -> None:
    a, b, server = network["a"], network["b"], network.server
    folder = network.lab.directory / "www"
    folder.mkdir()
    (folder / "index.html").write_text("hello\n")
    web = start_web(b.namespace, folder, 8080)

    def dig(*question: str) -> list[str]:
        return a.run("dig", "+short", *question).stdout.split()

    refused = b.overlay("expose", "8080", "--public", "9001", "--known-as", "other.example.net", check=False)
    assert refused.returncode == Exit.REFUSED and "does not lead other.example.net to this server" in refused.stderr
    assert dig(NAME) == [SERVER_ADDRESS]
    exposure = b.overlay_json("expose", "8080", "--public", "9000", "--known-as", NAME, "--service", "http")
    assert exposure["direct"] and exposure["known_as"] == [NAME]
    wait_for(lambda: dig(NAME) == [network.address("b")], "the name leads to b")
    assert dig(NAME, "AAAA") == [] and a.run("getent", "ahostsv4", NAME).stdout.split()[0] == network.address("b")
    assert "an exposure" in a.overlay("dns", "query", NAME).stdout
    assert dig("_http._tcp.b.local.test", "SRV") == ["0", "0", "9000", "b.local.test."]
    for name in ("b.corp.example", "x.b.corp.example", "b"):  # the other domain, and by the search list
        assert a.run("getent", "ahostsv4", name).stdout.split()[0] == network.address("b")
    assert dig("_http._tcp.b.corp.example", "SRV") == ["0", "0", "9000", "b.corp.example."]
    assert dig("_http._tcp.b.local.test", "TXT") == [f'"public={SERVER_ADDRESS}:9000"']
    page = a.run("curl", "-s", "-w", "%{remote_ip}", f"http://{NAME}:9000/").stdout
    assert page.split() == ["hello", network.address("b")]  # by the virtual name, past the server
    assert server.run("curl", "-s", f"http://{SERVER_ADDRESS}:9000/").stdout == "hello\n"  # users go on as before
    b.overlay("expose", "rm", exposure["id"])
    wait_for(lambda: dig(NAME) == [SERVER_ADDRESS], "the name is public again")
    own = b.overlay_json("expose", "8080", "--public", "8080", "--known-as", NAME)
    assert own["direct"]  # the service itself listens there
    wait_for(lambda: dig(NAME) == [network.address("b")], "the name leads to b again")
    web.terminate()
    web.wait()
    wait_for(lambda: dig(NAME) == [SERVER_ADDRESS], "what nobody serves at the node stays public", 15)


def test_strangers_on_the_lan_hear_nothing(network: Network) -> None:
    b, stranger = network["b"], network.internet
    address = network.address("b")
    stranger.route(f"{address}/32", "198.51.100.22")  # b's own address: its kernel takes the packets as for itself
    try:
        for way in ("+notcp", "+tcp"):
            asked = stranger.run(["dig", f"@{address}", way, "+tries=1", "+time=1", "b.local.test"], check=False)
            assert "status:" not in asked.stdout
    finally:
        stranger.run(["ip", "route", "del", f"{address}/32"])
    assert b.overlay_json("dns", "status")["drops"]["stranger"] >= 2
