import pytest

from overlay.errors import LocalProtocolError
from overlay.path.pmtu import STEPS
from overlay.wire.record.buffers import MAX_BATCH_SEGMENTS, MAX_BATCH_SIZE, SUPERPACKET_SIZE, RecordBuffers
from overlay.wire.record.fragments import DATAGRAM_SIZE
from overlay.wire.record.frames import FRAME_HEADER_SIZE, MAX_RECORD
from overlay.wire.record.keys import Cipher, record_aead
from overlay.wire.record.writer import RecordWriter
from tests.wire.record.batches import KEY, RECEIVER, datagrams, writer


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
@pytest.mark.parametrize("prefix", [b"", b"relay header 16B"])
def test_the_wire_format(cipher: Cipher, prefix: bytes) -> None:
    """Opened by hand, from the page that describes it."""
    plain = bytes(range(256)) * 20
    sent = datagrams(writer(cipher).write(memoryview(plain), 0x1122334455667788, 1000, prefix))
    payload = 1000 - 16 - len(prefix)
    count = -(-(len(plain) + 16) // payload)
    assert len(sent) == count
    assert [len(datagram) for datagram in sent[:-1]] == [1000] * (count - 1)
    box = b""
    for index, datagram in enumerate(sent):
        assert datagram[: len(prefix)] == prefix
        header = datagram[len(prefix) : len(prefix) + 16]
        assert header == bytes([5, index, count, 0]) + bytes.fromhex("04030201" + "8877665544332211")
        box += datagram[len(prefix) + 16 :]
    associated = bytes([5, 0, count, 0]) + header[4:]
    assert record_aead(KEY, cipher).decrypt(bytes(4) + header[8:], box, associated) == plain


def test_a_record_that_fits_is_one_datagram() -> None:
    assert [(len(b"".join(iovec)), segment) for iovec, segment in writer().write(memoryview(bytes(1412)), 0, 1444)] == [
        (1444, 0)
    ]
    assert len(datagrams(writer().write(memoryview(bytes(1413)), 0, 1444))) == 2


@pytest.mark.parametrize("prefix", [b"", b"relay header 16B"])
@pytest.mark.parametrize("datagram_size", [DATAGRAM_SIZE, *(step for step in STEPS if step > DATAGRAM_SIZE)])
def test_the_largest_superpacket_asked_for_is_one_batch(prefix: bytes, datagram_size: int) -> None:
    plain = memoryview(bytes(FRAME_HEADER_SIZE + SUPERPACKET_SIZE))
    ((iovec, segment),) = writer().write(plain, 0, datagram_size, prefix)
    assert segment == datagram_size
    assert sum(map(len, iovec)) <= MAX_BATCH_SIZE
    assert len(iovec) <= 2 * MAX_BATCH_SEGMENTS


def test_a_keepalive_is_32_bytes() -> None:
    assert [len(datagram) for datagram in datagrams(writer().write(memoryview(b""), 0, 1444))] == [32]


@pytest.mark.parametrize("prefix", [b"", b"relay header 16B"])
@pytest.mark.parametrize("datagram_size", [300, 548, 1000, 1444, 8972, 65000])
@pytest.mark.parametrize("size", [1, 30000, 64000, MAX_RECORD])
def test_batches_are_within_what_one_sendmsg_takes(size: int, datagram_size: int, prefix: bytes) -> None:
    written = writer().write(memoryview(bytes(size)), 0, datagram_size, prefix)
    for iovec, segment in written:
        length = len(b"".join(iovec))
        assert length <= MAX_BATCH_SIZE
        if segment:
            assert segment == datagram_size
            assert 1 < -(-length // segment) <= MAX_BATCH_SEGMENTS
        else:
            assert length <= datagram_size
    sent = datagrams(written)
    assert all(len(datagram) == datagram_size for datagram in sent[:-1])
    assert sum(map(len, sent)) == size + 16 + len(sent) * (16 + len(prefix))


def test_a_full_superpacket_leaves_in_two_calls() -> None:
    assert len(writer().write(memoryview(bytes(MAX_RECORD)), 0, 1444)) == 2


def test_a_counter_is_never_used_twice() -> None:
    ours = writer()
    ours.write(memoryview(b""), 5, 1444)
    for counter in (5, 4, 0):
        with pytest.raises(LocalProtocolError):
            ours.write(memoryview(b""), counter, 1444)
    ours.write(memoryview(b""), 6, 1444)


@pytest.mark.parametrize(
    ("size", "datagram_size", "prefix"),
    [
        (MAX_RECORD + 1, 1444, b""),
        (MAX_RECORD, 200, b""),
        (1, 16, b""),
        (1, 32, b"relay header 16B"),
        (1, 1444, bytes(17)),
        (1, 65001, b""),
    ],
)
def test_misuse(size: int, datagram_size: int, prefix: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        writer().write(memoryview(bytes(size)), 0, datagram_size, prefix)


def test_writers_share_buffers_and_what_they_wrote_stays_right() -> None:
    shared = RecordBuffers()
    one = RecordWriter(KEY, "aes-256-gcm", RECEIVER, buffers=shared)
    other = RecordWriter(bytes(32), "aes-256-gcm", 9, buffers=shared)
    alone = writer()
    for counter, datagram_size in enumerate((1444, 600, 1444, *range(500, 530))):
        plain = memoryview(bytes([counter]) * 5000)
        prefix = b"relay header 16B" if counter % 2 else b""
        other.write(plain, counter, 1000, prefix)
        assert datagrams(one.write(plain, counter, datagram_size, prefix)) == datagrams(
            alone.write(plain, counter, datagram_size, prefix)
        )
