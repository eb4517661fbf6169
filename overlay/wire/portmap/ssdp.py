"""SSDP's search (UPnP Device Architecture 2.0 §1.3): is the gateway a UPnP router, and where is its description?

Requests and answers are HTTP headers in one datagram. Of an answer only the port and the path of LOCATION count:
whatever host is named there, the gateway is the one that is asked, so that nobody can send us elsewhere.
"""

import re
from dataclasses import dataclass
from typing import Final

from overlay.errors import RemoteProtocolError

PORT: Final = 1900
GROUP: Final = "239.255.255.250"
MAX_ANSWER_SIZE: Final = 2048  # bytes; real ones have some 400
TARGETS: Final = ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", "ssdp:all")
"""What is searched for. A router of version 2 must answer to version 1; some answer to nothing but `ssdp:all`."""

_LOCATION = re.compile(rb"http://[^/:\s]+(?::(\d{1,5}))?(/[!-~]*)?")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the gateway's description is: `path` is printable ASCII without spaces."""

    port: int
    path: str


def search_request(target: str) -> bytes:
    """Who is a `target`? To be answered within 1 s."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {GROUP}:{PORT}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}")
    return "\r\n".join((*lines, "", "")).encode()


def parse_answer(data: bytes) -> Location:
    """An answer to a search. Raises `RemoteProtocolError`: ssdp_bad_size, ssdp_bad_answer, ssdp_other_device (not a
    router's), ssdp_bad_location."""
    if len(data) > MAX_ANSWER_SIZE:
        raise RemoteProtocolError("ssdp_bad_size", f"{len(data)} bytes")
    first, *lines = data.split(b"\r\n")
    if not re.fullmatch(rb"HTTP/1\.[01] 200( .*)?", first):
        raise RemoteProtocolError("ssdp_bad_answer")
    headers = {name.strip().upper(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if not re.search(rb"InternetGatewayDevice|WAN(IP|PPP)Connection", headers.get(b"ST", b"")):
        raise RemoteProtocolError("ssdp_other_device")
    return _location(headers.get(b"LOCATION", b""))


def _location(url: bytes) -> Location:
    found = _LOCATION.fullmatch(url)
    if found is None:
        raise RemoteProtocolError("ssdp_bad_location")
    port = int(found[1] or 80)
    if not 0 < port < 2**16:
        raise RemoteProtocolError("ssdp_bad_location")
    return Location(port, (found[2] or b"/").decode())
