"""Proof against another implementation: the peer is Debian's `wireguard-go`, driven by `wg`."""

import base64
import contextlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.wire.wireguard.primitives import hash_, mac
from tests.lab.engines import EngineHost, Key, ping, transfer, wait_for_ping
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.tcp import set_timestamps, tcp_errors
from tests.lab.wireguard import WireGuardGo, is_controllable

pytestmark = pytest.mark.lab

OURS, THEIRS = "10.9.0.2", "10.9.0.3"
OURS6, THEIRS6 = "fd00:9::2", "fd00:9::3"
OUR_HOST, THEIR_HOST = "198.51.100.1", "198.51.100.2"
OUR_PORT, THEIR_PORT = 41641, 51820


class Pair:
    """Our engine in one namespace, wireguard-go in the other. Who has the other's endpoint initiates."""

    def __init__(self, lab: Lab, *, initiator: str, preshared_key: bytes | None) -> None:
        self.initiator = initiator
        self.preshared_key = preshared_key
        self.a, self.b = lab.namespace("a"), lab.namespace("b")
        lab.link(self.a, f"{OUR_HOST}/24", self.b, f"{THEIR_HOST}/24")
        self.our_key, self.their_key = Key(), Key()
        options = ["--mtu", "1420"]
        self.engine = EngineHost(
            self.a, self.our_key, 2, port=OUR_PORT, addresses=[f"{OURS}/24", f"{OURS6}/64"], options=options
        )
        self.wireguard = WireGuardGo(
            self.b, self.their_key, port=THEIR_PORT, addresses=[f"{THEIRS}/24", f"{THEIRS6}/64"]
        )
        secret = base64.b64encode(preshared_key).decode() if preshared_key else None
        self.engine.peer(
            self.their_key,
            3,
            [f"{THEIRS}/32", f"{THEIRS6}/128"],
            [(THEIR_HOST, THEIR_PORT)] if initiator == "ours" else [],
            transport="wireguard",
            preshared_key=secret,
        )
        self.add_to_wireguard()

    def add_to_wireguard(self) -> None:
        endpoint = f"{OUR_HOST}:{OUR_PORT}" if self.initiator == "theirs" else ""
        self.wireguard.peer(
            self.our_key, [f"{OURS}/32", f"{OURS6}/128"], endpoint=endpoint, preshared_key=self.preshared_key
        )

    def completed(self) -> int:
        return len([event for event in self.engine.events if event["name"] == "HandshakeCompleted"])

    def talk(self) -> None:
        """The first packet comes from the initiator, then both ways in both families."""
        if self.initiator == "ours":
            assert ping(self.a, THEIRS)
        else:
            assert ping(self.b, OURS)
        assert ping(self.a, THEIRS6)
        assert ping(self.b, OURS6)

    def check_clean(self) -> None:
        assert "internal_error" not in self.engine.inspect()["drops"], self.engine.log()
        assert self.engine.stop()["failed"] == []


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
@pytest.mark.parametrize("with_psk", [False, True], ids=["no psk", "psk"])
def test_ping_tcp_and_a_forced_rekey(lab: Lab, initiator: str, with_psk: bool) -> None:
    pair = Pair(lab, initiator=initiator, preshared_key=os.urandom(32) if with_psk else None)
    pair.talk()
    for sender, receiver, address in ((pair.a, pair.b, THEIRS), (pair.b, pair.a, OURS6)):
        sent, received = transfer(sender, receiver, address)
        assert sent == received

    before, handshake = pair.completed(), pair.wireguard.latest_handshake(pair.our_key)
    assert before >= 1
    # No handshake message is sent within 5 s of the last, on either side.
    wait_for(lambda: pair.engine.inspect()["peers"][0]["last_handshake"] > 5.0, "an old key on our side")
    wait_for(lambda: time.time() - pair.wireguard.latest_handshake(pair.our_key) > 6.0, "an old key on the other side")

    def rekey() -> None:
        if initiator == "ours":
            pair.engine.order("rekey", number=3)
        else:
            # wireguard-go has no command for it; a peer that was removed and added again has to start anew.
            pair.wireguard.remove_peer(pair.our_key)
            pair.add_to_wireguard()

    sent, received = transfer(pair.b, pair.a, OURS, 20_000_000, during=rekey)
    assert sent == received
    wait_for(lambda: pair.completed() > before, "a new key on our side")
    wait_for(lambda: pair.wireguard.latest_handshake(pair.our_key) > handshake, "a new key on wireguard-go's side")
    pair.talk()
    pair.check_clean()


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "no timestamps"])
def test_superpackets_cut_for_it_are_what_was_sent(lab: Lab, timestamps: bool) -> None:
    pair = Pair(lab, initiator="ours", preshared_key=None)
    pair.talk()
    set_timestamps(pair.a, pair.b, on=timestamps)
    for sender, receiver, address in (
        (pair.a, pair.b, THEIRS),
        (pair.a, pair.b, THEIRS6),
        (pair.b, pair.a, OURS),
        (pair.b, pair.a, OURS6),
    ):
        sent, received = transfer(sender, receiver, address, 20_000_000)
        assert sent == received
    for machine in (pair.a, pair.b):
        assert tcp_errors(machine) == 0
    assert not {"bad_tag", "tun_refused", "bad_ip_length", "bad_offload"} & set(pair.engine.inspect()["drops"])
    pair.check_clean()


def test_it_follows_us_when_we_move_and_we_follow_it(lab: Lab) -> None:
    pair = Pair(lab, initiator="ours", preshared_key=None)
    pair.talk()
    pair.a.address("eth0", "198.51.100.11/24")
    pair.b.run(["wg", "set", pair.wireguard.interface, "listen-port", "51821"])
    assert ping(pair.b, OURS)
    wait_for(
        lambda: pair.engine.inspect()["peers"][0]["path"]["endpoint"] == [THEIR_HOST, 51821], "the engine to follow"
    )
    assert ping(pair.a, THEIRS)
    assert pair.wireguard.endpoint(pair.our_key).endswith(f":{OUR_PORT}")
    pair.check_clean()


def test_a_wrong_preshared_key_lets_nothing_through(lab: Lab) -> None:
    pair = Pair(lab, initiator="ours", preshared_key=os.urandom(32))
    pair.wireguard.peer(pair.our_key, [f"{OURS}/32"], preshared_key=os.urandom(32))
    assert not ping(pair.a, THEIRS, 2)
    assert pair.completed() == 0
    assert pair.wireguard.latest_handshake(pair.our_key) == 0
    pair.check_clean()


# --- load -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flood(
    namespace: Namespace, receiver: Key, host: str, port: int, *, burst: int, bursts: int = 150
) -> Iterator[None]:
    """Initiations with a right mac1 and nothing else right, in bursts: 0.1 s apart, `bursts` of them at most."""
    mac1_key = hash_(b"mac1----", receiver.public)
    with namespace.enter():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    over = threading.Event()

    def send() -> None:
        for number in range(bursts):
            for index in range(burst):
                body = struct.pack("<II", 1, number << 16 | index) + os.urandom(108)
                with contextlib.suppress(BlockingIOError):
                    sender.sendto(body + mac(mac1_key, body) + bytes(16), (host, port))
            if over.wait(0.1):
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sender.close()


class Sighting:
    """`tcpdump` in a namespace that ends at the first datagram that matches."""

    def __init__(self, namespace: Namespace, expression: str) -> None:
        self.process = namespace.popen(
            ["tcpdump", "-i", "eth0", "-n", "-c", "1", "-U", "--immediate-mode", expression],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "listening on" in line:
                return

    def seen(self) -> bool:
        return self.process.poll() == 0


COOKIE_REPLY = "udp[8:4] = 0x03000000 and udp[4:2] = 72"
INITIATION_WITH_MAC2 = "udp[8:4] = 0x01000000 and udp[140:4] != 0"


def test_cookies_while_wireguard_go_is_under_load(lab: Lab) -> None:
    """It counts as loaded with 128 initiations in its queue, for a second after."""
    pair = Pair(lab, initiator="ours", preshared_key=None)
    reply = Sighting(pair.b, f"udp src port {THEIR_PORT} and dst port {OUR_PORT} and {COOKIE_REPLY}")
    proof = Sighting(pair.b, f"udp src port {OUR_PORT} and dst port {THEIR_PORT} and {INITIATION_WITH_MAC2}")
    loaded = Sighting(pair.b, f"udp src port {THEIR_PORT} and {COOKIE_REPLY}")
    with flood(pair.a, pair.their_key, THEIR_HOST, THEIR_PORT, burst=700):
        wait_for(loaded.seen, "load")
        wait_for_ping(pair.a, THEIRS, 20)
    wait_for(reply.seen, "a cookie reply", 3)
    wait_for(proof.seen, "an initiation with mac2", 3)
    pair.talk()
    pair.check_clean()


def test_cookies_while_our_engine_is_under_load(lab: Lab) -> None:
    """It counts as loaded with 128 handshake messages within a second."""
    pair = Pair(lab, initiator="theirs", preshared_key=None)
    reply = Sighting(pair.a, f"udp src port {OUR_PORT} and dst port {THEIR_PORT} and {COOKIE_REPLY}")
    proof = Sighting(pair.a, f"udp src port {THEIR_PORT} and dst port {OUR_PORT} and {INITIATION_WITH_MAC2}")
    with flood(pair.b, pair.our_key, OUR_HOST, OUR_PORT, burst=60):
        wait_for(lambda: pair.engine.inspect()["drops"].get("under_load", 0) > 50, "load")
        wait_for_ping(pair.b, OURS, 20)
    wait_for(reply.seen, "a cookie reply", 3)
    wait_for(proof.seen, "an initiation with mac2", 3)
    pair.talk()
    pair.check_clean()


def test_a_control_socket_that_is_only_bound_is_not_asked(tmp_path: Path) -> None:
    """`wg` would remove it."""
    (tmp_path / "wireguard").mkdir()
    with Lab() as lab:
        machine = lab.namespace("a")
        with machine.enter(), socket.socket(socket.AF_UNIX) as control:
            control.bind(f"{tmp_path}/wireguard//wg0.sock")  # as boringtun names it
            assert not is_controllable(machine, "wg0")
            control.listen()
            assert is_controllable(machine, "wg0")
            assert not is_controllable(machine, "g0")
