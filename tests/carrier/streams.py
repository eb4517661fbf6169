"""Carriers over loopback with Noise inside, and certificates to try them with."""

import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import anyio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overlay.carrier.carriers import CarrierName, DialOptions
from overlay.carrier.connection import ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS
from overlay.carrier.openers import OPENERS
from overlay.carrier.tls import ALPN_ORDINARY, Tls, client_context, harden
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.client_hello import NO_HELLO, ClientHello

from .ends import NODE, SERVER_PUBLIC

NAME = "server.test"
PLAIN_OPTIONS = DialOptions(host=NAME)


@dataclass
class Certificate:
    """A server's, by a CA of its own, for `server.test` and 127.0.0.1."""

    folder: Path

    def __post_init__(self) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(NAME, "127.0.0.1")
        self.ca_file = str(self.folder / "ca.pem")
        self.chain_file = str(self.folder / "chain.pem")
        self.key_file = str(self.folder / "key.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        issued.private_key_pem.write_to_path(self.key_file)
        Path(self.chain_file).write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        certificate = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.pin = hashlib.sha256(key).digest()

    def context(self, hello: ClientHello = NO_HELLO, protocols: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain_file, self.key_file)
        context.set_alpn_protocols(list(protocols))
        return context


async def connected(carrier: CarrierName, endpoint: Endpoint, options: DialOptions) -> ControlConnection:
    """As `dial` does it, over any carrier."""
    stream = await OPENERS[carrier](endpoint, options)
    try:
        channel = NoiseChannel.initiator(NODE, SERVER_PUBLIC, random_bytes=os.urandom)
        await stream.send(channel.data_to_send())
        with anyio.fail_after(5):
            while (key := channel.remote_key) is None:
                channel.receive_data(await stream.receive(4096))
        await stream.send(channel.data_to_send())
    except BaseException:
        stream.close()
        raise
    return ControlConnection(stream, channel, key, endpoint, decode_server_message, DEFAULT_LIMITS, carrier=carrier)


def tls_pair(certificate: Certificate, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Tls, Tls]:
    """Client and server after their handshake."""
    accepting = certificate.context()
    harden(accepting)
    accepting.maximum_version = newest
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialling = client_context(ALPN_ORDINARY, ca_file=certificate.ca_file)
    server_in, client_in = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = dialling.wrap_bio(client_in, to_server, server_hostname=NAME)
    server = accepting.wrap_bio(server_in, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2 or to_server.pending or to_client.pending:
        for end, incoming, outgoing in ((client, client_in, to_client), (server, server_in, to_server)):
            incoming.write(outgoing.read())
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert client.selected_alpn_protocol() == "http/1.1"
    return Tls(client, client_in, to_server), Tls(server, server_in, to_client)
