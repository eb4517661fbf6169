"""What lies between a writer and a reader: datagrams, and batches as `UDP_GRO` makes them of their arrival."""

from collections.abc import Iterable, Sequence

from overlay.wire.record.buffers import Iovec
from overlay.wire.record.reader import RecordReader
from overlay.wire.record.writer import RecordWriter
from overlay.wire.wireguard.replay import ReplayWindow

KEY = bytes(range(32))
RECEIVER = 0x01020304


def writer(cipher: str = "aes-256-gcm") -> RecordWriter:
    return RecordWriter(KEY, "aes-256-gcm" if cipher == "aes-256-gcm" else "chacha20-poly1305", RECEIVER)


def reader(cipher: str = "aes-256-gcm") -> RecordReader:
    return RecordReader(KEY, "aes-256-gcm" if cipher == "aes-256-gcm" else "chacha20-poly1305", ReplayWindow())


def datagrams(written: Iterable[tuple[Iovec, int]]) -> list[bytes]:
    """What the kernel puts on the wire for what `write` returned."""
    sent: list[bytes] = []
    for iovec, segment in written:
        batch = b"".join(iovec)
        if segment == 0:
            sent.append(batch)
        else:
            sent += [batch[start : start + segment] for start in range(0, len(batch), segment)]
    return sent


def batches(arrived: Sequence[bytes], cuts: Sequence[int] = ()) -> list[tuple[memoryview, int]]:
    """Neighbours of one size, and at most one smaller behind them, as one batch; never past an index in `cuts`."""
    made: list[tuple[memoryview, int]] = []
    run: list[bytes] = []
    for index, datagram in enumerate(arrived):
        if run and (
            index in cuts or len(datagram) > len(run[0]) or len(run[-1]) < len(run[0]) or len(b"".join(run)) > 60000
        ):
            made.append((memoryview(b"".join(run)), len(run[0])))
            run = []
        run.append(datagram)
    if run:
        made.append((memoryview(b"".join(run)), len(run[0])))
    return made


def receive(
    reader: RecordReader, arrived: Sequence[bytes], *, offset: int = 0, cuts: Sequence[int] = (), now: float = 0.0
) -> list[bytes]:
    """All records that come out of the datagrams, in order."""
    return [
        bytes(plain)
        for batch, segment in batches(arrived, cuts)
        for plain in reader.receive(batch, segment, offset, now, multi=True)
    ]
