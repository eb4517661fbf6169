"""A target that the node does not reach: what its owner reads, and all others."""

import pytest

from overlay.wire.ingress.trouble import trouble_field

from .door import Served, Target, on_door

SENTENCE = "http://127.0.0.1:3000 is not reachable: connection refused"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [502, 504])
def test_the_owner_is_told_why_and_nobody_else(method: str, status: int) -> None:
    body = b"told by the node\n"

    async def node(target: Target) -> None:
        await target.head()
        head = f"HTTP/1.1 {status} X\r\n{trouble_field(SENTENCE)}\r\nContent-Length: {len(body)}\r\n\r\n"
        await target.say(head.encode() + (body if method == "GET" else b""))

    async def test(served: Served) -> None:
        request = f"{method} / HTTP/1.1\r\nHost: site.test\r\n\r\n".encode()
        for near in (False, True):
            served.site.is_near = lambda source, near=near: near and source == "127.0.0.1"  # type: ignore[misc]
            answer = await (await served.user()).ask(request)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert (b"connection refused" in answer) == (near and method == "GET")
            assert b"told by the node" not in answer and b"overlay-trouble" not in answer.lower()
        assert [entry.status for entry in served.site.log] == [status] * 2
        assert served.drops == {"target_unreachable": 2}

    on_door(node, test)
