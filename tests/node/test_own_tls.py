"""TLS that ends at the node, behind a server that has no key: real handshakes, and a real authority that comes as users
do."""

import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSAttribute, TLSStream
from cryptography import x509

from overlay.carrier.stream import TcpStream
from overlay.carrier.tls import server_handshake
from overlay.certificates.pace import Pace
from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.own_tls import OwnTls, TlsOptions
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Target
from overlay.node.tunnel_end import TunnelEnd
from overlay.server.groups import Group, Member
from overlay.server.tunnels import SingleTunnel
from overlay.server.web.sites import Site
from overlay.wire.control.terms import Access, Terms
from overlay.wire.endpoint import Endpoint
from tests.carrier.streams import Certificate
from tests.programs import program
from tests.server.pebble import pebble
from tests.server.web.shared_port import HOST, SharedPort, shared_port, site_to

pytestmark = pytest.mark.anyio

NAME = "app.example.org"
SIZE = 70_000
QUICK = Pace(look=0.02, unreachable=0.05, unreachable_most=0.05)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


async def shout(stream: SocketStream) -> None:
    async with stream:
        try:
            while True:
                await stream.send((await stream.receive()).upper())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


def own_tls(folder: Path) -> OwnTls:
    # Pebble does not date its certificates back.
    return OwnTls(StateDir(folder).open(), wall=lambda: time.time() + 3600, pace=QUICK)


def trusting_nobody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def as_authority() -> ssl.SSLContext:
    context = trusting_nobody()
    context.set_alpn_protocols(["acme-tls/1"])
    return context


@asynccontextmanager
async def node_end(own: OwnTls, drops: Counter[str], *, says_reached: bool = False) -> AsyncIterator[TunnelEnd]:
    """A node's end of exposure x1, whose target shouts."""
    async with await anyio.create_tcp_listener(local_host=HOST) as target, anyio.create_task_group() as tasks:
        inside = TargetEnd(Target("tcp", HOST, target.extra(SocketAttribute.local_port)))
        end = TunnelEnd(inside, HOST, 0, lambda host: True, drops, says_reached=says_reached)
        end.tls = partial(own.end, "x1")
        for each in (partial(target.serve, shout), own.run, end.run):
            tasks.start_soon(each)
        yield end
        tasks.cancel_scope.cancel()
        end.close()


def where(end: TunnelEnd) -> Endpoint:
    return HOST, end.port


@asynccontextmanager
async def node_behind(port: SharedPort, own: OwnTls) -> AsyncIterator[Counter[str]]:
    """It is exposed under `NAME`."""
    drops: Counter[str] = Counter()
    async with node_end(own, drops) as end:
        port.sites.add_tls(NAME, site_to(end.port))
        yield drops


async def met(port: SharedPort) -> x509.Certificate:
    """The certificate that a user meets, who is heard then."""
    stream = await anyio.connect_tcp(HOST, port.port, ssl_context=trusting_nobody(), tls_hostname=NAME)
    async with stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"HELLO"
        assert stream.extra(TLSAttribute.alpn_protocol) == "http/1.1"
        der = stream.extra(TLSAttribute.peer_certificate_binary)
        assert der is not None
        return x509.load_der_x509_certificate(der)


async def test_the_authority_comes_through_the_server_as_users_do(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("pebble")
    own = own_tls(tmp_path / "node")
    async with shared_port(certificate) as port, node_behind(port, own):
        with pebble(tmp_path, tls_port=port.port, http_port=1) as authority:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_bundle))
            options = TlsOptions(acme_email="admin@example.org", acme_directory=authority.directory)
            own.add("x1", NAME, options)
            first = await met(port)
            assert first.issuer == first.subject and own.source("x1") == "self-signed"
            while own.source("x1") != "acme":  # noqa: ASYNC110 - a certificate tells nobody
                await anyio.sleep(0.02)
            given = await met(port)
            assert "Pebble" in given.issuer.rfc4514_string() and given.public_key() == first.public_key()
            assert own.trouble("x1") == ""
        for file in (tmp_path / "node").iterdir():
            assert file.stat().st_mode & 0o077 == 0, file
        again = own_tls(tmp_path / "node")
        again.add("x1", NAME, options)
        async with anyio.create_task_group() as tasks:  # the authority is away, and not needed
            tasks.start_soon(again.run)
            while again.source("x1") != "acme":  # noqa: ASYNC110
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        assert port.drops == {}


async def test_each_member_of_a_group_proves_the_name_though_users_go_to_any(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority comes as users do, by as many connections as it likes, and to whom the group leads it: only the
    member that it was asked by can show it the proof. Lists of networks do not know it."""
    program("pebble")
    drops: Counter[str] = Counter()
    group = Group(drops)
    group.balance = "round-robin"
    async with shared_port(certificate) as port, AsyncExitStack() as stack:
        with pebble(tmp_path, tls_port=port.port, http_port=1) as authority:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_bundle))
            nodes = [own_tls(tmp_path / f"node{number}") for number in range(2)]
            for number, own in enumerate(nodes):
                end = await stack.enter_async_context(node_end(own, drops, says_reached=True))
                group.add(Member(number, SingleTunnel(partial(where, end), drops)))
            site = Site("x1", group)
            site.gate.terms = Terms(tls_end="node", access=Access(allow=("127.0.0.9",)))
            port.sites.add_tls(NAME, site)
            for own in nodes:  # one after the other, as nodes join
                own.add("x1", NAME, TlsOptions(acme_email="admin@example.org", acme_directory=authority.directory))
                while own.source("x1") != "acme":
                    assert own.trouble("x1") == ""
                    await anyio.sleep(0.02)
            site.gate.terms = Terms(tls_end="node")
            assert len({(await met(port)).serial_number for _ in nodes}) == 2
            assert set(drops) == {"exposure_tls_failed"} and port.drops == {}
            with pytest.raises((OSError, anyio.EndOfStream, anyio.BrokenResourceError)):  # who says that he is one
                await anyio.connect_tcp(HOST, port.port, ssl_context=as_authority(), tls_hostname=NAME)
            await port.dropped("no_proof")


async def test_why_there_is_none_is_told_and_users_are_served_meanwhile(
    tmp_path: Path, certificate: Certificate
) -> None:
    own = own_tls(tmp_path)
    own.add("x1", NAME, TlsOptions(acme_email="a@example.org", acme_directory="https://127.0.0.1:1/dir"))
    async with shared_port(certificate) as port, node_behind(port, own):
        while not own.trouble("x1"):  # noqa: ASYNC110 - a certificate tells nobody
            await anyio.sleep(0.02)
        assert own.trouble("x1") == "Cannot reach the certificate authority: Connection refused."
        names = (await met(port)).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.DNSName(NAME)]
        own.remove("x1")
        assert own.source("x1") is None and own.trouble("x1") == ""


async def test_who_speaks_no_tls_is_counted(tmp_path: Path, certificate: Certificate) -> None:
    own = own_tls(tmp_path)
    own.add("x1", NAME, TlsOptions())
    async with shared_port(certificate) as port, node_behind(port, own) as drops:
        context = ssl.create_default_context()
        with pytest.raises(OSError):  # no authority vouches for it, and the user says so
            await anyio.connect_tcp(HOST, port.port, ssl_context=context, tls_hostname=NAME)
        while not drops["exposure_tls_failed"]:  # noqa: ASYNC110 - a counter tells nobody
            await anyio.sleep(0.005)
        assert drops == {"exposure_tls_failed": 1}


async def test_within_the_tls_of_a_tunnel(tmp_path: Path, certificate: Certificate) -> None:
    own = own_tls(tmp_path)
    own.add("x1", NAME, TlsOptions())

    with socket.create_server((HOST, 0)) as listening:
        listening.setblocking(False)

        async def serve() -> None:
            await anyio.wait_readable(listening)
            tunnel = await server_handshake(TcpStream(listening.accept()[0]), certificate.context())
            inside = await own.end("x1", tunnel)
            assert inside is not None
            data = b""
            while len(data) < SIZE:
                data += await inside.receive()
            await inside.send(data.upper())
            await inside.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await inside.receive()
            inside.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            number = listening.getsockname()[1]
            outer = await anyio.connect_tcp(
                HOST, number, ssl_context=trusting_nobody(), tls_hostname="server.test", tls_standard_compatible=False
            )
            inner = await TLSStream.wrap(outer, hostname=NAME, ssl_context=trusting_nobody())
            await inner.send(b"x" * SIZE)
            answer = b""
            with pytest.raises(anyio.EndOfStream):
                while True:
                    answer += await inner.receive()
            assert answer == b"X" * SIZE
            await inner.aclose()


def test_wrong_options(tmp_path: Path) -> None:
    own = own_tls(tmp_path)
    for options in (TlsOptions(acme_email="nobody"), TlsOptions(acme_directory="https://a.test/")):
        with pytest.raises(UserError) as caught:
            own.prepare(options)
        assert caught.value.code == "acme-invalid"
