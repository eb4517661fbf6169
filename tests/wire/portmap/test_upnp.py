"""SSDP, HTTP and SOAP with a router: what is believed, and what is not."""

from ipaddress import IPv4Address

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap import igd, ssdp
from overlay.wire.portmap.http import MAX_BODY_SIZE, Call
from overlay.wire.portmap.igd import ActionRefused, Service
from overlay.wire.portmap.ssdp import Location

WHERE = Location(5000, "/igd/root.xml")
V1, V2 = ("urn:schemas-upnp-org:service:WANIPConnection:1", "urn:schemas-upnp-org:service:WANIPConnection:2")
OWN = IPv4Address("192.168.1.2")


def answer(location: str, target: str = ssdp.TARGETS[0]) -> bytes:
    return f"HTTP/1.1 200 OK\r\nCache-Control: max-age=120\r\nst: {target}\r\nLocation: {location}\r\n\r\n".encode()


def description(*services: tuple[str, str]) -> bytes:
    inside = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>" for kind, url in services
    )
    return f'<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><x>{inside}</x></root>'.encode()


def soap(inside: str) -> bytes:
    return f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{inside}</s:Body></s:Envelope>'.encode()


def fault(code: str) -> bytes:
    error = f"<UPnPError><errorCode>{code}</errorCode><errorDescription>Why\x85 not</errorDescription></UPnPError>"
    return soap(f"<s:Fault><detail>{error}</detail></s:Fault>")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://192.168.1.1:5000/root.xml", Location(5000, "/root.xml")),
        ("http://192.168.1.1", Location(80, "/")),
        ("http://203.0.113.9:81/", Location(81, "/")),  # its host is not gone to
    ],
)
def test_a_location_is_a_port_and_a_path_of_the_gateway(url: str, expected: Location) -> None:
    assert ssdp.parse_answer(answer(url)) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (answer("https://192.168.1.1/"), "ssdp_bad_location"),
        (answer("http://192.168.1.1:99999/"), "ssdp_bad_location"),
        (answer("http://192.168.1.1/a b"), "ssdp_bad_location"),
        (answer("http://192.168.1.1/", "urn:schemas-upnp-org:device:MediaServer:1"), "ssdp_other_device"),
        (b"NOTIFY * HTTP/1.1\r\n\r\n", "ssdp_bad_answer"),
        (bytes(ssdp.MAX_ANSWER_SIZE + 1), "ssdp_bad_size"),
    ],
)
def test_other_answers_to_a_search(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        ssdp.parse_answer(data)
    assert caught.value.reason == reason


def test_a_description_gives_the_best_service_first() -> None:
    body = description((V1, "ctl/1"), ("urn:other", "/x"), (V2, "http://10.0.0.1:6000/two"), (V2, "ftp://10.0.0.1/"))
    assert igd.parse_description(body, WHERE) == (
        Service(V2, Location(6000, "/two")),
        Service(V1, Location(5000, "/igd/ctl/1")),
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<root>", "upnp_bad_xml"),
        (b'<!DOCTYPE root [<!ENTITY a "b">]><root>&a;</root>', "upnp_bad_xml"),
        (b'<!DOCTYPE root SYSTEM "http://192.168.1.1/dtd"><root/>', "upnp_bad_xml"),
        (b'<?xml version="1.0" encoding="nonsense"?><root/>', "upnp_bad_xml"),
        (b"<root/>", "upnp_no_service"),
    ],
)
def test_other_descriptions(body: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        igd.parse_description(body, WHERE)
    assert caught.value.reason == reason


def test_an_action_and_its_result() -> None:
    headers, body = igd.action(Service(V2, WHERE), "AddAnyPortMapping", igd.mapping("udp", 41641, OWN, 41641, 7200))
    assert ("SOAPAction", f'"{V2}#AddAnyPortMapping"') in headers
    for part in ("<NewProtocol>UDP<", "<NewInternalClient>192.168.1.2<", "<NewLeaseDuration>7200<"):
        assert part.encode() in body
    given = soap(
        f'<u:AddAnyPortMappingResponse xmlns:u="{V2}">'
        "<NewReservedPort>5000</NewReservedPort></u:AddAnyPortMappingResponse>"
    )
    assert igd.reserved_port(igd.parse_result(200, given, "AddAnyPortMapping")) == 5000


def test_a_refusal_has_its_code_and_no_control_characters() -> None:
    with pytest.raises(ActionRefused) as caught:
        igd.parse_result(500, fault("725"), "AddPortMapping")
    assert caught.value.code == igd.ONLY_PERMANENT_LEASES and str(caught.value) == "Why not (725)"
    with pytest.raises(ActionRefused) as caught:
        igd.parse_result(500, fault("minus one"), "AddPortMapping")
    assert caught.value.code == 0


@pytest.mark.parametrize("port", ["0", "80", "1023", "65536", "", "-5", "5000 "])
def test_ports_that_are_not_believed(port: str) -> None:
    with pytest.raises(RemoteProtocolError):
        igd.reserved_port({"NewReservedPort": port})


@pytest.mark.parametrize("address", ["", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::1", "router"])
def test_addresses_that_are_not_believed(address: str) -> None:
    with pytest.raises(RemoteProtocolError):
        igd.external_address({"NewExternalIPAddress": address})


def test_a_call_by_bits() -> None:
    call = Call("POST", "192.168.1.1", 5000, "/ctl", [("SOAPAction", "x")], b"body")
    assert call.request.startswith(b"POST /ctl HTTP/1.1\r\n") and call.request.endswith(b"\r\n\r\nbody")
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert [call.receive(whole[i : i + 1]) for i in range(len(whole))] == [False] * (len(whole) - 1) + [True]
    assert (call.status, call.body) == (200, b"hello")
    call = Call("GET", "192.168.1.1", 5000, "/")
    assert not call.receive(b"HTTP/1.0 200 OK\r\n\r\nhello") and call.receive(b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nonsense\r\n\r\n", "http_bad_answer"),
        (b"", "http_bad_answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BODY_SIZE + 1), "http_too_long"),
    ],
)
def test_other_answers_to_a_call(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Call("GET", "192.168.1.1", 80, "/").receive(data)
    assert caught.value.reason == reason
