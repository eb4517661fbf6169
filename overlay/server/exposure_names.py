"""Names of exposures: what a node says of one, checked, and the records that the network's zone has for it. No sockets.

    _ssh._tcp.b.local.test  SRV  0 0 2222 server.local.test    the service of an exposure, where peers reach it
    _ssh._tcp.b.local.test  TXT  public=203.0.113.1:2222       and where users do
    app.example.org         A    10.77.0.3                     a name that users know it by, as peers are to see it

The last is told only where it leads to the same: when all that is exposed under the name is one node's, which has each
public port at its overlay address, too.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from overlay.engine.api import SERVER_NUMBER
from overlay.errors import Exit, UserError
from overlay.server.schema import ExposureRecord
from overlay.wire.control.hostnames import ascii_name, check_host_name
from overlay.wire.control.messages import Expose, MapRecord
from overlay.wire.control.records import MAX_RECORDS, check_record, is_within

MAX_NAMES: Final = 8
_SERVICE: Final = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")  # RFC 6335 section 5.1, with the next
_LONGEST_SERVICE: Final = 15

LeadsHere = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Said:
    """What a node says of an exposure, as `Expose` has it."""

    known_as: tuple[str, ...] = ()
    service: str = ""
    direct: bool = False


NOTHING_SAID: Final = Said()


async def check_said(
    request: Expose, leads_here: LeadsHere | None, own_hosts: Sequence[str], domains: Sequence[str], *, direct: bool
) -> Said:
    """What the server takes of what a node says. `own_hosts`: this server's own names; `domains`: the network's;
    `direct`: whether peers may be led past the server.

    A name must lead to this server, else nodes could take any name in the world from their peers. When an exposure is
    renewed, a name that is right no more is left out, and costs nobody the exposure. Raises `UserError`:
    "service-invalid", "host-invalid", "host-not-here", "host-is-server", "host-in-domain".
    """
    if request.service and not (_SERVICE.fullmatch(request.service) and len(request.service) <= _LONGEST_SERVICE):
        raise UserError(
            "service-invalid",
            f"'{request.service[:40]}' is no name of a service.",
            "Use 1 to 15 letters, digits and hyphens, as in ssh (RFC 6335).",
            Exit.USAGE,
        )
    if len(request.known_as) > MAX_NAMES:
        raise UserError("host-invalid", f"An exposure has {MAX_NAMES} names at the most.", exit_code=Exit.USAGE)
    found: dict[str, UserError | None] = {}

    async def look(text: str) -> None:
        host = text
        try:
            host = _host(text, own_hosts, domains)
            if leads_here is None or not await leads_here(host):
                raise UserError(
                    "host-not-here",
                    f"The public DNS does not lead {host} to this server.",
                    "Add a record for it there that does, and expose the target again.",
                    Exit.REFUSED,
                )
            found[host] = None
        except UserError as error:
            found[host] = error

    async with anyio.create_task_group() as tasks:
        for text in request.known_as:
            tasks.start_soon(look, text)
    refusals = [error for error in found.values() if error is not None]
    if refusals and not request.id:
        raise refusals[0]
    taken = tuple(sorted(host for host, error in found.items() if error is None))
    return Said(taken, request.service, request.direct and direct)


def _host(text: str, own_hosts: Sequence[str], domains: Sequence[str]) -> str:
    """A name as it is written. Raises `UserError`."""
    try:
        name, _ = ascii_name(text)
        check_host_name(name)
        if "." not in name or name.rpartition(".")[2].isdigit():
            raise ValueError("it is no name of the public DNS")
    except ValueError as error:
        raise UserError(
            "host-invalid",
            f"'{text[:100]}' cannot be a name of an exposure: {str(error).rstrip('.')}.",
            "As in --known-as app.example.org.",
            Exit.USAGE,
        ) from error
    if name in map(str.lower, own_hosts):
        raise UserError(
            "host-is-server",
            f"{name} is the server's own name, which all nodes need to reach it.",
            "Give the exposure another name that leads to the server.",
            Exit.REFUSED,
        )
    if any(is_within(name, domain) for domain in domains):
        raise UserError(
            "host-in-domain",
            f"{name} is in the network's own domain, and nobody outside asks for it there.",
            f"Put it there with: overlay dns add {name} A ADDRESS",
            Exit.REFUSED,
        )
    return name


def exposure_records(
    exposures: Iterable[tuple[ExposureRecord, Said]],
    *,
    domains: Sequence[str],
    nodes: Mapping[int, tuple[str, str]],
    public: Callable[[ExposureRecord], str],
    made: Iterable[MapRecord] = (),
) -> tuple[MapRecord, ...]:
    """Records of all exposures. `nodes`: number → name and IPv4 overlay address. `public`: where users reach one.
    `made`: by people; where they have put something, that counts."""
    taken = {(record.name, record.rtype) for record in made}
    found: dict[tuple[str, str, str], MapRecord] = {}
    named: dict[str, list[tuple[ExposureRecord, Said]]] = {}
    for record, said in exposures:
        if record.node not in nodes:
            continue
        for host in said.known_as:
            named.setdefault(host, []).append((record, said))
        if said.service:
            for domain in domains:
                for each in _service_records(record, said, domain, nodes, public(record)):
                    found[each.name, each.rtype, each.value] = each
    for host, those in named.items():
        numbers = {record.node for record, _ in those}
        if len(numbers) == 1 and all(said.direct for _, said in those):
            address = nodes[number := numbers.pop()][1]
            found[host, "A", address] = MapRecord(name=host, rtype="A", value=address, node=number)
    wanted = [each for each in found.values() if (each.name, each.rtype) not in taken and _is_right(each)]
    return tuple(wanted[:MAX_RECORDS])


def _service_records(
    record: ExposureRecord, said: Said, domain: str, nodes: Mapping[int, tuple[str, str]], public: str
) -> Iterable[MapRecord]:
    name = nodes[record.node][0]
    owner = f"_{said.service}._{record.transport}.{name}.{domain}"
    if said.direct:
        yield MapRecord(name=owner, rtype="SRV", value=f"0 0 {record.public_port} {name}.{domain}", node=record.node)
    elif not record.host and SERVER_NUMBER in nodes:  # the ingress listens at the server's overlay address as well
        server = nodes[SERVER_NUMBER][0]
        yield MapRecord(name=owner, rtype="SRV", value=f"0 0 {record.public_port} {server}.{domain}", node=record.node)
    yield MapRecord(name=owner, rtype="TXT", value=f"public={public}", node=record.node)


def _is_right(record: MapRecord) -> bool:
    """Names may become too long of a long domain."""
    try:
        check_record(record)
    except ValueError:
        return False
    return True
