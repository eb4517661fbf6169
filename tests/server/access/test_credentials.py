"""Passwords, tokens and secret links: what is let in, what is not, and what reaches the target of it."""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.server.access import credentials, passwords
from overlay.server.access.credentials import Asker, Credentials, Desk, Reply
from overlay.server.access.gate import Gate
from overlay.wire.control.terms import Access, Terms
from overlay.wire.credentials import digest_of, fits_password, hash_password, is_password_hash
from overlay.wire.ingress.http1 import RequestHead, parse_request

HASH = hash_password("geheim:ä".encode(), b"s" * 16)
FULL = Access(users=(f"anna:{HASH}",), bearers=(digest_of(b"one"), digest_of(b"two")), link=digest_of(b"LINK"))
ASKER = Asker("192.0.2.1", secure=True)


def request(*fields: str, target: str = "/a", method: str = "GET") -> RequestHead:
    return parse_request("\r\n".join((f"{method} {target} HTTP/1.1", "Host: site.test", *fields, "", "")).encode())


def basic(text: str) -> str:
    return "Authorization: Basic " + base64.b64encode(text.encode()).decode()


class Checked:
    """One exposure's, and how many passwords were computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, access: Access = FULL) -> None:
        self.computed: list[str] = []
        self.credentials = Credentials(access, "x1", "/docs/", Desk())

        def fits(encoded: str, password: bytes) -> bool:
            self.computed.append(encoded)
            return fits_password(encoded, password)

        monkeypatch.setattr(passwords, "fits_password", fits)

    async def admit(self, *fields: str, now: float = 0.0, asker: Asker = ASKER, **of: str) -> RequestHead | Reply:
        return await self.credentials.admit(request(*fields, **of), asker, now)

    async def status(self, *fields: str, now: float = 0.0, asker: Asker = ASKER, **of: str) -> int:
        """200: let in."""
        admitted = await self.admit(*fields, now=now, asker=asker, **of)
        return admitted.status if isinstance(admitted, Reply) else 200


def run(test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test)


def test_a_password_is_computed_once_and_does_not_reach_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch)

    async def test() -> None:
        for _ in range(3):
            admitted = await it.admit(basic("anna:geheim:ä"), "X-Other: kept")
            assert isinstance(admitted, RequestHead) and admitted.fields == ((b"X-Other", b"kept"),)
        assert it.computed == [HASH]
        assert await it.status(basic("anna:geheim:ä"), now=credentials.REMEMBERED_FOR + 1) == 200
        assert len(it.computed) == 2

    run(test)


def test_who_shows_nothing_or_the_wrong_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch)

    async def test() -> None:
        reply = await it.admit()
        assert isinstance(reply, Reply) and (reply.status, reply.reason) == (401, "no_credentials")
        assert reply.fields == (
            'WWW-Authenticate: Basic realm="x1", charset="UTF-8"',
            'WWW-Authenticate: Bearer realm="x1"',
        )
        for wrong in (
            basic("anna:wrong"),
            basic("otto:geheim:ä"),
            "Authorization: Basic !",
            "Authorization: Basic /w==",
            basic("anna:" + "x" * 1000),
            "Authorization: Bearer three",
            "Authorization: Digest x",
            "Cookie: overlay-x1=three",
        ):
            assert await it.status(wrong) == 401, wrong
        assert await it.status(basic("anna:geheim:ä"), basic("anna:geheim:ä")) == 401
        assert len(it.computed) == 2 and is_password_hash(it.computed[1])  # nobody costs as much as somebody
        assert it.computed[1] != HASH

    run(test)


@pytest.mark.parametrize(("password", "status"), [("geheim:ä", 200), ("wrong", 401)])
def test_many_requests_at_once_that_show_the_same_are_one_try(
    monkeypatch: pytest.MonkeyPatch, password: str, status: int
) -> None:
    """A browser asks for a page's parts by as many streams as it likes, also when what was good has to be looked at
    anew. And who sends the same wrong password again and again occupies no more threads."""
    it = Checked(monkeypatch, Access(users=(f"anna:{HASH}",)))
    found: list[int] = []

    async def ask(now: float) -> None:
        found.append(await it.status(basic(f"anna:{password}"), now=now))

    async def test() -> None:
        for number in range(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(3 * credentials.TRIES):
                    tasks.start_soon(ask, number * credentials.REMEMBERED_FOR)
        assert found == [status] * 6 * credentials.TRIES and len(it.computed) == 2

    run(test)


def test_who_is_cut_off_while_a_password_is_computed_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch, Access(users=(f"anna:{HASH}",)))
    looked = anyio.Event()

    async def fits(encoded: str | None, password: str) -> bool:
        looked.set()
        if not it.computed:
            it.computed.append("")
            await anyio.sleep_forever()
        return True

    monkeypatch.setattr(it.credentials._desk.passwords, "fits", fits)

    async def test() -> None:
        async with anyio.create_task_group() as tasks:
            first = anyio.CancelScope()

            async def ask() -> None:
                with first:
                    await it.status(basic("anna:geheim:ä"))

            async def ask_as_well() -> None:
                assert await it.status(basic("anna:geheim:ä")) == 200

            tasks.start_soon(ask)
            await looked.wait()
            tasks.start_soon(ask_as_well)
            await anyio.wait_all_tasks_blocked()
            first.cancel()

    run(test)


def test_tries_are_few_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch, Access(users=(f"anna:{HASH}",)))

    async def test() -> None:
        assert await it.status(basic("anna:geheim:ä")) == 200
        for number in range(credentials.TRIES):
            assert await it.status(basic(f"otto:{number}")) == 401
        reply = await it.admit(basic("otto:x"))
        assert isinstance(reply, Reply) and (reply.status, reply.fields) == (429, ("Retry-After: 7",))
        computed = len(it.computed)
        assert await it.status(basic("anna:geheim:ä")) == 200  # as before: who is in stays in
        assert len(it.computed) == computed == credentials.TRIES + 1
        assert await it.status(basic("otto:x"), asker=Asker("192.0.2.2", secure=True)) == 401
        assert await it.status(basic("otto:y"), now=6.1) == 401

    run(test)


def test_more_passwords_at_once_than_can_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MOST_WAITING", 1)
    it = Checked(monkeypatch)

    async def test() -> None:
        found: list[int] = []

        async def one(password: str) -> None:
            found.append(await it.status(basic(f"anna:{password}")))

        async with anyio.create_task_group() as tasks:
            for password in ("geheim:ä", *map(str, range(2 * credentials.TRIES))):
                tasks.start_soon(one, password)
        assert sorted(found) == [200, *[503] * 2 * credentials.TRIES]  # and none of these was a try

    run(test)


def test_bearer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch)

    async def test() -> None:
        for token in ("one", "two"):
            admitted = await it.admit(f"Authorization: bearer {token}")
            assert isinstance(admitted, RequestHead) and not admitted.fields

    run(test)


def test_a_secret_link_gives_a_cookie_and_leaves_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Checked(monkeypatch, Access(link=FULL.link))

    async def test() -> None:
        reply = await it.admit(target="/docs/?a=1&overlay-link=LINK&b=2")
        assert isinstance(reply, Reply) and (reply.status, reply.reason) == (303, "")
        assert reply.fields == (
            "Location: /docs/?a=1&b=2",
            "Set-Cookie: overlay-x1=LINK; Path=/docs; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure",
            "Referrer-Policy: no-referrer",
            "Cache-Control: no-store",
        )
        plain = await it.admit(target="/?overlay-link=LINK", asker=Asker("192.0.2.1", secure=False))
        assert isinstance(plain, Reply) and plain.fields[0] == "Location: /" and "Secure" not in plain.fields[1]
        for elsewhere in ("//evil.test/", "/\\evil.test/", "///evil.test/"):
            reply = await it.admit(target=f"{elsewhere}?overlay-link=LINK")
            assert isinstance(reply, Reply) and reply.fields[0] == "Location: /evil.test/"
        posted = await it.admit(target="/docs/?overlay-link=LINK", method="POST")
        assert isinstance(posted, RequestHead) and posted.target == b"/docs/"
        admitted = await it.admit("Cookie: a=b; overlay-x1=LINK; c=d", "Authorization: Bearer the-targets")
        assert isinstance(admitted, RequestHead)
        assert admitted.fields == ((b"Cookie", b"a=b; c=d"), (b"Authorization", b"Bearer the-targets"))
        alone = await it.admit("Cookie: overlay-x1=LINK")
        assert isinstance(alone, RequestHead) and not alone.fields
        # A link has no challenge to give.
        assert await it.status() == await it.status(target="/?overlay-link=other") == 403
        assert await it.status("Cookie: overlay-x2=LINK; overlay-x1=other") == 403

    run(test)


def test_no_link_s_cookie_reaches_any_target() -> None:
    """Those of all exposures under a name are sent to each of them: whoever is behind one must not get another's."""

    async def test() -> None:
        shown = request("Cookie: overlay-x7=SECRET; a=b", "Cookie: overlay-x12=OTHER", "X-Other: overlay-x7=1")
        kept = ((b"Cookie", b"a=b"), (b"X-Other", b"overlay-x7=1"))
        for access in (Access(), Access(bearers=FULL.bearers)):
            gate = Gate(Terms(access=access))
            bearer = ((b"Authorization", b"Bearer one"),) * bool(access.bearers)
            admitted = await gate.admit(replace(shown, fields=shown.fields + bearer), ASKER)
            assert isinstance(admitted, RequestHead) and admitted.fields == kept
        theirs = request("Cookie: overlay-x=1; overlay-xy=2; my-overlay-x1=3")
        assert await Gate().admit(theirs, ASKER) == theirs

    run(test)


_VALUES = st.text("abcBasicearer =;,:+/!\t%&?-overlay-x1link", max_size=40)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["Authorization", "Cookie", "cookie"]), _VALUES), max_size=4), _VALUES)
def test_whatever_is_shown_is_answered(fields: list[tuple[str, str]], query: str) -> None:
    async def main() -> None:
        checked = Credentials(Access(bearers=FULL.bearers, link=FULL.link), "x1", "/", Desk())
        target = "/?" + "".join(each for each in query if each not in " \t")
        shown = request(*(f"{name}: {value}" for name, value in fields), target=target)
        admitted = await checked.admit(shown, ASKER, 0.0)
        assert isinstance(admitted, Reply) and admitted.status == 401

    anyio.run(main)


@settings(max_examples=50)
@given(st.lists(_VALUES, max_size=4))
def test_cookies_of_others_reach_the_target(others: list[str]) -> None:
    async def main() -> None:
        checked = Credentials(Access(link=FULL.link), "x1", "/", Desk())
        theirs = [each.strip(" \t") for each in others if "overlay-x" not in each and ";" not in each]
        admitted = await checked.admit(request("Cookie: " + "; ".join(("overlay-x1=LINK", *theirs))), ASKER, 0.0)
        assert isinstance(admitted, RequestHead)
        kept = b"; ".join(value for _, value in admitted.fields).decode()
        assert [each.strip(" ") for each in kept.split(";")] == theirs or not theirs

    anyio.run(main)
