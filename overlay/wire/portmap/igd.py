"""UPnP's Internet Gateway Device: its description, and the SOAP actions that map a port.

    WANIPConnection:1, :2 and WANPPPConnection:1 (the services' specifications of the UPnP Forum). Version 2 has
    AddAnyPortMapping (§2.5.21), which finds a free port itself; with AddPortMapping the caller looks for one.

Sans-I/O. XML is read by defusedxml: entities and document types are refused, whatever a router sends.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, Literal
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap.ssdp import Location

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Arguments = Sequence[tuple[str, str]]

LOWEST_PORT: Final = 1024
"""External ports below are the router's own, or what everybody scans; none is asked for, and none is believed."""
INVALID_ARGS: Final = 402
NO_SUCH_ENTRY: Final = 714
CONFLICT: Final = 718
ONLY_PERMANENT_LEASES: Final = 725
"""Errors of WANIPConnection:2 §2.5.16–21 that something can be done about."""

_SERVICES: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
_LONGEST_TEXT: Final = 512  # characters of a value that counts; an error's words are cut there
_URL: Final = re.compile(r"(?:http://[^/:\s]+(?::([0-9]{1,5}))?)?((?![a-z]+:)/?[!-~]*)")
_DESCRIPTION: Final = "overlay"


@dataclass(frozen=True, slots=True)
class Service:
    """A connection to the internet that the router has, and where it is commanded. Best first, see `_SERVICES`."""

    type: str
    control: Location

    @property
    def finds_ports(self) -> bool:
        """It knows AddAnyPortMapping."""
        return self.type == _SERVICES[0]


class ActionRefused(Exception):
    """The router says no to an action. `code`: of UPnP; 0: it does not say."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description or 'no reason given'} ({code})")
        self.code = code


def parse_description(body: bytes, location: Location) -> tuple[Service, ...]:
    """The services of a device's description, which came from `location`. Raises `RemoteProtocolError`: upnp_bad_xml,
    upnp_no_service."""
    found: list[Service] = []
    for element in _parse(body).iter():
        if _name(element) == "service":
            texts = {_name(child): (child.text or "").strip() for child in element}
            control = _control(texts.get("controlURL", ""), location)
            if texts.get("serviceType") in _SERVICES and control is not None:
                found.append(Service(texts["serviceType"], control))
    if not found:
        raise RemoteProtocolError("upnp_no_service")
    return tuple(sorted(found, key=lambda service: _SERVICES.index(service.type)))


def action(service: Service, name: str, arguments: Arguments = ()) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of the POST that has `service` do something."""
    inside = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in arguments)
    body = (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{name} xmlns:u="{service.type}">{inside}</u:{name}></s:Body></s:Envelope>\r\n'
    )
    return [("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", f'"{service.type}#{name}"')], body.encode()


def parse_result(status: int, body: bytes, name: str) -> dict[str, str]:
    """What an action gave. Raises `ActionRefused`; `RemoteProtocolError`: upnp_bad_xml, upnp_bad_result."""
    texts: dict[str, str] | None = None
    fault: dict[str, str] = {}
    for element in _parse(body).iter():
        if _name(element) == f"{name}Response":
            texts = {_name(child): (child.text or "").strip()[:_LONGEST_TEXT] for child in element}
        elif _name(element) == "UPnPError":
            fault = {_name(child): (child.text or "").strip()[:_LONGEST_TEXT] for child in element}
    if fault or status >= 300:
        code = fault.get("errorCode", "")
        words = "".join(filter(str.isprintable, fault.get("errorDescription", "")))
        raise ActionRefused(int(code) if re.fullmatch(r"[0-9]{1,5}", code) else 0, words)
    if texts is None:
        raise RemoteProtocolError("upnp_bad_result")
    return texts


def entry(transport: Literal["udp", "tcp"], external_port: int) -> Arguments:
    """The arguments that name a mapping, of DeletePortMapping and GetSpecificPortMappingEntry."""
    # Upper case, as the specification has it: some routers take it at its word.
    return (("NewRemoteHost", ""), ("NewExternalPort", str(external_port)), ("NewProtocol", transport.upper()))


def mapping(
    transport: Literal["udp", "tcp"], external_port: int, own: IPv4Address, internal_port: int, lifetime: int
) -> Arguments:
    """Those of AddPortMapping and AddAnyPortMapping. `lifetime` in s; 0: until the router starts anew."""
    return (
        *entry(transport, external_port),
        ("NewInternalPort", str(internal_port)),
        ("NewInternalClient", str(own)),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", _DESCRIPTION),
        ("NewLeaseDuration", str(lifetime)),
    )


def external_address(result: dict[str, str]) -> IPv4Address:
    """Of GetExternalIPAddress. Raises `RemoteProtocolError`: upnp_no_address, also for 0.0.0.0 and loopback."""
    try:
        address = IPv4Address(result.get("NewExternalIPAddress", ""))
    except ValueError as error:
        raise RemoteProtocolError("upnp_no_address") from error
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        raise RemoteProtocolError("upnp_no_address", str(address))
    return address


def reserved_port(result: dict[str, str]) -> int:
    """Of AddAnyPortMapping. Raises `RemoteProtocolError`: upnp_bad_port, also below `LOWEST_PORT`."""
    text = result.get("NewReservedPort", "")
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not LOWEST_PORT <= port < 2**16:
        raise RemoteProtocolError("upnp_bad_port", str(port))
    return port


def _parse(body: bytes) -> "Element":
    try:
        root: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # an encoding may be unknown, or wrong
        raise RemoteProtocolError("upnp_bad_xml") from error
    return root


def _name(element: "Element") -> str:
    """Without its namespace: routers do not agree on them."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _control(url: str, location: Location) -> Location | None:
    found = _URL.fullmatch(url)
    if not url or found is None:
        return None
    port = int(found[1]) if found[1] else location.port
    path = found[2] or "/"
    if not path.startswith("/"):
        path = location.path.rpartition("/")[0] + "/" + path
    return Location(port, path) if 0 < port < 2**16 else None
