"""Private exposures at the server: who is let in, who hears of it, and when that ends."""

from pathlib import Path
from typing import Any

import pytest

from overlay.errors import UserError
from overlay.wire.control.messages import Admit, Connect, Message
from overlay.wire.control.terms import Access, Membership, Private, Terms
from overlay.wire.credentials import digest_of

from .leases import Bench, on_bench

TOKEN = "t0ken"
BY_TAG = Terms(private=Private(name="db", tags=("team", "ops")))
BY_TOKEN = Terms(private=Private(name="db", token=digest_of(TOKEN.encode())))


class Told:
    """What nodes hear, and the tags they have."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Message]] = []
        self.tags: dict[int, tuple[str, ...]] = {}

    async def tell(self, node: int, message: Message) -> bool:
        self.messages.append((node, message))
        return True

    def around(self) -> dict[str, Any]:
        return {
            "tell": self.tell,
            "tags_of": lambda number: self.tags.get(number, ()),
            "address_of": lambda number: f"10.77.0.{number}",
        }


async def refused(it: Bench, node: int, **request: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        await it.exposures.private.connect(node, Connect(**{"seq": 1, "name": "db", **request}))
    return caught.value


def test_who_has_a_tag_or_the_token_is_let_in_and_others_are_told_nothing(tmp_path: Path) -> None:
    told = Told()

    async def test(it: Bench) -> None:
        lease = await it.expose(2, port=4001, terms=BY_TAG)
        assert lease.public == "private: db" and it.exposures.status()[0]["url"] is None
        assert (await it.refusal(3, terms=BY_TOKEN)).code == "private-taken"
        stranger = await refused(it, 3)
        assert stranger.code == "private-unknown"
        nothing = await refused(it, 3, name="nothing")
        assert stranger.message.replace("db", "") == nothing.message.replace("nothing", "")
        assert (await refused(it, 3, token=TOKEN)).code == "private-unknown"
        told.tags[3] = ("ops",)
        answer = await it.exposures.private.connect(3, Connect(seq=7, name="DB"))
        assert (answer.seq, answer.node, answer.address, answer.port) == (7, "a", "10.77.0.2", 4001)
        assert told.messages == [(2, Admit(id=lease.id, address="10.77.0.3", seconds=answer.seconds))]
        # Who may come is somebody else now.
        await it.expose(2, id=lease.id, port=4001, terms=BY_TOKEN)
        assert told.messages[1:] == [(2, Admit(id=lease.id, address="10.77.0.3", seconds=0))]
        for token in ("", "wrong", TOKEN + "x", "x" * 10_000, "\udcff"):
            assert (await refused(it, 3, token=token)).code == "private-unknown"
        await it.exposures.private.connect(3, Connect(seq=1, name="db", token=TOKEN))
        await it.exposures.forget_node(3)
        assert told.messages[-1] == (2, Admit(id=lease.id, address="10.77.0.3", seconds=0)), (
            "its address may be another's"
        )
        await it.exposures.unexpose(2, lease.id)
        assert (await refused(it, 3, token=TOKEN)).code == "private-unknown"

    async def again(it: Bench) -> None:
        assert it.exposures.status() == []

    on_bench(tmp_path, test, again, tunnel=False, **told.around())


def test_who_may_still_reach_it_stays_when_its_terms_change(tmp_path: Path) -> None:
    told = Told()
    both = Private(name="db", tags=("team", "ops"), token=digest_of(TOKEN.encode()))

    async def test(it: Bench) -> None:
        lease = await it.expose(2, port=4001, terms=Terms(private=both))
        told.tags.update({3: ("team",), 4: ("ops",)})
        for node, token in ((3, ""), (4, TOKEN), (5, TOKEN)):
            await it.exposures.private.connect(node, Connect(seq=1, name="db", token=token))
        told.messages.clear()

        async def put_out(private: Private) -> list[str]:
            await it.expose(2, id=lease.id, port=4001, terms=Terms(private=private))
            gone = [message.address for _, message in told.messages if isinstance(message, Admit)]
            told.messages.clear()
            return gone

        assert await put_out(Private(name="db", tags=("team", "other"), token=both.token)) == ["10.77.0.4"]
        assert await put_out(Private(name="db", tags=("team",), token=digest_of(b"new"))) == ["10.77.0.5"]
        assert await put_out(Private(name="db", tags=("ops",), token=digest_of(b"new"))) == ["10.77.0.3"]

    on_bench(tmp_path, test, tunnel=False, **told.around())


def test_a_node_that_is_away_is_said_to_be_after_the_token_alone(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        await it.expose(2, terms=BY_TOKEN)
        it.online.discard(2)
        assert (await refused(it, 3)).code == "private-unknown"
        assert (await refused(it, 3, token=TOKEN)).code == "private-offline"

    async def kept(it: Bench) -> None:
        await it.exposures.private.connect(3, Connect(seq=1, name="db", token=TOKEN))

    on_bench(tmp_path, test, kept)


def test_what_cannot_be_private(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        lease = await it.expose(2, terms=BY_TAG)
        other = Terms(private=Private(name="other", tags=("team",)))
        assert (await it.refusal(2, id=lease.id, terms=other)).code == "private-fixed"
        wrong: tuple[dict[str, Any], ...] = (
            {"terms": other, "public": "9000"},
            {"terms": other, "known_as": ("www.example.org",)},
            {"terms": Terms(private=other.private, group=Membership(name="g"))},
            {"terms": Terms(private=other.private, access=Access(allow=("192.0.2.0/24",)))},
        )
        for each in wrong:
            assert (await it.refusal(2, **each)).code == "private-invalid"
        assert (await it.refusal(2, terms=other, tunnel="tls")).code == "no-tunnel"
        for private in (
            Private(name="no way", tags=("team",)),
            Private(name="nobody"),
            Private(name="x", token="plain"),
            Private(name="x", tags=("",)),
            Private(tags=("team",)),
        ):
            assert (await it.refusal(2, terms=Terms(private=private))).code == "terms-invalid"

    on_bench(tmp_path, test)
