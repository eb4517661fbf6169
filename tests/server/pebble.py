"""Pebble, Let's Encrypt's own authority for tests: on loopback, with names that all lead there."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme
from dnslib import QTYPE, RR, A
from dnslib.server import DNSLogger, DNSRecord, DNSServer

from overlay.certificates.acme import THREAD
from tests.lab.netns import wait_for

BLOCKED = "blocked.example.org"
"""A name that it certifies for nobody."""
LIFETIME = 90 * 86400  # s of a certificate
_PATIENCE = 30.0  # s, far more than a request may take
_LISTEN = 0x0A  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True)
class Pebble:
    directory: str  # URL
    ca_bundle: Path  # of whoever its own certificate is from


class _Everywhere:
    """Every name's address is 127.0.0.1."""

    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A("127.0.0.1"), ttl=0))
        return reply


@contextmanager
def pebble(folder: Path, *, http_port: int, tls_port: int, bad_nonces: int = 5) -> Iterator[Pebble]:
    """It proves names at these ports, and refuses so many per cent of good nonces. It picks its own port."""
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    paths = {name: folder / f"pebble-{name}.pem" for name in ("ca", "certificate", "key")}
    ca.cert_pem.write_to_path(str(paths["ca"]))
    leaf.cert_chain_pems[0].write_to_path(str(paths["certificate"]))
    leaf.private_key_pem.write_to_path(str(paths["key"]))
    settings = {
        "listenAddress": "127.0.0.1:0",
        "managementListenAddress": "",
        "certificate": str(paths["certificate"]),
        "privateKey": str(paths["key"]),
        "httpPort": http_port,
        "tlsPort": tls_port,
        "certificateValidityPeriod": LIFETIME,
        "domainBlocklist": [BLOCKED],
    }
    config = folder / "pebble.json"
    config.write_text(json.dumps({"pebble": settings}))
    names = DNSServer(_Everywhere(), address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
    names.start_thread()
    try:
        resolver = f"127.0.0.1:{names.server.server_address[1]}"
        with (folder / "pebble.log").open("w") as log:
            process = subprocess.Popen(
                ["pebble", "-strict", "-config", str(config), "-dnsserver", resolver],
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": str(bad_nonces)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            port = wait_for(lambda: _listening_port(process), "Pebble listens")
            yield Pebble(f"https://127.0.0.1:{port}/dir", paths["ca"])
        finally:
            _let_requests_end()
            process.kill()
            process.wait()
    finally:
        names.stop()
        names.server.server_close()


def _let_requests_end() -> None:
    """Of orders that were cancelled: Python's `ssl` loses the socket of a connection that is reset before it is TLS."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(_PATIENCE)
            assert not thread.is_alive(), "a request to the authority hangs"


def _listening_port(process: subprocess.Popen[bytes]) -> int | None:
    """The one TCP port that it listens on: it does not say which one it got."""
    assert process.poll() is None, "Pebble has ended"
    links = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(link))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) == _LISTEN and f"socket:[{fields[9]}]" in links:
            return int(fields[1].rpartition(":")[2], 16)
    return None
