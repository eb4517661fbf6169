"""Users by TLS to names that are exposed by it: real handshakes with the target, through a server that has no key."""

import hashlib
import os
import socket
import ssl

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSAttribute, TLSStream

from overlay.server.web.sites import Sites
from overlay.wire.control.terms import Access, Terms
from tests.carrier.streams import NAME as OWN_NAME
from tests.carrier.streams import Certificate
from tests.server.web.shared_port import HOST, SharedPort, TlsTarget, shared_port, site_to

pytestmark = pytest.mark.anyio

NAME = "db.test"
SIZE = 3_000_000


async def digest(stream: SocketStream) -> None:
    """Reads up to "end", and says what it was."""
    async with stream:
        data = b""
        while not data.endswith(b"end"):
            data += await stream.receive()
        await stream.send(hashlib.sha256(data).digest())


async def shout(stream: TLSStream) -> None:
    async with stream:
        try:
            while True:
                await stream.send((await stream.receive()).upper())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


def ask(port: int, name: str | None, context: ssl.SSLContext, data: bytes) -> bytes:
    with socket.create_connection((HOST, port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=name) as user:
            user.sendall(data)
            return user.recv(1000)


async def asked(port: SharedPort, name: str | None, context: ssl.SSLContext, data: bytes = b"hello") -> bytes:
    return await anyio.to_thread.run_sync(ask, port.port, name, context, data)


async def connected(port: SharedPort, target: TlsTarget) -> TLSStream:
    context = target.client()
    return await anyio.connect_tcp(
        HOST, port.port, ssl_context=context, tls_hostname=NAME, tls_standard_compatible=False
    )


async def test_the_targets_own_certificate_is_what_users_meet(certificate: Certificate) -> None:
    async with shared_port(certificate) as port, TlsTarget(NAME, "*.test").serving(shout, "odd/7") as target:
        port.sites.add_tls(NAME, site_to(target.port))
        port.sites.add_tls("*.test", site_to(1))
        assert await asked(port, NAME, target.client()) == b"HELLO"
        assert await asked(port, "DB.test", target.client("odd/7")) == b"HELLO"
        with pytest.raises(OSError):  # another name of that kind leads to where nobody listens
            await asked(port, "other.test", target.client())
        await port.dropped("target_refused")
        assert port.drops == {"target_refused": 1}


async def test_bytes_arrive_as_they_were_sent_and_the_end_of_one_direction_leaves_the_other(
    certificate: Certificate,
) -> None:
    data = os.urandom(SIZE)
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        port.sites.add_tls(NAME, site_to(target.port))
        stream = await connected(port, target)
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, data)
            answer = bytearray()
            while len(answer) < SIZE:
                answer += await stream.receive()
        assert bytes(answer) == data.upper()


async def test_a_hello_in_many_small_pieces(certificate: Certificate) -> None:
    """Its bytes are looked at again and again, and all of them go on."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        port.sites.add_tls(NAME, site_to(target.port))
        tls = target.client().wrap_bio(incoming, outgoing, server_hostname=NAME)
        async with await anyio.connect_tcp(HOST, port.port) as user:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            for at in range(0, len(hello), 50):
                await user.send(hello[at : at + 50])
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    incoming.write(await user.receive())
        assert tls.version() == "TLSv1.3"


async def test_who_asks_for_nothing_that_is_exposed_learns_nothing(certificate: Certificate) -> None:
    nobody = ssl.create_default_context()
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        port.sites.add_tls(NAME, site_to(target.port))
        answers = {
            await asked(port, name, nobody, b"GET / HTTP/1.1\r\nHost: db.test\r\n\r\n")
            for name in (None, "unknown.test", "a.db.test")
        }
        (answer,) = {each.partition(b"Date:")[0] for each in answers}
        assert answer == b"HTTP/1.1 404 Not Found\r\n"
        await port.dropped("http_stranger", 3)
        absurd = await anyio.connect_tcp(HOST, port.port)
        async with absurd:
            await absurd.send(b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff")
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await absurd.receive()
        await port.dropped("tls_failed")
        assert await asked(port, NAME, target.client()) == b"HELLO"


async def test_ended_here_the_target_gets_what_was_in_it(certificate: Certificate) -> None:
    """By the server's certificate, with the protocol that the target is likely to speak."""
    async with shared_port(certificate) as port, await anyio.create_tcp_listener(local_host=HOST) as target:
        site = site_to(target.extra(SocketAttribute.local_port))
        site.gate.terms = Terms(tls_end="server")
        port.sites.add_tls(OWN_NAME, site)
        trusting = ssl.create_default_context(cafile=certificate.ca_file)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(target.serve, digest)
            for offered, agreed in (((), None), (("h2", "http/1.1"), "http/1.1"), (("postgresql",), "postgresql")):
                trusting.set_alpn_protocols(list(offered))
                stream = await anyio.connect_tcp(HOST, port.port, ssl_context=trusting, tls_hostname=OWN_NAME)
                await stream.send(b"a" * SIZE)
                assert stream.extra(TLSAttribute.alpn_protocol) == agreed
                await stream.send(b"end")
                assert await stream.receive() == hashlib.sha256(b"a" * SIZE + b"end").digest()
                await stream.aclose()
            tasks.cancel_scope.cancel()


async def test_a_wildcard_does_not_take_the_servers_own_name(certificate: Certificate) -> None:
    """Nodes find the server by it."""
    sites = Sites(["VPN.test"])
    for add in (sites.add_tls, lambda host, site: sites.add(host, "/", site)):
        add("*.test", site_to(1))
        assert sites.find_tls("vpn.test") is None and not sites.exposes("vpn.test")
        assert sites.find("vpn.test", "/") is None


async def test_an_exposure_that_is_given_back_takes_its_users_along(certificate: Certificate) -> None:
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        site = site_to(target.port)
        port.sites.add_tls(NAME, site)
        stream = await connected(port, target)
        async with stream:
            await stream.send(b"a")
            assert await stream.receive() == b"A" and site.connections == 1
            port.sites.remove(site)
            site.close()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        while site.connections:  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)


async def test_too_many_users_are_turned_away(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.server.web.sites.MAX_SERVED", 1)
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        port.sites.add_tls(NAME, site_to(target.port))
        first = await connected(port, target)
        async with first:
            with pytest.raises(OSError):
                await asked(port, NAME, target.client())
            await port.dropped("too_many_users")


async def test_whom_the_terms_keep_out(certificate: Certificate) -> None:
    async with shared_port(certificate) as port, TlsTarget(NAME).serving(shout) as target:
        site = site_to(target.port)
        site.gate.terms = Terms(access=Access(deny=("127.0.0.0/8",)))
        port.sites.add_tls(NAME, site)
        with pytest.raises(OSError):
            await asked(port, NAME, target.client())
        await port.dropped("source_refused")
