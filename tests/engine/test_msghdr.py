"""Message headers made once, on real sockets: what is sent is what was sealed, what is taken apart is what came."""

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest

from overlay.engine.features import Features
from overlay.engine.msghdr import Name, RecordMessage, pack_endpoint, unpack_endpoint
from overlay.engine.run import Run
from overlay.engine.udp import UdpSocket, UdpSockets, open_udp
from overlay.wire.record.buffers import RecordBuffers
from overlay.wire.record.writer import RecordWriter
from overlay.wire.relay import pack_header

KEY = bytes(32)
RELAY_HEADER = pack_header(7, 9)


@pytest.fixture
def ends() -> Iterator[tuple[UdpSockets, UdpSockets]]:
    one, other = open_udp(0, Features()), open_udp(0, Features())
    if not (one.features.udp_gso and other.features.udp_gro):
        pytest.skip("this kernel lacks UDP segmentation offload")
    yield one, other
    one.close()
    other.close()


def send(sock: UdpSocket, port: int, plain: bytes, counter: int, prefix: bytes = b"", size: int = 1444) -> bytes:
    """Seal and send a record; returns what it is on the wire."""
    writer = RecordWriter(KEY, "aes-256-gcm", 3)
    layout = writer.buffers.layout(size, len(prefix))
    box = writer.seal(memoryview(plain), counter, layout, prefix)
    name = sock.name(("127.0.0.1", port))
    assert name is not None
    assert box <= sock.record_limit(layout)
    assert sock.message(layout).send(sock.fileno(), name, box) == 0
    return b"".join(b"".join(iovec) for iovec, _ in layout.batches(box))


def take(sock: UdpSocket) -> Run:
    run = sock.receive()
    assert run is not None
    return run


@pytest.mark.parametrize("prefix", [b"", RELAY_HEADER])
@pytest.mark.parametrize("sizes", [(60_000,) * 4, (60_000, 0, 1, 1412, 1413, 40_000, 60_000, 2000), (5000, 60_000)])
def test_what_arrives_is_what_was_sealed(
    ends: tuple[UdpSockets, UdpSockets], prefix: bytes, sizes: Sequence[int]
) -> None:
    one, other = ends
    apart = 0
    for counter, size in enumerate(sizes):
        sent = send(one.ipv4, other.port, bytes([counter]) * size, counter, prefix)
        run = take(other.ipv4)
        assert run.source == ("127.0.0.1", one.port)
        assert (run.size, min(run.segment, 1444)) == (len(sent), min(len(sent), 1444))
        if run.whole:
            apart += 1
            run.hit()
            stride = len(prefix) + 16
            pieces = [sent[at : at + 1444] for at in range(0, len(sent), 1444)]
            assert run.count == len(pieces)
            assert run.offset == len(prefix)
            assert bytes(run.headers[: stride * run.count]) == b"".join(piece[:stride] for piece in pieces)
            assert bytes(run.box()) == b"".join(piece[stride:] for piece in pieces)
        assert bytes(run.joined()) == sent
    assert apart >= len(sizes) - 1  # all but the one that showed what to expect


def test_runs_of_another_kind_come_as_they_are(ends: tuple[UdpSockets, UdpSockets]) -> None:
    one, other = ends
    send(one.ipv4, other.port, bytes(60_000), 0)
    take(other.ipv4)
    endpoint = ("127.0.0.1", other.port)
    for cut, data in (
        (1444, bytes(30_000)),
        (700, bytes(9000)),
        (0, b"x"),
        (0, bytes(16)),
        (0, bytes(17)),
        (100, bytes(950)),
    ):
        assert one.ipv4.send([data], cut, endpoint) == ""
        run = take(other.ipv4)
        assert (run.size, run.segment) == (len(data), cut or len(data))
        assert bytes(run.joined()) == data
    for counter in range(1, 8):  # after some that were not what was expected, the new kind is
        sent = send(one.ipv4, other.port, bytes(30_000), counter, size=1000)
        run = take(other.ipv4)
        whole = run.whole
        assert bytes(run.joined()) == sent
    assert whole


def test_what_is_to_be_forwarded_stays_joined(ends: tuple[UdpSockets, UdpSockets]) -> None:
    one, other = ends
    other.ipv4.forwards(1 << 20)
    for counter in range(3):
        sent = send(one.ipv4, other.port, bytes(30_000), counter, RELAY_HEADER)
        run = take(other.ipv4)
        assert not run.whole
        assert bytes(run.joined()) == sent


def test_an_error_of_the_kernel_is_its_number(ends: tuple[UdpSockets, UdpSockets]) -> None:
    layout = RecordBuffers().layout(1444, 0)
    message = RecordMessage(layout)
    name = Name(("127.0.0.1", 9), socket.AF_INET)
    assert message.send(-1, name, 100) == errno.EBADF
    assert message.send(ends[0].ipv4.fileno(), Name(("255.255.255.255", 9), socket.AF_INET), 100) == errno.EACCES
    with pytest.raises(OSError, match="descriptor"):
        Run().receive(-1)
    assert ends[0].ipv4.name(("::1", 9)) is None


@pytest.mark.parametrize(
    ("endpoint", "family"),
    [(("192.0.2.1", 1), socket.AF_INET), (("2001:db8::1", 65535), socket.AF_INET6), (("::", 0), socket.AF_INET6)],
)
def test_addresses_there_and_back(endpoint: tuple[str, int], family: socket.AddressFamily) -> None:
    assert unpack_endpoint(pack_endpoint(endpoint, family)) == endpoint


def test_link_local_addresses_keep_their_zone() -> None:
    index, name = socket.if_nameindex()[0]
    packed = pack_endpoint((f"fe80::1%{name}", 5), socket.AF_INET6)
    assert packed == pack_endpoint((f"fe80::1%{index}", 5), socket.AF_INET6)
    assert unpack_endpoint(packed) == (f"fe80::1%{name}", 5)


def test_no_addresses() -> None:
    for wrong in ("", "localhost", "1.2.3", "::1"):
        with pytest.raises(OSError, match="illegal"):
            pack_endpoint((wrong, 1), socket.AF_INET)
    with pytest.raises(ValueError, match="family"):
        unpack_endpoint(struct.pack("=H", socket.AF_UNIX) + bytes(26))


def test_asking_for_the_pieces_changes_nothing(ends: tuple[UdpSockets, UdpSockets]) -> None:
    """What a tap copies is what came, whether it was taken apart or not, and the run is as it was after."""
    one, other = ends
    whole = []
    for counter, size in enumerate((60_000, 60_000, 4001)):
        sent = send(one.ipv4, other.port, bytes([counter]) * size, counter)
        run = take(other.ipv4)
        assert b"".join(run.pieces()) == b"".join(run.pieces()) == sent
        whole.append(run.whole)
        assert bytes(run.joined()) == sent
        assert b"".join(run.pieces()) == sent
    assert whole == [False, True, True]


@pytest.mark.parametrize("prefix", [b"", RELAY_HEADER])
def test_a_datagram_alone_is_whole_where_it_lies(ends: tuple[UdpSockets, UdpSockets], prefix: bytes) -> None:
    one, other = ends
    for counter, size in enumerate((0, 1, 1000)):
        sent = send(one.ipv4, other.port, bytes([counter]) * size, counter, prefix)
        run = take(other.ipv4)
        assert (run.whole, run.count, run.offset) == (True, 1, len(prefix))
        assert bytes(run.headers[: len(prefix) + 16]) == sent[: len(prefix) + 16]
        assert bytes(run.box()) == sent[len(prefix) + 16 :]
        assert bytes(run.joined()) == sent
    for data in (b"\7", sent[: len(prefix) + 16], b"\1" + sent[1:]):  # no box, or another message
        assert one.ipv4.send([data], 0, ("127.0.0.1", other.port)) == ""
        assert not take(other.ipv4).whole
