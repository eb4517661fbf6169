"""Control messages to bytes and back: JSON by msgspec, the class by the tag `type`. Pure functions without state.

Either side may be newer than the other: an unknown field is skipped by msgspec, an unknown type comes back as None.
What is of a known type but not of its shape is the peer's error.
"""

from typing import Final, TypeVar

import msgspec

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.control.messages import Endpoints, Hello, Message, NodeMessage, ServerMessage
from overlay.wire.endpoint import parse_endpoint

MAX_ENDPOINTS: Final = 64  # of a kind and a node; a host with more interfaces than that names its best ones

_T = TypeVar("_T", bound=Message)


class _Tag(msgspec.Struct, frozen=True):
    type: str


_encoder: Final = msgspec.json.Encoder()
_tag_decoder: Final = msgspec.json.Decoder(_Tag)
_node_decoder: Final = msgspec.json.Decoder(NodeMessage)
_server_decoder: Final = msgspec.json.Decoder(ServerMessage)


def _tags(*types: type[Message]) -> frozenset[str]:
    return frozenset(str(type_.__struct_config__.tag) for type_ in types)


_NODE_TAGS: Final = _tags(*NodeMessage.__args__)
_SERVER_TAGS: Final = _tags(*ServerMessage.__args__)


def encode(message: Message) -> bytes:
    """Raises `LocalProtocolError` for a message of neither side."""
    if message.__struct_config__.tag not in _NODE_TAGS | _SERVER_TAGS:
        raise LocalProtocolError(f"{type(message).__name__} is no control message")
    return _encoder.encode(message)


def decode_node_message(data: bytes) -> NodeMessage | None:
    """What a node sent. None: of a type that a node does not send, or that this version does not know.

    Endpoints in it parse, and are at most `MAX_ENDPOINTS` of a kind: they go into the map of every other node.
    Raises `RemoteProtocolError("bad_message")`.
    """
    message = _decode(data, _node_decoder, _NODE_TAGS)
    if isinstance(message, Hello):
        _check_endpoints(message.endpoints)
    elif isinstance(message, Endpoints):
        _check_endpoints(message.lan)
        _check_endpoints(message.observed)
    return message


def decode_server_message(data: bytes) -> ServerMessage | None:
    """What the server sent. None and errors as in `decode_node_message`."""
    return _decode(data, _server_decoder, _SERVER_TAGS)


def _decode(data: bytes, decoder: msgspec.json.Decoder[_T], known: frozenset[str]) -> _T | None:
    try:
        tag = _tag_decoder.decode(data).type
        return decoder.decode(data) if tag in known else None
    # UnicodeDecodeError: bad UTF-8 inside a string. RecursionError: deep nesting, also inside a field that is skipped.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError("bad_message", str(error)) from error


def _check_endpoints(texts: tuple[str, ...]) -> None:
    if len(texts) > MAX_ENDPOINTS:
        raise RemoteProtocolError("bad_message", f"{len(texts)} endpoints; the limit is {MAX_ENDPOINTS}")
    for text in texts:
        try:
            parse_endpoint(text)
        except ValueError as error:
            raise RemoteProtocolError("bad_message", str(error)) from error
