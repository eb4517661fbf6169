"""What nodes may say of exposures, and what the zone has of it."""

from pathlib import Path

import anyio
import pytest

from overlay.errors import UserError
from overlay.server.exposure_names import Said, check_said, exposure_records
from overlay.server.schema import ExposureRecord
from overlay.wire.control.messages import Expose, Exposed, MapRecord, NetworkMap, Unexpose
from tests.server.running import running

NODES = {1: ("server", "10.77.0.1"), 2: ("a", "10.77.0.2"), 3: ("b", "10.77.0.3")}


def said(*, direct: bool = True, id: str = "", known_as: tuple[str, ...] = (), service: str = "") -> Said:
    """What the server, known as vpn.example.org, takes; app.example.org and its like lead to it."""

    async def leads_here(host: str) -> bool:
        return host.endswith("app.example.org")

    request = Expose(
        seq=1,
        protocol="tcp",
        target="tcp://127.0.0.1:1",
        port=1,
        id=id,
        known_as=known_as,
        service=service,
        direct=True,
    )

    async def main() -> Said:
        return await check_said(request, leads_here, ("vpn.example.org",), ("local.test",), direct=direct)

    return anyio.run(main)


def exposure(number: int, node: int, *, host: str = "", port: int = 9000, protocol: str = "tcp") -> ExposureRecord:
    return ExposureRecord(
        id=number, node=node, protocol=protocol, host=host, public_port=port, target="t", port=4000, created=1.0
    )


def records(*exposures: tuple[ExposureRecord, Said], made: tuple[MapRecord, ...] = ()) -> list[str]:
    found = exposure_records(
        exposures,
        domains=("local.test",),
        nodes=NODES,
        public=lambda record: f"203.0.113.1:{record.public_port}",
        made=made,
    )
    return [f"{each.name} {each.rtype} {each.value} of {each.node}" for each in found]


def test_what_is_taken() -> None:
    assert said(known_as=("App.Example.org.", "app.example.org", "Bücher.app.example.org"), service="ssh") == Said(
        ("app.example.org", "xn--bcher-kva.app.example.org"), "ssh", True
    )
    assert said(direct=False, known_as=("app.example.org",)).direct is False  # the server's policy
    assert said(id="x1", known_as=("app.example.org", "other.example.org", "vpn.example.org")).known_as == (
        "app.example.org",
    )


@pytest.mark.parametrize(
    ("host", "service", "code"),
    [
        ("vpn.example.org", "", "host-is-server"),
        ("other.example.org", "", "host-not-here"),
        ("b.local.test", "", "host-in-domain"),
        ("local.test", "", "host-in-domain"),
        ("app", "", "host-invalid"),
        ("192.0.2.1", "", "host-invalid"),
        ("_x.app.example.org", "", "host-invalid"),
        ("*.app.example.org", "", "host-invalid"),
        ("-.app.example.org", "", "host-invalid"),
        ("xn--a.app.example.org", "", "host-invalid"),
        ("a" * 64 + ".app.example.org", "", "host-invalid"),
        ("a." * 150 + "app.example.org", "", "host-invalid"),
        ("app.example.org", "_ssh", "service-invalid"),
        ("app.example.org", "22", "service-invalid"),
        ("app.example.org", "a" * 16, "service-invalid"),
    ],
)
def test_what_is_not(host: str, service: str, code: str) -> None:
    with pytest.raises(UserError) as caught:
        said(known_as=(host,), service=service)
    assert caught.value.code == code


def test_a_service_is_where_peers_reach_it() -> None:
    assert records((exposure(1, 3, port=2222), Said(service="ssh"))) == [
        "_ssh._tcp.b.local.test SRV 0 0 2222 server.local.test of 3",
        "_ssh._tcp.b.local.test TXT public=203.0.113.1:2222 of 3",
    ]
    direct = Said(("app.example.org",), "ssh", True)
    assert "_ssh._tcp.b.local.test SRV 0 0 2222 b.local.test of 3" in records((exposure(1, 3, port=2222), direct))
    at_one_address = exposure(1, 3, host="203.0.113.7", protocol="udp")  # not at the server's overlay address
    assert records((at_one_address, Said(service="ntp"))) == ["_ntp._udp.b.local.test TXT public=203.0.113.1:9000 of 3"]


def test_a_public_name_leads_to_the_node_where_all_of_it_is_there() -> None:
    web = Said(("app.example.org",), "", True)
    there = ["app.example.org A 10.77.0.3 of 3"]
    assert records((exposure(1, 3), web)) == there
    assert records((exposure(1, 3), web), (exposure(2, 3, port=9001), web)) == there
    public = Said(("app.example.org",), "", False)
    assert records((exposure(1, 3), web), (exposure(2, 3, port=9001), public)) == []
    assert records((exposure(1, 3), web), (exposure(2, 2, port=9001), web)) == []  # a name says nothing of ports
    assert records((exposure(1, 9), web)) == []  # the node is gone


def test_what_people_have_put_there_counts() -> None:
    own = MapRecord(name="_ssh._tcp.b.local.test", rtype="SRV", value="0 0 22 b.local.test", node=3)
    assert records((exposure(1, 3), Said(service="ssh")), made=(own,)) == [
        "_ssh._tcp.b.local.test TXT public=203.0.113.1:9000 of 3"
    ]


def test_the_map_has_what_a_node_says_while_its_exposure_is_there(tmp_path: Path) -> None:
    def services(network_map: NetworkMap) -> list[str]:
        return [record.name for record in network_map.records if record.rtype == "SRV"]

    async def main() -> None:
        async with running(tmp_path) as server:
            a = await server.node().connect(await server.invite(), name="a", name_chosen=True)
            request = Expose(seq=1, protocol="tcp", target="tcp://127.0.0.1:22", port=4000, service="ssh")
            await a.connection.send(request)
            exposure = (await a.receive(Exposed)).exposure
            assert exposure.service == "ssh"
            await a.sees(lambda network_map: services(network_map) == ["_ssh._tcp.a.local.test"])
            await server.request("PATCH", "/v1/nodes/a", {"name": "c"})
            await a.sees(lambda network_map: services(network_map) == ["_ssh._tcp.c.local.test"])
            await a.connection.send(Unexpose(seq=2, id=exposure.id))
            await a.sees(lambda network_map: services(network_map) == [])

    anyio.run(main)
