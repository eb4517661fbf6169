"""Runs one engine in the namespace that it is started in, driven by JSON lines. A child process of the lab's tests.

In (standard input), one object per line: `{"do": "peer", …}` with the fields of `PeerConfig`, `relay`, `client`,
`remove_peer`, `remove_client`, `link`, `remove_link`, `link_changed`, `inspect`, `rekey`, `socket_option`, `blocked`,
`stop`. Out: `ready`, events, snapshots. Not part of the product: it sets addresses with the `ip` command, as a person
would by hand.
"""

import argparse
import base64
import json
import queue
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any

from overlay.engine import Engine, Features, api
from overlay.engine.loop import clock
from overlay.wire.record.buffers import SUPERPACKET_SIZE
from overlay.wire.record.fragments import INNER_MTU
from overlay.wire.stream.codec import Codec, Plain


@dataclass(frozen=True)
class Handed:
    """A connection for the engine."""

    socket: socket.socket
    codec: Codec
    received: bytes = b""


def _dial(order: dict[str, Any], own_number: int) -> api.Command:
    """A link to a relay that runs in another `engine_host`: in the place of a handshake stands our number."""
    stream = socket.create_connection((order["endpoint"][0], order["endpoint"][1]), timeout=10)
    stream.sendall(own_number.to_bytes(4, "little"))
    return api.AddLink(order["number"], Handed(stream, Plain()), None, "tcp")


def _accept(listener: socket.socket, engine: Engine) -> None:
    """The other end of `_dial`, for ever."""
    number = 0
    while True:
        stream, _ = listener.accept()
        number += 1
        client = int.from_bytes(stream.recv(4, socket.MSG_WAITALL), "little")
        engine.post(api.AddLink(number, Handed(stream, Plain()), client, "tcp"))


def _say(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}, default=str) + "\n")
    sys.stdout.flush()


def _peer(order: dict[str, Any]) -> api.PeerConfig:
    psk = order.get("preshared_key")
    return api.PeerConfig(
        number=order["number"],
        public_key=base64.b64decode(order["public_key"]),
        allowed=tuple(ip_network(text) for text in order["allowed"]),
        transport=order.get("transport", "record"),
        cipher=order.get("cipher", "chacha20-poly1305"),
        endpoints=tuple((host, port) for host, port in order.get("endpoints", [])),
        lan_endpoints=tuple((host, port) for host, port in order.get("lan_endpoints", [])),
        preshared_key=base64.b64decode(psk) if psk else None,
        persistent_keepalive=order.get("persistent_keepalive", 0.0),
    )


def _command(order: dict[str, Any]) -> api.Command:
    match order["do"]:
        case "peer":
            return api.SetPeer(_peer(order))
        case "remove_peer":
            return api.RemovePeer(order["number"])
        case "relay":
            endpoints = tuple((host, port) for host, port in order["endpoints"])
            return api.SetRelay(endpoints, order["number"], base64.b64decode(order["public_key"]), order["ticket"])
        case "client":
            return api.SetClient(order["number"], base64.b64decode(order["public_key"]), order["ticket"])
        case "remove_client":
            return api.RemoveClient(order["number"])
        case "remove_link":
            return api.RemoveLink(order["number"])
        case "link_changed":
            return api.LinkChanged()
        case "inspect":
            return api.Inspect(lambda snapshot: _say("snapshot", **asdict(snapshot)))
    raise ValueError(f"no such order: {order['do']}")


def _rekey(engine: Engine, number: int) -> api.Command:
    """Have the session with a peer ask for new keys, as it would by itself after two minutes.

    There is no such command; an inspection's reply runs on the engine thread, where the session may be touched.
    """

    def ask(snapshot: api.EngineSnapshot) -> None:
        loop = engine._loop
        assert loop is not None
        peer = loop._peers.by_number[number]
        peer.session.request_handshake(clock())
        loop._peers.touched.add(peer)

    return api.Inspect(ask)


def _socket_option(engine: Engine, level: int, name: int, value: int) -> api.Command:
    """Set an option of the UDP sockets that the product never sets, for the errors that it brings about."""

    def set_option(snapshot: api.EngineSnapshot) -> None:
        loop = engine._loop
        assert loop is not None
        loop._sockets.ipv4._socket.setsockopt(level, name, value)
        _say("done")

    return api.Inspect(set_option)


def _blocked(engine: Engine) -> api.Command:
    """Say whether the engine waits for room in a socket's buffer."""

    def say(snapshot: api.EngineSnapshot) -> None:
        loop = engine._loop
        assert loop is not None
        _say("blocked", blocked=loop._outbox.blocked)

    return api.Inspect(say)


def _special(engine: Engine, order: dict[str, Any]) -> api.Command:
    match order["do"]:
        case "link":
            return _dial(order, engine._config.number)
        case "rekey":
            return _rekey(engine, order["number"])
        case "socket_option":
            return _socket_option(engine, order["level"], order["name"], order["value"])
        case "blocked":
            return _blocked(engine)
    return _command(order)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interface", default="ov%d")
    parser.add_argument("--no-tun", action="store_true")
    parser.add_argument("--address", action="append", default=[])
    parser.add_argument("--mtu", type=int, default=INNER_MTU)
    parser.add_argument("--gso-max-size", type=int, default=SUPERPACKET_SIZE)
    parser.add_argument("--relay-clients", action="store_true")
    parser.add_argument("--relay-rate", type=float, default=0.0)
    parser.add_argument("--copy-dscp", action="store_true")
    parser.add_argument("--links-port", type=int, default=0)
    parser.add_argument("--without", action="append", default=[])
    options = parser.parse_args()

    failed: queue.Queue[BaseException] = queue.Queue()

    def on_event(event: api.Event) -> None:
        if isinstance(event, api.EngineFailed):
            failed.put(event.error)
            _say("event", name="EngineFailed", error=repr(event.error))
        else:
            _say("event", name=type(event).__name__, **asdict(event))

    engine = Engine(
        api.EngineConfig(
            private_key=base64.b64decode(options.key),
            number=options.number,
            interface=None if options.no_tun else options.interface,
            port=options.port,
            relay_clients=options.relay_clients,
            relay_rate=options.relay_rate,
            copy_dscp=options.copy_dscp,
        ),
        on_event,
        wanted=Features().without(options.without),
    )
    engine.start()
    if engine.interface is not None:
        for address in options.address:
            extra = ["nodad"] if ":" in address else []
            subprocess.run(["ip", "address", "add", address, "dev", engine.interface, *extra], check=True)
        link = ["ip", "link", "set", engine.interface, "mtu", str(options.mtu), "txqueuelen", "1000", "up"]
        link += ["gso_max_size", str(options.gso_max_size)]
        subprocess.run(link, check=True)
    if options.links_port:
        listener = socket.create_server(("0.0.0.0", options.links_port))
        threading.Thread(target=_accept, args=(listener, engine), daemon=True).start()
    _say("ready", interface=engine.interface, port=engine.port, threads=threading.active_count())
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "stop":
            break
        engine.post(_special(engine, order))
    engine.stop()
    _say("stopped", failed=[repr(failed.get()) for _ in range(failed.qsize())])


if __name__ == "__main__":
    main()
