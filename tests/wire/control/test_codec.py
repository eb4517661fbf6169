"""Control messages as bytes: round trips, and room for newer peers."""

import msgspec
import pytest

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.control.codec import MAX_ENDPOINTS, decode_node_message, decode_server_message, encode
from overlay.wire.control.messages import (
    AddRecord,
    Attach,
    Attached,
    Done,
    Endpoints,
    Expose,
    Exposed,
    Exposure,
    Exposures,
    Failed,
    Hello,
    Leave,
    MapRecord,
    Message,
    Ping,
    Pong,
    Recorded,
    Refused,
    RemoveRecord,
    RequestEntry,
    Requests,
    SignedMap,
    Unexpose,
    Watch,
    Welcome,
)

ENTRY = RequestEntry(number=1, at=1.5, method="GET", path="/", status=200, took_ms=0.25, sent=5, source="2001:db8::1")
EXPOSURE = Exposure(id="x1", protocol="tcp", public="203.0.113.1:9000", target="tcp://127.0.0.1:8080", port=40000)
NODE_MESSAGES: list[Message] = [
    Hello(name="a", invite=b"\0\xff", endpoints=("192.0.2.1:41641", "[fe80::1]:41641"), map_version=3),
    Endpoints(lan=("192.0.2.1:1",), observed=("[2001:db8::1]:65535",)),
    Expose(seq=1, protocol="udp", public="9000", target="udp://127.0.0.1:53", port=40000),
    Expose(seq=1, protocol="http", host="docs.example.com/a", target="http://127.0.0.1:80", port=40000),
    Unexpose(seq=2, id="x1"),
    Watch(seq=3, id="x1", wanted=False),
    AddRecord(seq=3, name="api", rtype="A", value="192.0.2.1"),
    RemoveRecord(seq=4, name="api"),
    Ping(seq=3),
    Pong(seq=3),
    Leave(),
    Attach(),
]
SERVER_MESSAGES: list[Message] = [
    Welcome(
        number=2,
        name="a",
        addresses=("10.77.0.2", "fd00::2"),
        networks=("10.77.0.0/16", "fd00::/48"),
        domain="local.test",
        ticket=2**64 - 1,
        relays=("203.0.113.1:443",),
        map_key=bytes(32),
        exposures=(EXPOSURE,),
    ),
    Refused(code="invite-expired", message="The invite has expired."),
    SignedMap(body=b"{}", signature=bytes(64)),
    Exposed(seq=1, exposure=EXPOSURE),
    Exposures(exposures=(EXPOSURE,)),
    Requests(id="x1", entries=(ENTRY,)),
    Recorded(seq=3, record=MapRecord(name="api.local.test", rtype="A", value="192.0.2.1", node=2)),
    Done(seq=2),
    Failed(seq=3, code="port-taken", message="The port is taken."),
    Ping(seq=4),
    Pong(seq=4),
    Attached(),
]


@pytest.mark.parametrize("message", NODE_MESSAGES, ids=lambda message: type(message).__name__)
def test_what_a_node_sends_comes_back(message: Message) -> None:
    assert decode_node_message(encode(message)) == message


@pytest.mark.parametrize("message", SERVER_MESSAGES, ids=lambda message: type(message).__name__)
def test_what_the_server_sends_comes_back(message: Message) -> None:
    assert decode_server_message(encode(message)) == message


def test_what_only_the_other_side_sends_is_ignored() -> None:
    assert decode_server_message(encode(Leave())) is None
    assert decode_node_message(encode(Done(seq=1))) is None


def test_a_newer_peer_is_understood_as_far_as_it_can_be() -> None:
    assert decode_node_message(b'{"type":"teleport","where":{"x":1}}') is None
    assert decode_node_message(b'{"type":"ping","seq":7,"colour":[1,{"a":null}]}') == Ping(seq=7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"type":1}',
        b'{"type":"ping"}',
        b'{"type":"ping","seq":"1"}',
        b'{"type":"ping","seq":1} trailing',
        b'{"type":"hello","name":"\xff"}',
        b'{"type":"hello","name":"a","invite":"not base64!"}',
        b'{"type":"hello","name":"a","endpoints":["192.0.2.1"]}',
        b'{"type":"endpoints","lan":["example.org:80"]}',
        b'{"type":"ping","seq":1,"x":' + b"[" * 100_000,
        b"[" * 100_000,
    ],
)
def test_what_has_not_its_shape_is_the_peers_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_node_message(data)
    assert caught.value.reason == "bad_message"


def test_a_node_cannot_fill_everybodys_map_with_endpoints() -> None:
    many = tuple(f"192.0.2.1:{port}" for port in range(1, MAX_ENDPOINTS + 2))
    assert decode_node_message(encode(Endpoints(lan=many[1:]))) is not None
    with pytest.raises(RemoteProtocolError, match="bad_message"):
        decode_node_message(encode(Endpoints(lan=many)))


def test_only_control_messages_are_encoded() -> None:
    class Stranger(Message, frozen=True, kw_only=True, tag="stranger"):
        pass

    with pytest.raises(LocalProtocolError):
        encode(Stranger())


def test_secrets_are_base64_in_json() -> None:
    assert msgspec.json.decode(encode(Hello(name="a", invite=b"\0\xff")))["invite"] == "AP8="
