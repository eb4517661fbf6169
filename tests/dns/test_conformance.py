"""The zone's answers beside those of bind9, which serves the same zone from a file: compared field by field."""

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import anyio
import anyio.from_thread
import pytest
from dnslib import EDNS0, QTYPE, DNSRecord

from overlay_dns.labels import Address
from overlay_dns.server import Resolver
from overlay_dns.zone import Record, Zones, address_record
from tests.programs import program

DOMAIN = "local.test"
HOSTS: dict[str, list[Address]] = {
    "server": [IPv4Address("10.77.0.1")],
    "b": [IPv4Address("10.77.0.3"), IPv6Address("fd00:1:2::3")],
    "db.c": [IPv4Address("10.77.0.4")],
}
RECORDS = (
    address_record("*.b.local.test", IPv4Address("10.77.0.3")),
    Record("text.b.local.test", QTYPE.TXT, (b"one", b"two \x7e")),
    Record("_ssh._tcp.b.local.test", QTYPE.SRV, (0, 5, 22, "b.local.test")),
    Record("www.local.test", QTYPE.CNAME, "alias.local.test"),
    Record("alias.local.test", QTYPE.CNAME, "b.local.test"),
    Record("lost.local.test", QTYPE.CNAME, "nobody.local.test"),
    Record("wild.local.test", QTYPE.CNAME, "any.b.local.test"),
    Record("*.w.local.test", QTYPE.CNAME, "b.local.test"),
    Record("local.test", QTYPE.TXT, (b"of all",)),
    *(address_record("many.local.test", IPv4Address(f"10.77.1.{number}")) for number in range(1, 91)),
)
NAMES = (
    "b.local.test",
    "B.lOcAl.TeSt",
    "any.b.local.test",
    "deep.any.b.local.test",
    "*.b.local.test",
    "text.b.local.test",
    "below.text.b.local.test",
    "_tcp.b.local.test",
    "_ssh._tcp.b.local.test",
    "c.local.test",
    "db.c.local.test",
    "x.c.local.test",
    "www.local.test",
    "WWW.local.test",
    "lost.local.test",
    "wild.local.test",
    "x.w.local.test",
    "w.local.test",
    "nobody.local.test",
    "many.local.test",
    "local.test",
)
TYPES = ("A", "AAAA", "CNAME", "TXT", "SRV", "NS", "SOA", "MX", "PTR", "HTTPS", "CAA")
NETWORKS = (IPv4Network("10.77.0.0/16"), IPv6Network("fd00:1:2::/48"))
REVERSE = {  # origin: names below it
    "77.10.in-addr.arpa": ("3.0", "4.0", "9.9", "0", "", "x.3.0", "*"),
    "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa": ("3" + ".0" * 19, "9" + ".0" * 19, "0.0", ""),
}


def reverse_file(origin: str) -> str:
    lines = [
        f"{origin}. 10 IN SOA server.{DOMAIN}. hostmaster.{DOMAIN}. 7 3600 600 86400 10",
        f"{origin}. 5 IN NS server.{DOMAIN}.",
    ]
    pointers = {address.reverse_pointer: host for host, each in HOSTS.items() for address in each}
    lines += [f"{name}. 5 IN PTR {host}.{DOMAIN}." for name, host in pointers.items() if name.endswith(origin)]
    return "\n".join(lines) + "\n"


def zone_file() -> str:
    """As bind9 reads it, from the same records (RFC 1035 section 5)."""
    forward = [address_record(f"{host}.{DOMAIN}", address) for host, each in HOSTS.items() for address in each]
    lines = [
        f"{DOMAIN}. 10 IN SOA server.{DOMAIN}. hostmaster.{DOMAIN}. 7 3600 600 86400 10",
        f"{DOMAIN}. 5 IN NS server.{DOMAIN}.",
    ]
    lines += [
        f"{record.name}. {record.ttl} IN {QTYPE.get(record.rtype)} {record.rdata().toZone()}"
        for record in (*forward, *RECORDS)
    ]
    return "\n".join(lines) + "\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exchange(port: int, query: DNSRecord, *, tcp: bool) -> DNSRecord:
    return DNSRecord.parse(query.send("127.0.0.1", port, tcp=tcp, timeout=5))


@pytest.fixture(scope="module")
def bind9(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of one that serves the zone."""
    folder, port = tmp_path_factory.mktemp("bind9"), free_port()
    (folder / "zone").write_text(zone_file())
    for origin in REVERSE:
        (folder / origin).write_text(reverse_file(origin))
    reverse = "".join(f'zone "{origin}" {{ type primary; file "{folder}/{origin}"; }};\n' for origin in REVERSE)
    configuration = folder / "named.conf"
    configuration.write_text(
        f'options {{ directory "{folder}"; pid-file none; session-keyfile none; recursion no;'
        " minimal-responses yes; zero-no-soa-ttl no;"
        f" listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; dnssec-validation no; notify no;"
        " allow-transfer { none; }; max-udp-size 1232; };"
        f'controls {{ }}; zone "{DOMAIN}" {{ type primary; file "{folder}/zone"; check-names ignore; }};\n{reverse}'
    )
    copied = shutil.copy(
        program("named"), folder / "named"
    )  # where it is installed, AppArmor keeps it out of our folder
    command = [str(copied), "-g", "-c", str(configuration), "-n", "1", "-p", str(port)]
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_until_it_serves(process, log)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_until_it_serves(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while " running\n" not in log.read_text():  # it listens before it has read the zone
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ours() -> Iterator[int]:
    """The port of our resolver, in a thread of its own."""
    zones = Zones.build(DOMAIN, HOSTS, 7, NETWORKS, records=RECORDS)
    resolver, ended = Resolver(zones, lambda: []), threading.Event()
    with anyio.from_thread.start_blocking_portal() as portal:

        async def serve(*, task_status: anyio.abc.TaskStatus[int]) -> None:
            async with anyio.create_task_group() as tasks:
                port = await tasks.start(partial(resolver.serve, ["127.0.0.1"], port=0))
                task_status.started(port)
                await anyio.to_thread.run_sync(ended.wait)
                tasks.cancel_scope.cancel()

        future, port = portal.start_task(serve)
        try:
            yield port
        finally:
            ended.set()
            future.result()


def told(reply: DNSRecord) -> dict[str, object]:
    """What must be the same. Not the order of a set; not RA, as ours forwards as well; not the case of an owner, where
    bind9 has that of its file and ours that of the question (which both repeat as it was)."""
    header = reply.header
    return {
        "rcode": header.rcode,
        "aa": header.aa,
        "tc": header.tc,
        "rd": header.rd,
        "question": (str(reply.q.qname), reply.q.qtype),
        "answer": sorted((str(each.rname).lower(), each.rtype, each.ttl, each.rdata.toZone()) for each in reply.rr),
        "authority": [(str(each.rname).lower(), each.rtype, each.ttl, each.rdata.toZone()) for each in reply.auth],
        "edns": [(each.edns_ver, each.edns_do, each.edns_rcode) for each in reply.ar if each.rtype == QTYPE.OPT],
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["udp", "edns", "tiny", "tcp"])
def test_as_bind9_answers(name: str, how: str, bind9: int, ours: int) -> None:
    for qtype in TYPES:
        query = DNSRecord.question(name, qtype)
        if how in ("edns", "tiny"):
            query.add_ar(EDNS0(udp_len=1232 if how == "edns" else 100))
        theirs = told(exchange(bind9, query, tcp=how == "tcp"))
        mine = told(exchange(ours, query, tcp=how == "tcp"))
        if theirs["tc"] and mine["tc"]:  # how much of the answer stands in a truncated one is nobody's business
            for each in (theirs, mine):
                del each["answer"], each["aa"], each["authority"]
        assert mine == theirs, qtype


@pytest.mark.parametrize("origin", REVERSE)
def test_reverse_names_as_bind9_answers(origin: str, bind9: int, ours: int) -> None:
    for below in REVERSE[origin]:
        for qtype in ("PTR", "A", "NS", "SOA", "CNAME", "TXT"):
            query = DNSRecord.question(f"{below}.{origin}".removeprefix("."), qtype)
            assert told(exchange(ours, query, tcp=False)) == told(exchange(bind9, query, tcp=False)), (below, qtype)


def odd(name: str = "b.local.test", *, qtype: int = 1, qclass: int = 1, flags: int = 0, more: bytes = b"") -> bytes:
    """A query that is out of the ordinary. `more`: behind the question, one record if it is not empty."""
    labels = b"".join(len(label).to_bytes() + label for label in name.encode("latin-1").split(b"."))
    header = struct.pack(">HHHHHH", 77, flags, 1, 0, 0, 1 if more else 0)
    return header + labels + b"\0" + struct.pack(">HH", qtype, qclass) + more


def opt(size: int = 1232, ttl: int = 0, data: bytes = b"", owner: bytes = b"\0") -> bytes:
    return owner + struct.pack(">HHIH", 41, size, ttl, len(data)) + data


ODD = {
    "recursion wanted": odd(flags=0x0100),
    "checking disabled": odd(flags=0x0010),
    "authenticated data": odd(flags=0x0020),
    "aa, tc and ra in a question": odd(flags=0x0680),
    "a type that nobody knows": odd(qtype=65280),
    "the same of a name that is not there": odd("nobody.local.test", qtype=65280),
    "dnssec ok": odd(more=opt(ttl=0x8000)),
    "an edns version that nobody knows": odd(more=opt(ttl=0x00010000)),
    "the same and more": odd(more=opt(ttl=0x00FF8000)),
    "an edns option that nobody knows": odd(more=opt(data=b"\xfd\xe9\0\2ab")),
    "a size of zero": odd(more=opt(size=0)),
    "two opts": odd(more=opt() + opt())[:11] + b"\2" + odd(more=opt() + opt())[12:],
    "a record in place of an opt": odd(more=b"\1x\0" + struct.pack(">HHIH", 16, 1, 0, 2) + b"\1a"),
    "half an opt": odd(more=opt()[:-3]),
    "an option that is longer than the opt": odd(more=opt(data=b"\0\x0a\0\x20ab")),
    "no opt where one is counted": odd(more=b"\0")[:-1],
    "bytes left over": odd() + b"\0",
    "class chaos": odd(qclass=3),
    "class none": odd(qclass=254),
    "any class": odd(qclass=255),
    "class zero": odd(qclass=0),
    "type zero": odd(qtype=0),
    "a type that is none": odd(qtype=250),
    "status": odd(flags=0x1000),
    "inverse query": odd(flags=0x0800),
    "opcode 15": odd(flags=0x7800),
    "zone transfer": odd(DOMAIN, qtype=252),
    "no question": odd()[:5] + b"\0" + odd()[6:12],
    "two questions": odd()[:5] + b"\2" + odd()[6:] + odd()[12:],
    "a label of 63 bytes": odd("x" * 63 + ".local.test"),
    "a name of 255 bytes": odd(".".join(["x" * 49] * 4 + ["x" * 42, "local", "test"])),
    "a name of 256 bytes": odd(".".join(["x" * 49] * 4 + ["x" * 43, "local", "test"])),
    "bytes beyond ascii": odd("\xff\x00 b.local.test"),
    "a pointer to itself": odd()[:12] + b"\xc0\x0c\0\1\0\1",
    "a pointer past the end": odd()[:12] + b"\xc3\xff\0\1\0\1",
    "an extended label": odd()[:12] + b"\x41" + odd()[13:],
    "no end of the name": odd()[:20],
}


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("what", ODD)
def test_odd_questions_as_bind9_answers(what: str, tcp: bool, bind9: int, ours: int) -> None:
    theirs, mine = (gist(raw(port, ODD[what], tcp=tcp), what) for port in (bind9, ours))
    assert mine == theirs


def raw(port: int, query: bytes, *, tcp: bool) -> bytes:
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        client.sendall(len(query).to_bytes(2) + query if tcp else query)
        return client.recv(4096)[2 if tcp else 0 :]


def gist(reply: bytes, what: str) -> dict[str, object]:
    """Of a reply to a question that is none, bind9 repeats of the question what it could read."""
    flags, rcode = reply[2], reply[3] & 15
    whole = told(DNSRecord.parse(reply)) if rcode in (0, 3) and what != "bytes beyond ascii" else {}
    return {"id": reply[:2], "flags": flags, "ad and cd": reply[3] & 0x30, "rcode": rcode, **whole}


def test_questions_in_a_row_on_one_connection(bind9: int, ours: int) -> None:
    queries = [DNSRecord.question(name, qtype) for name in NAMES for qtype in TYPES]
    for number, query in enumerate(queries):
        query.header.id = number
    sent = b"".join(len(data).to_bytes(2) + data for data in (bytes(query.pack()) for query in queries))
    answers = []
    for port in (bind9, ours):
        replies: dict[int, dict[str, object]] = {}
        with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as stream:
            stream.sendall(sent)
            with stream.makefile("rb") as received:
                for _ in queries:
                    reply = DNSRecord.parse(received.read(int.from_bytes(received.read(2))))
                    replies[reply.header.id] = told(reply)
        answers.append(replies)
    assert answers[0] == answers[1] and len(answers[0]) == len(queries)
