"""UDP sockets on loopback, with kernels that refuse one thing after the other."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.features import Features
from overlay.engine.msghdr import UDP_GRO, UDP_SEGMENT
from overlay.engine.outbox import MAX_WAITING, Outbox
from overlay.engine.udp import (
    IP_MTU_DISCOVER,
    PMTUDISC_DONT,
    PMTUDISC_PROBE,
    UdpSocket,
    UdpSockets,
    datagrams,
    open_udp,
)
from overlay.errors import UserError

Refusal = Callable[[str, tuple[Any, ...]], int]


class ReluctantSocket(socket.socket):
    """A real socket in front of which a kernel stands that refuses some calls: `refusal(call, arguments)` gives an
    error number, or 0."""

    refusal: Refusal = staticmethod(lambda call, arguments: 0)

    def _ask(self, call: str, *arguments: Any) -> None:
        number = type(self).refusal(call, arguments)
        if number:
            raise OSError(number, os.strerror(number))

    def setsockopt(self, *arguments: Any) -> None:
        self._ask("setsockopt", *arguments)
        super().setsockopt(*arguments)

    def getsockopt(self, *arguments: Any) -> Any:
        self._ask("getsockopt", *arguments)
        return super().getsockopt(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        self._ask("sendmsg", *arguments)
        return super().sendmsg(*arguments)

    def sendto(self, *arguments: Any) -> int:
        self._ask("sendto", *arguments)
        return super().sendto(*arguments)

    def bind(self, *arguments: Any) -> None:
        self._ask("bind", *arguments)
        super().bind(*arguments)


def reluctant(refusal: Refusal) -> Callable[[socket.AddressFamily], socket.socket]:
    class Bound(ReluctantSocket):
        pass

    Bound.refusal = staticmethod(refusal)
    return lambda family: Bound(family, socket.SOCK_DGRAM)


@pytest.fixture
def receiver() -> Iterator[UdpSockets]:
    sockets = open_udp(0, Features())
    yield sockets
    sockets.close()


def received(sock: UdpSocket) -> list[bytes]:
    """All that is there, as datagrams."""
    found: list[bytes] = []
    while (run := sock.receive()) is not None:
        found += datagrams([bytes(run.joined())], run.segment)
    return found


def send_run(sockets: UdpSockets, receiver: UdpSockets, count: int = 5) -> tuple[str, list[bytes]]:
    parts = [bytes([index]) * 1000 for index in range(count)] + [b"tail"]
    outcome = sockets.send([b"".join(parts)], 1000, ("127.0.0.1", receiver.port))
    return outcome, parts


def test_a_run_arrives_as_a_run(receiver: UdpSockets) -> None:
    sender = open_udp(0, Features())
    outcome, parts = send_run(sender, receiver, 40)
    assert outcome == ""
    run = receiver.ipv4.receive()
    if receiver.features.udp_gro and sender.features.udp_gso:
        assert run is not None
        assert (run.size, run.segment, run.source) == (40_004, 1000, ("127.0.0.1", sender.port))
        assert run.joined() == b"".join(parts)
    assert receiver.ipv4.receive() is None
    sender.close()


def test_both_families_share_a_port(receiver: UdpSockets) -> None:
    if receiver.ipv6 is None:
        pytest.skip("this machine has no IPv6")
    sender = open_udp(0, Features())
    assert sender.send([b"six"], 0, ("::1", receiver.port)) == ""
    run = receiver.ipv6.receive()
    assert run is not None
    assert (bytes(run.joined()), run.segment, run.source) == (b"six", 3, ("::1", sender.port))
    assert receiver.ipv4.receive() is None
    sender.close()


def refuse_option(*options: int) -> Refusal:
    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        return errno.ENOPROTOOPT if call in ("setsockopt", "getsockopt") and arguments[1] in options else 0

    return refusal


def test_without_segmentation_datagrams_go_one_by_one(receiver: UdpSockets) -> None:
    sender = open_udp(0, Features(), reluctant(refuse_option(UDP_SEGMENT)))
    assert not sender.features.udp_gso
    outcome, parts = send_run(sender, receiver)
    assert outcome == ""
    assert received(receiver.ipv4) == parts
    sender.close()


def test_without_receive_offload_datagrams_come_one_by_one() -> None:
    plain = open_udp(0, Features(), reluctant(refuse_option(UDP_GRO)))
    sender = open_udp(0, Features())
    assert not plain.features.udp_gro
    _, parts = send_run(sender, plain)
    assert received(plain.ipv4) == parts
    plain.close()
    sender.close()


def test_without_the_right_to_large_buffers_the_allowed_ones_do(receiver: UdpSockets) -> None:
    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        return errno.EPERM if call == "setsockopt" and arguments[1] in (32, 33) else 0

    sender = open_udp(0, Features(), reluctant(refusal))
    assert not sender.features.udp_buffers
    assert send_run(sender, receiver)[0] == ""
    sender.close()


@pytest.mark.parametrize("stage", ["socket", "bind"])
def test_without_ipv6_there_is_ipv4(stage: str, receiver: UdpSockets) -> None:
    def make(family: socket.AddressFamily) -> socket.socket:
        if family == socket.AF_INET6 and stage == "socket":
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        refusal: Refusal = lambda call, arguments: (  # noqa: E731
            errno.EADDRNOTAVAIL if call == "bind" and arguments[0][0] == "::" else 0
        )
        return reluctant(refusal)(family)

    sender = open_udp(0, Features(), make)
    assert not sender.features.udp_ipv6
    assert sender.send([b"x"], 0, ("::1", receiver.port)) == drops.SEND_NO_FAMILY
    assert sender.send([b"x"], 0, ("127.0.0.1", receiver.port)) == ""
    sender.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_kernel_that_refuses_a_run_gets_single_datagrams_from_then_on(number: int, receiver: UdpSockets) -> None:
    refused: list[int] = []

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call == "sendmsg" and arguments[1]:
            refused.append(number)
            return number
        return 0

    sender = open_udp(0, Features(), reluctant(refusal))
    for _ in range(2):
        outcome, parts = send_run(sender, receiver)
        assert outcome == ""
        assert received(receiver.ipv4) == parts
    assert refused == [number]
    assert not sender.features.udp_gso
    sender.close()


def test_a_segment_too_long_for_the_path_does_not_cost_the_offload(receiver: UdpSockets) -> None:
    """Older kernels say EINVAL for it; the single datagrams then tell."""

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call == "sendmsg" and arguments[1]:
            return errno.EINVAL
        return errno.EMSGSIZE if call == "sendto" else 0

    sender = open_udp(0, Features(), reluctant(refusal))
    assert send_run(sender, receiver)[0] == drops.SEND_TOO_LONG
    assert sender.features.udp_gso
    sender.close()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, drops.SEND_BLOCKED),
        (errno.ENOBUFS, drops.SEND_NO_BUFFERS),
        (errno.EMSGSIZE, drops.SEND_TOO_LONG),
        (errno.ENETUNREACH, drops.SEND_UNREACHABLE),
        (errno.EHOSTUNREACH, drops.SEND_UNREACHABLE),
        (errno.ENETDOWN, drops.SEND_UNREACHABLE),
        (errno.EPERM, drops.SEND_UNREACHABLE),
        (errno.EINVAL, drops.SEND_REFUSED),
    ],
)
def test_every_error_of_a_send_is_a_reason(number: int, reason: str, receiver: UdpSockets) -> None:
    sender = open_udp(0, Features(), reluctant(lambda call, arguments: number if call == "sendmsg" else 0))
    assert sender.send([b"x"], 0, ("127.0.0.1", receiver.port)) == reason
    sender.close()


def test_a_datagram_above_the_path_mtu_is_refused_and_ip_may_fragment_it(receiver: UdpSockets) -> None:
    sender = open_udp(0, Features())
    endpoint = ("127.0.0.1", receiver.port)
    limit = 65_507 if sender.send([bytes(65_507)], 0, endpoint) == "" else 0
    assert limit
    assert sender.send([bytes(65_508)], 0, endpoint) == drops.SEND_TOO_LONG
    assert sender.ipv4.send_fragmented([b"ab" * 100], 100, endpoint) == ""
    found = received(receiver.ipv4)
    assert found[-2:] == [b"ab" * 50] * 2
    sender.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
def test_a_run_that_is_not_fragmented_as_one_goes_one_by_one(number: int, receiver: UdpSockets) -> None:
    """Nor is segmentation offload given up for that."""
    refusal: Refusal = lambda call, arguments: number if call == "sendmsg" and arguments[1] else 0  # noqa: E731
    sender = open_udp(0, Features(), reluctant(refusal))
    assert sender.ipv4.send_fragmented([b"ab" * 100], 100, ("127.0.0.1", receiver.port)) == ""
    assert received(receiver.ipv4)[-2:] == [b"ab" * 50] * 2
    assert sender.ipv4.features.udp_gso
    sender.close()


def test_what_waits_for_a_full_socket_may_be_fragmented_later_as_well(receiver: UdpSockets) -> None:
    full = [True]
    modes: list[int] = []

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call == "setsockopt" and arguments[:2] == (socket.IPPROTO_IP, IP_MTU_DISCOVER):
            modes.append(arguments[2])
        return errno.EAGAIN if call in ("sendmsg", "sendto") and full[0] else 0

    sender = open_udp(0, Features(udp_ipv6=False), reluctant(refusal))
    outbox = Outbox(sender, Drops())
    endpoint = ("127.0.0.1", receiver.port)
    assert outbox.send_fragmented([b"first"], 0, endpoint, 0) == ""
    assert outbox.send([b"second"], 0, endpoint) == ""
    assert outbox.send_fragmented([b"third"], 0, endpoint, 0) == ""
    assert outbox.blocked
    full[0] = False
    modes.clear()
    outbox.flush(sender.ipv4)
    assert received(receiver.ipv4) == [b"first", b"second", b"third"]
    assert modes == [PMTUDISC_DONT, PMTUDISC_PROBE] * 2
    sender.close()


def test_a_port_in_use_and_one_not_permitted_are_said(receiver: UdpSockets) -> None:
    with pytest.raises(UserError) as taken:
        open_udp(receiver.port, Features())
    assert taken.value.code == "port-taken"
    with pytest.raises(UserError) as refused:
        open_udp(443, Features(), reluctant(lambda call, arguments: errno.EACCES if call == "bind" else 0))
    assert refused.value.code == "port-not-permitted"
    with pytest.raises(UserError) as failed:
        open_udp(443, Features(), reluctant(lambda call, arguments: errno.ENOMEM if call == "bind" else 0))
    assert failed.value.code == "udp-failed"


def test_a_port_that_is_free_in_one_family_only_is_not_picked(receiver: UdpSockets) -> None:
    if receiver.ipv6 is None:
        pytest.skip("this machine has no IPv6")
    attempts: list[int] = []

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call == "bind" and arguments[0][0] == "::":
            attempts.append(arguments[0][1])
            return errno.EADDRINUSE if len(attempts) < 3 else 0
        return 0

    sockets = open_udp(0, Features(), reluctant(refusal))
    assert len(attempts) == 3
    assert sockets.port == attempts[-1]
    sockets.close()


# --- the queue behind a full socket -----------------------------------------------------------------------------------


def is_blocked(outbox: Outbox) -> bool:
    return outbox.blocked


def test_what_finds_the_socket_full_waits_and_goes_in_order(receiver: UdpSockets) -> None:
    full = [True]
    sender = open_udp(
        0, Features(), reluctant(lambda call, arguments: errno.EAGAIN if call == "sendmsg" and full[0] else 0)
    )
    outbox = Outbox(sender, Drops())
    endpoint = ("127.0.0.1", receiver.port)
    scratch = bytearray(b"one")
    assert outbox.send([scratch], 0, endpoint) == ""
    scratch[:] = b"xxx"  # the caller's buffer is used again at once
    assert is_blocked(outbox)
    full[0] = False
    assert outbox.send([b"two"], 0, endpoint) == ""
    assert outbox.waiting(sender.ipv4)
    assert received(receiver.ipv4) == []
    outbox.flush(sender.ipv4)
    assert not is_blocked(outbox)
    assert received(receiver.ipv4) == [b"one", b"two"]
    sender.close()


def test_the_queue_is_bounded_and_a_flush_that_fails_keeps_the_rest(receiver: UdpSockets) -> None:
    answer = [errno.EAGAIN]
    counted = Drops()
    sender = open_udp(0, Features(), reluctant(lambda call, arguments: answer[0] if call == "sendmsg" else 0))
    outbox = Outbox(sender, counted)
    endpoint = ("127.0.0.1", receiver.port)
    run = bytes(60_000)
    outcomes = [outbox.send([run], 0, endpoint) for _ in range(MAX_WAITING // len(run) + 1)]
    assert outcomes[-1] == drops.SEND_BLOCKED
    assert set(outcomes[:-1]) == {""}
    outbox.flush(sender.ipv4)
    assert is_blocked(outbox)
    answer[0] = errno.ENETUNREACH
    outbox.flush(sender.ipv4)
    assert not is_blocked(outbox)
    assert counted.counts == {"send_unreachable": MAX_WAITING // len(run)}
    sender.close()
