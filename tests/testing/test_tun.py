import os
import select

import pytest

from overlay.engine.features import Features
from overlay.engine.tun import MAX_FRAME, Tun
from overlay.testing import FakeTun, TunPacket

PACKET = b"\x45\x00" + bytes(98)
HEADER = bytes(range(10))


def test_packets_keep_their_borders_both_ways() -> None:
    with FakeTun() as tun:
        assert tun.written() == []
        tun.put(PACKET)
        tun.put(b"\x60" + bytes(65_534), HEADER)
        assert os.read(tun.fileno(), 70_000) == bytes(10) + PACKET
        assert os.read(tun.fileno(), 70_000) == HEADER + b"\x60" + bytes(65_534)
        os.write(tun.fileno(), HEADER + PACKET)
        os.writev(tun.fileno(), [HEADER, PACKET[:40], PACKET[40:]])
        assert tun.written() == [TunPacket(HEADER, PACKET)] * 2
        assert tun.written() == []


def test_an_event_loop_can_wait_for_it() -> None:
    with FakeTun() as tun, select.epoll() as epoll:
        epoll.register(tun.fileno(), select.EPOLLIN)
        assert epoll.poll(0) == []
        tun.put(PACKET)
        assert epoll.poll(0) == [(tun.fileno(), select.EPOLLIN)]


def test_without_offload_there_is_no_header() -> None:
    with FakeTun(offload=False) as tun:
        tun.put(PACKET)
        assert os.read(tun.fileno(), 2000) == PACKET
        os.write(tun.fileno(), PACKET)
        assert tun.written() == [TunPacket(b"", PACKET)]


def test_a_test_that_does_not_read_is_a_full_device() -> None:
    with FakeTun() as tun:
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                os.write(tun.fileno(), HEADER + PACKET)
        assert tun.written()
        os.write(tun.fileno(), HEADER + PACKET)


def test_a_header_of_the_wrong_size_is_a_mistake_of_the_test() -> None:
    with FakeTun() as tun, pytest.raises(ValueError, match="10 bytes"):
        tun.put(PACKET, b"short")


def test_after_close_nothing_comes() -> None:
    tun = FakeTun()
    tun.close()
    tun.close()
    with pytest.raises(OSError):
        tun.written()


def test_the_engine_takes_it_for_a_device() -> None:
    features = Features()
    with FakeTun() as fake:
        tun = Tun(fake, fake.name, features)
        buffer = bytearray(MAX_FRAME)
        assert tun.read(memoryview(buffer)) == 0
        fake.put(PACKET)
        size = tun.read(memoryview(buffer))
        assert buffer[:size] == len(PACKET).to_bytes(4, "little") + bytes(10) + PACKET
        assert tun.write(bytes(10) + PACKET) == ""
        assert fake.written() == [TunPacket(bytes(10), PACKET)]
