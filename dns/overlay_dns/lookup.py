"""A name's addresses, asked of given name servers and of nobody else.

A daemon whose resolver has taken over the system must not ask itself for the way to its own server.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import anyio
from dnslib import QTYPE, DNSError, DNSRecord

from overlay_dns.forwarder import Forwarder, ForwardError, Upstream

HOSTS_PATH: Final = Path("/etc/hosts")
_MAX_ADDRESSES: Final = 32
_MAX_HOSTS: Final = 1 << 20  # bytes read of the hosts file


async def look_up(name: str, upstreams: Sequence[Upstream], hosts: Path = HOSTS_PATH) -> list[str]:
    """Numeric addresses of `name`: of the hosts file, or AAAA before A as `upstreams` answer; both are asked at once.

    Raises `OSError` with the reason.
    """
    local = _in_hosts(hosts, name)
    if local:
        return local
    forwarder = Forwarder(lambda: upstreams)
    found: dict[str, list[str]] = {}
    silent: list[str] = []

    async def ask(kind: str) -> None:
        try:
            query = bytes(DNSRecord.question(name.removesuffix("."), kind).pack())
            found[kind] = _addresses(await forwarder.ask(query), kind)
        except (DNSError, ValueError, IndexError, UnicodeError, RecursionError) as error:
            silent.append(f"the answer cannot be read: {error}")
        except ForwardError:
            silent.append("the name servers do not answer")

    async with anyio.create_task_group() as tasks:
        for kind in ("AAAA", "A"):
            tasks.start_soon(ask, kind)
    addresses = found.get("AAAA", []) + found.get("A", [])
    if not addresses:
        raise OSError(silent[0] if silent else "it has no address")
    return addresses[:_MAX_ADDRESSES]


def _addresses(reply: bytes, kind: str) -> list[str]:
    record = DNSRecord.parse(reply)
    # The name server has followed the aliases (CNAME): what it adds of this kind is the answer.
    return [str(ip_address(str(each.rdata))) for each in record.rr if QTYPE.get(each.rtype) == kind]


def _in_hosts(path: Path, name: str) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_HOSTS)
    except OSError:
        return []
    wanted, found = name.lower().removesuffix("."), []
    for line in text.splitlines():
        words = line.partition("#")[0].lower().split()
        if wanted in words[1:]:
            try:
                found.append(str(ip_address(words[0])))
            except ValueError:
                continue
    return found
