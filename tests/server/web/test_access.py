"""Who may use a site: requests that are let in, and those that are not, through the web's door."""

from overlay.wire.control.terms import Access, Terms
from overlay.wire.credentials import digest_of

from .door import Served, Target, on_door
from .test_door import CLOSE, GET, hello, ok


def test_lists_of_networks() -> None:
    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(access=Access(deny=("127.0.0.0/8",)))
        refused = await (await served.user()).ask(GET)
        assert refused.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"Connection: close" in refused
        served.site.gate.terms = Terms(access=Access(allow=("127.0.0.1",)))
        user = await served.user()
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 200 ")
        served.site.gate.terms = Terms(access=Access(allow=("192.0.2.0/24",)))  # for the next request already
        assert b"HTTP/1.1 403 " in await user.ask(CLOSE)
        assert served.connections == 1 and served.drops == {"source_refused": 2}

    on_door(hello, test)


def test_a_bearer_token_for_each_request_and_for_an_upgrade() -> None:
    heads: list[bytes] = []

    async def target(target: Target) -> None:
        while True:
            heads.append(await target.head())
            if b"\r\nUpgrade: " in heads[-1]:
                await target.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
                await target.say(await target.exactly(5))
            else:
                await target.say(ok(b"hello"))

    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(access=Access(bearers=(digest_of(b"token"),)))
        user = await served.user()
        refused = await user.ask(GET)
        assert refused.startswith(b"HTTP/1.1 401 ") and b'\r\nWWW-Authenticate: Bearer realm="' in refused
        user = await served.user()
        token = b"Authorization: Bearer token\r\n\r\n"
        await user.say(GET[:-2] + token)
        assert (await user.head()).startswith(b"HTTP/1.1 200 ") and await user.exactly(5) == b"hello"
        await user.say(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: echo\r\n" + token + b"12345")
        assert (await user.head()).startswith(b"HTTP/1.1 101 ") and await user.exactly(5) == b"12345"
        refused = await (await served.user()).ask(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 401 ")
        assert len(heads) == 2 and not any(b"uthorization" in head for head in heads)
        assert served.drops == {"no_credentials": 2}

    on_door(target, test)
