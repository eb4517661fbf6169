"""Invites and admission against a real registry: who gets in, under which name, and why not."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from overlay.errors import Exit, UserError
from overlay.node.interface import Machine
from overlay.server.admission import admit, known_ciphers
from overlay.server.founding import found
from overlay.server.invites import make_invite, secret_hash
from overlay.server.keys import ServerKeys
from overlay.server.registry import Registry
from overlay.server.schema import NodeRecord
from overlay.server.settings import ServerSettings
from overlay.wire.control.messages import Hello

KEYS = ServerKeys(node_key=b"\x08" * 31 + b"\x48", map_seed=b"m" * 32)
NOW = 1_764_000_000.0


class Book:
    """A registry with a network in it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def invite(self, uses: int = 1, expires_in: float = 86400.0, tags: tuple[str, ...] = ()) -> bytes:
        async with self.registry.transaction() as transaction:
            secret, expires = await make_invite(
                transaction, uses=uses, expires_in=expires_in, tags=tags, wall=NOW, random_bytes=os.urandom
            )
        assert expires == NOW + expires_in
        return secret

    async def admit(self, key: int, *, wall: float = NOW, **hello: Any) -> NodeRecord:
        (outcome,) = await self.admit_all([(key, hello)], wall=wall)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    async def admit_all(
        self, arrivals: list[tuple[int, dict[str, Any]]], *, wall: float = NOW
    ) -> list[NodeRecord | UserError]:
        """Together, in one transaction; what the registry has then is what came out."""
        hellos = [(bytes([key]) * 32, Hello(**{"name": "host", **hello})) for key, hello in arrivals]
        async with self.registry.transaction() as transaction:
            before = await transaction.nodes()
            outcomes = await admit(transaction, hellos, before, wall=wall, random_bytes=os.urandom)
        expected = {node.number: node for node in before}
        expected |= {outcome.number: outcome for outcome in outcomes if isinstance(outcome, NodeRecord)}
        async with self.registry.transaction() as transaction:
            assert await transaction.nodes() == sorted(expected.values(), key=lambda node: node.number)
        return outcomes

    async def refusal(self, key: int, **more: Any) -> UserError:
        with pytest.raises(UserError) as caught:
            await self.admit(key, **more)
        assert caught.value.exit_code is Exit.REFUSED
        assert caught.value.message.endswith(".") and caught.value.hint.endswith(".")
        return caught.value


def with_book(tmp_path: Path, test: Callable[[Book], Awaitable[None]], **settings: Any) -> None:
    async def machine() -> Machine:
        return Machine()

    async def main() -> None:
        registry = await Registry.open(tmp_path / "registry.sqlite")
        try:
            await found(
                registry,
                ServerSettings(state=str(tmp_path), **settings),
                KEYS,
                ciphers=("chacha20-poly1305",),
                machine=machine,
                wall=NOW,
            )
            await test(Book(registry))
        finally:
            await registry.close()

    anyio.run(main)


def test_a_node_registers_with_an_invite_and_stays_the_same(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        first = await book.admit(2, name="My Host.example.org", invite=await book.invite(tags=("lab",)))
        assert (first.number, first.host, first.name, first.tags) == (2, 2, "my-host", ("lab",))
        again = await book.admit(2, name="renamed-by-the-machine", wall=NOW + 10)
        assert (again.number, again.host, again.name, again.ticket) == (2, 2, "my-host", first.ticket)
        assert again.last_seen == NOW + 10
        other = await book.admit(3, name="my-host", invite=await book.invite())
        assert (other.number, other.host, other.name) == (3, 3, "my-host-2")
        assert other.ticket != first.ticket

    with_book(tmp_path, test)


def test_numbers_are_never_used_twice_and_addresses_rest(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        await book.admit(2, invite=await book.invite())
        async with book.registry.transaction() as transaction:
            await transaction.remove_node(2)
        error = await book.refusal(2)
        assert error.code == "not-registered"
        back = await book.admit(2, invite=await book.invite())
        assert (back.number, back.host) == (3, 3)

    with_book(tmp_path, test)


def test_each_wrong_invite_has_its_own_sentence(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        secret = await book.invite(uses=2, expires_in=100.0)
        await book.admit(2, invite=secret)
        expired = await book.refusal(4, invite=secret, wall=NOW + 100.0)
        await book.admit(3, invite=secret, wall=NOW + 99.0)
        used_up = await book.refusal(4, invite=secret)
        unknown = await book.refusal(4, invite=b"x" * 16)
        none = await book.refusal(4)
        codes = [error.code for error in (expired, used_up, unknown, none)]
        assert codes == ["invite-expired", "invite-used-up", "invite-unknown", "not-registered"]
        assert len({error.message for error in (expired, used_up, unknown, none)}) == 4
        assert "2 times" in used_up.message

    with_book(tmp_path, test)


def test_a_known_node_uses_no_invite_up(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        secret = await book.invite()
        await book.admit(2, invite=secret)
        await book.admit(2, invite=secret)
        fresh = await book.invite()
        await book.admit(2, invite=fresh)
        await book.admit(3, invite=fresh)

    with_book(tmp_path, test)


def test_a_refused_name_leaves_the_invite_as_it_was(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        secret = await book.invite()
        assert (await book.refusal(2, name="server", name_chosen=True, invite=secret)).code == "name-taken"
        assert (await book.refusal(2, name="no good", name_chosen=True, invite=secret)).code == "name-invalid"
        # Without an invite nobody learns which names there are.
        assert (await book.refusal(2, name="server", name_chosen=True)).code == "not-registered"
        assert (await book.admit(2, name="server", invite=secret)).name == "server-2"

    with_book(tmp_path, test)


def test_a_person_renames_a_node_and_an_administrator_overrules(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        secret = await book.invite(uses=2)
        await book.admit(2, name="a", name_chosen=True, invite=secret)
        await book.admit(3, name="b", name_chosen=True, invite=secret)
        assert (await book.refusal(2, name="b", name_chosen=True)).code == "name-taken"
        renamed = await book.admit(2, name="c", name_chosen=True)
        assert renamed.name == "c"
        async with book.registry.transaction() as transaction:
            await transaction.set_nodes([msgspec.structs.replace(renamed, name="d")])
        assert (await book.admit(2, name="c", name_chosen=True)).name == "d"  # the same wish as before
        assert (await book.admit(2, name="e", name_chosen=True)).name == "e"

    with_book(tmp_path, test)


def test_a_full_network_refuses(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        secret = await book.invite(uses=10)
        for key in range(2, 7):
            await book.admit(key, invite=secret)
        assert (await book.refusal(7, invite=secret)).code == "network-full"
        async with book.registry.transaction() as transaction:
            await transaction.remove_node(4)
        assert (await book.admit(7, invite=secret)).host == 4

    with_book(tmp_path, test, range="10.77.0.0/29")


def test_nodes_that_are_admitted_together_take_from_each_other(tmp_path: Path) -> None:
    async def test(book: Book) -> None:
        two, one = await book.invite(uses=2), await book.invite()
        await book.admit(2, name="a", name_chosen=True, invite=one)
        outcomes = await book.admit_all(
            [
                (3, {"invite": two}),
                (4, {"name": "a", "name_chosen": True, "invite": two}),  # taken: its use of the invite does not count
                (2, {"name": "b", "name_chosen": True}),
                (5, {"name": "a", "name_chosen": True, "invite": two}),  # free again since this moment
                (6, {"invite": two}),
                (7, {}),
            ]
        )
        said = [o.code if isinstance(o, UserError) else (o.number, o.host, o.name) for o in outcomes]
        assert said == [
            (3, 3, "host"),
            "name-taken",
            (2, 2, "b"),
            (4, 4, "a"),
            "invite-used-up",
            "not-registered",
        ]
        assert (await book.refusal(8, invite=two)).code == "invite-used-up"

    with_book(tmp_path, test)


def test_ciphers_are_those_that_are_known() -> None:
    assert known_ciphers(("rot13", "aes-256-gcm", "aes-256-gcm", "chacha20-poly1305")) == (
        "aes-256-gcm",
        "chacha20-poly1305",
    )
    assert known_ciphers(()) == known_ciphers(("rot13",)) == ("chacha20-poly1305",)


@pytest.mark.parametrize(
    ("uses", "expires_in", "tags"),
    [
        (0, 1.0, ()),
        (-1, 1.0, ()),
        (10**9, 1.0, ()),
        (1, 0.0, ()),
        (1, float("nan"), ()),
        (1, float("inf"), ()),
        (1, 1.0, ("",)),
        (1, 1.0, ("\n",)),
        (1, 1.0, ("x",) * 17),
        (1, 1.0, ("x" * 65,)),
    ],
)
def test_what_is_no_invite(tmp_path: Path, uses: int, expires_in: float, tags: tuple[str, ...]) -> None:
    async def test(book: Book) -> None:
        with pytest.raises(UserError) as caught:
            await book.invite(uses=uses, expires_in=expires_in, tags=tags)
        assert (caught.value.code, caught.value.exit_code) == ("invite-invalid", Exit.USAGE)

    with_book(tmp_path, test)


def test_secrets_are_not_in_the_registry_and_old_invites_are_forgotten(tmp_path: Path) -> None:
    made: list[bytes] = []

    async def test(book: Book) -> None:
        secret = await book.invite(expires_in=1.0)
        made.append(await book.invite())
        async with book.registry.transaction() as transaction:
            later = NOW + 31 * 86400.0
            await make_invite(transaction, uses=1, expires_in=1.0, tags=(), wall=later, random_bytes=os.urandom)
            assert await transaction.invites({secret_hash(secret)}) == {}

    with_book(tmp_path, test)
    for file in tmp_path.iterdir():
        assert not any(secret in file.read_bytes() for secret in made)
