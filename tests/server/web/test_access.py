"""Who may use a site: requests that are let in, and those that are not, through the web's door."""

import anyio

from overlay.server.access.bandwidth import BURST
from overlay.wire.control.terms import Access, Headers, Limits, Terms
from overlay.wire.credentials import digest_of

from .door import Served, Target, on_door
from .test_door import CLOSE, GET, POST, hello, ok


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


def test_whom_new_terms_shut_out_is_cut_off() -> None:
    """Also one who came by an upgrade, and would ask nothing more."""

    async def target(target: Target) -> None:
        await target.head()
        await target.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        await target.exactly(1)

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        assert (await user.head()).startswith(b"HTTP/1.1 101 ")
        served.site.gate.terms = Terms(access=Access(deny=("192.0.2.0/24",)))
        served.site.cut_off_those_shut_out()
        assert served.site.connections == 1
        served.site.gate.terms = Terms(access=Access(deny=("127.0.0.1",)))
        served.site.cut_off_those_shut_out()
        assert await user.rest() == b"" and served.site.connections == 0

    on_door(target, test)


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
        await (await served.user()).ask(GET.replace(b"/ ", b"/?a=1&overlay-link=secret&b=2 "))
        assert [(entry.status, entry.path) for entry in served.site.log if entry.status != 101] == [
            (401, "/"),
            (200, "/"),
            (401, "/"),
            (401, "/?a=1&overlay-link=…&b=2"),
        ]
        assert served.drops == {"no_credentials": 3}

    on_door(target, test)


def test_rates_of_requests_and_connections() -> None:
    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(limits=Limits(request_rate="2/h"))
        user = await served.user()
        for _ in range(2):
            await user.say(GET)
            assert (await user.head()).startswith(b"HTTP/1.1 200 ")
            await user.exactly(len(b"GET / HTTP/1.1"))
        answer = await user.ask(GET)
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n") and b"\r\nRetry-After: 1800\r\n" in answer
        served.site.gate.terms = Terms(limits=Limits(connection_rate="1/d"))
        user = await served.user()
        for _ in range(3):  # one connection may ask as often as it likes
            await user.say(GET)
            assert (await user.head()).startswith(b"HTTP/1.1 200 ")
            await user.exactly(len(b"GET / HTTP/1.1"))
        assert (await (await served.user()).ask(GET)).startswith(b"HTTP/1.1 429 ")
        assert served.drops == {"request_rate": 1, "connection_rate": 1}

    on_door(hello, test)


def test_what_goes_through_is_counted_and_a_quota_answers() -> None:
    async def target(target: Target) -> None:
        await target.until(b"body")
        await target.say(ok(b"x" * 1000))

    async def test(served: Served) -> None:
        gate = served.site.gate
        await (await served.user()).ask(POST + b"Connection: close\r\nContent-Length: 4\r\n\r\nbody")
        assert 1100 < gate.meter.collect() < 1500 and gate.meter.collect() == 0
        gate.used_up, gate.opens_in = True, 9.5
        answer = await (await served.user()).ask(GET)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 10\r\n" in answer
        assert served.drops == {"quota_used_up": 1}

    on_door(target, test)


def test_a_bandwidth_holds_back_what_the_target_says() -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(ok(b"x" * 50_000))

    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(limits=Limits(bandwidth=200_000.0))
        began = anyio.current_time()
        await (await served.user()).ask(CLOSE)
        await (await served.user()).ask(CLOSE)
        assert anyio.current_time() - began >= 100_000 / 200_000 - BURST - 50_000 / 200_000  # never faster

    on_door(target, test)


def test_heads_as_a_person_wants_them() -> None:
    heads: list[bytes] = []

    async def target(target: Target) -> None:
        heads.append(await target.head())
        await target.say(ok(b"", b"Server: secret", b"X-Kept: 1"))

    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(
            headers=Headers(forwarded="remove", host="inner.test", request=("X-Key: k",), response_remove=("server",))
        )
        answer = await (await served.user()).ask(CLOSE)
        assert heads == [b"GET / HTTP/1.1\r\nHost: inner.test\r\nX-Key: k\r\n\r\n"]
        assert b"secret" not in answer and b"X-Kept: 1\r\n" in answer

    on_door(target, test)
