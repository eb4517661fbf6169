"""What files of exposures ask for and what there is made to agree, with the server of the tests beside."""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

import anyio
import msgspec
import pytest

from overlay.errors import UserError
from overlay.node.exposure_files import ExposureFiles, Outcome, rights_of
from overlay.node.status import ExposeWish
from overlay.wire.control.messages import Expose, Unexpose
from overlay.wire.control.terms import Limits, Terms
from tests.node.exposing import NODE, SERVER, Setup, ask, serving, shout, tcp_service

FILE = "/etc/e.toml"


class Files(Setup):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = ExposureFiles(self.state, self.exposures, lambda: self.now)
        self.lasts: dict[str, float] = {}

    async def apply(self, dry: bool = False, **entries: ExposeWish) -> Mapping[str, Outcome]:
        return {each.entry: each for each in await self.files.apply(FILE, entries, lasts=self.lasts, dry=dry)}

    async def actions(self, dry: bool = False, **entries: ExposeWish) -> dict[str, str]:
        outcomes = await self.apply(dry, **entries)
        assert not [each.error for each in outcomes.values() if each.error is not None]
        return {name: each.action for name, each in outcomes.items()}

    def ids(self) -> dict[str, str]:
        return {name: kept[0].range or kept[0].id for name, kept in self.exposures.declared(FILE).items()}

    def ports(self) -> list[tuple[str, str]]:
        return [(each.public.rpartition(":")[2], each.target.rpartition(":")[2]) for each in self.server.list()]


def wish(target: str = "1", **more: object) -> ExposeWish:
    return msgspec.convert({"target": target, **more}, ExposeWish)


def test_a_file_is_followed_entry_by_entry(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        web, db = wish(host="a.test"), wish("tcp://127.0.0.1:2", public="9000")
        async with serving(it.exposures):
            by_hand = await it.add("tcp://127.0.0.1:9", "9009")
            assert await it.actions(dry=True, web=web, db=db) == {"web": "added", "db": "added"}
            assert it.ids() == {}
            assert await it.actions(web=web, db=db) == {"web": "added", "db": "added"}
            before, asked = it.ids(), len(it.server.requests)
            assert await it.actions(web=web, db=db) == {"web": "kept", "db": "kept"}
            assert len(it.server.requests) == asked, "what stays as it is costs the server nothing"

            few = Terms(limits=Limits(connections=3))
            db = msgspec.structs.replace(db, target="tcp://127.0.0.1:3", terms=few)
            assert await it.actions(dry=True, web=web, db=db) == {"web": "kept", "db": "changed"}
            assert await it.actions(web=web, db=db) == {"web": "kept", "db": "changed"}
            assert it.ids() == before, "in its place"
            renewed = it.server.exposures[before["db"]]
            assert (renewed.target, renewed.terms) == ("tcp://127.0.0.1:3", few)

            web = msgspec.structs.replace(web, host="b.test")
            assert await it.actions(web=web) == {"web": "replaced", "db": "removed"}
            assert [each.url for each in it.server.list()] == ["", "https://b.test/"]
            assert [each.id for each in it.exposures.status() if each.entry is None] == [by_hand.id]

        again = it.make()
        assert await ExposureFiles(it.state, again).apply(FILE, {"web": web}, dry=False) == (
            Outcome(entry="web", action="kept", exposure=again.status()[-1]),
        ), "it is known after a restart"

    anyio.run(main)


def test_users_stay_connected_where_the_target_is_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures), tcp_service(shout) as one, tcp_service(shout) as other:
            await it.actions(db=wish(f"tcp://127.0.0.1:{one}"))
            port = it.server.list()[0].port
            with anyio.fail_after(5):
                async with await anyio.connect_tcp(NODE, port, local_host=SERVER) as stream:
                    few = {"limits": {"connections": 3}}
                    await it.actions(db=wish(f"tcp://127.0.0.1:{one}", terms=few), more=wish("tcp://127.0.0.1:9"))
                    await stream.send(b"still here")
                    await stream.send_eof()
                    assert await stream.receive() == b"STILL HERE"
            await it.actions(db=wish(f"tcp://127.0.0.1:{other}"))
            assert await ask(it.server.list()[0].port, SERVER, b"moved") == b"MOVED"

    anyio.run(main)


def test_names_are_free_before_others_take_them(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures):
            await it.actions(a=wish(host="a.test"), b=wish(host="b.test"))
            del it.server.requests[:]
            await it.actions(a=wish(host="b.test"), b=wish(host="a.test"))
            kinds = [type(each) for each in it.server.requests]
            assert kinds == [Unexpose, Unexpose, Expose, Expose]

    anyio.run(main)


def test_an_entry_that_is_refused_leaves_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures):
            outcomes = await it.apply(good=wish(), bad=wish("ftp://127.0.0.1:1"), other=wish("2"))
            assert {name: each.error is None for name, each in outcomes.items()} == {
                "good": True,
                "bad": False,
                "other": True,
            }
            error = outcomes["bad"].error
            assert error is not None and error.code == "bad-target" and set(it.ids()) == {"good", "other"}
            await it.actions(good=wish(host="a.test"), other=wish("2"))
            refused = await it.apply(good=wish("ftp://127.0.0.1:1", host="a.test"), other=wish("2"))
            assert refused["good"].exposure is not None, "what was there stays"
            it.server.is_old = True
            refused = await it.apply(good=wish(host="a.test", terms={"limits": {"connections": 1}}), other=wish("2"))
            error = refused["good"].error
            assert error is not None and error.code == "server-older"
            assert it.exposures.declared(FILE)["good"][0].terms == Terms()
            it.server.failure = UserError("server-unreachable", "Away.", exit_code=5)  # type: ignore[arg-type]
            refused = await it.apply(other=wish("2"))
            assert refused["good"].error is not None and set(it.ids()) == {"good", "other"}

    anyio.run(main)


def test_an_entry_may_be_a_range_of_ports(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures):
            ports = wish("tcp://127.0.0.1:8000-8002", public="9000-9002")
            made = (await it.apply(ports=ports))["ports"]
            assert made.exposure is not None and made.exposure.id == it.ids()["ports"]
            assert made.exposure.target == "tcp://127.0.0.1:8000-8002"
            assert it.ports() == [("9000", "8000"), ("9001", "8001"), ("9002", "8002")]
            again, asked = ExposureFiles(it.state, it.make()), len(it.server.requests)
            assert [each.action for each in await again.apply(FILE, {"ports": ports})] == ["kept"]
            assert len(it.server.requests) == asked, "also after a restart"

            before, other = it.ids(), msgspec.structs.replace(ports, target="tcp://127.0.0.1:7000-7002")
            assert await it.actions(ports=other) == {"ports": "changed"} and it.ids() == before
            assert it.ports() == [("9000", "7000"), ("9001", "7001"), ("9002", "7002")]
            more = wish("tcp://127.0.0.1:7000-7003", public="9000-9003")
            assert await it.actions(ports=more) == {"ports": "replaced"} and len(it.server.list()) == 4
            one = wish("tcp://127.0.0.1:7000", public="9000")
            assert await it.actions(ports=one) == {"ports": "replaced"} and it.ports() == [("9000", "7000")]
            assert await it.actions(ports=more) == {"ports": "replaced"} and len(it.server.list()) == 4
            for wrong in ("ftp://127.0.0.1:1-9", "tcp://127.0.0.1:1-9"):
                refused = (await it.apply(ports=wish(wrong, public="9000-9003")))["ports"]
                assert refused.error is not None and refused.exposure is not None and len(it.server.list()) == 4
            assert await it.actions() == {"ports": "removed"} and it.server.list() == ()

    anyio.run(main)


def test_all_ports_of_a_range_are_changed_or_none(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures):
            await it.actions(ports=wish("tcp://127.0.0.1:8000-8001", public="9000-9001"))
            it.server.failures = {"tcp://127.0.0.1:7001"}
            refused = await it.apply(ports=wish("tcp://127.0.0.1:7000-7001", public="9000-9001"))
            assert refused["ports"].error is not None
            assert it.ports() == [("9000", "8000"), ("9001", "8001")]

    anyio.run(main)


def test_an_end_is_not_put_off_by_reading_the_file_again(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        it.now, it.lasts = 1000.0, {"web": 60.0}
        async with serving(it.exposures):
            web = wish(host="a.test", terms={"expires": 1060.0})  # as the command has reckoned it
            assert await it.actions(web=web) == {"web": "added"}
            it.now = 1030.0
            later = wish(host="a.test", terms={"expires": 1090.0})
            assert await it.actions(web=later) == {"web": "kept"}
            it.lasts = {"web": 40.0}
            assert await it.actions(web=later) == {"web": "changed"}
            assert it.server.list()[0].terms.expires == 1040.0, "it counts from when it was published first"
            it.now = 1041.0
            assert await it.actions(web=later) == {"web": "removed"}
            assert await it.actions(web=later) == {"web": "over"} and it.ids() == {}
            it.lasts = {"web": 60.0}
            assert await it.actions(web=later) == {"web": "added"}
            assert it.server.list()[0].terms.expires == 1060.0
            it.now = 1100.0
        again = ExposureFiles(it.state, it.make(), lambda: it.now)
        outcomes = await again.apply(FILE, {"web": later}, lasts=it.lasts, dry=True)
        assert [each.action for each in outcomes] == ["removed"], "a restart does not put it off either"
        await again.apply(FILE, {})
        outcomes = await again.apply(FILE, {"web": later}, lasts=it.lasts, dry=True)
        assert [each.action for each in outcomes] == ["added"], "what was out of the file begins anew"

    anyio.run(main)


def test_a_file_is_read_with_the_rights_of_who_named_it() -> None:
    nobody = pwd.getpwnam("nobody")
    user, group, groups = rights_of(nobody.pw_uid)
    assert (user, group) == (nobody.pw_uid, nobody.pw_gid) and groups is not None and 0 not in groups
    assert rights_of(os.geteuid()) == (None, None, None)
    with pytest.raises(KeyError):
        rights_of(987_654)


def test_a_watched_file_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        it = Files(tmp_path)
        async with serving(it.exposures):
            await it.files.watch(FILE, os.geteuid())
            await it.actions(web=wish())
            again = ExposureFiles(it.state, it.exposures)
            (shown,) = again.status()
            assert (shown.file, shown.watched, shown.problem) == (FILE, True, "")
            assert [each.action for each in await again.forget(FILE)] == ["removed"]
            assert again.status() == () == ExposureFiles(it.state, it.exposures).status()
            with pytest.raises(UserError, match="Nothing is exposed"):
                await again.forget(FILE)
            for number in range(16):
                await again.watch(f"/{number}", os.geteuid())
            with pytest.raises(UserError, match="16 files"):
                await again.watch("/17", os.geteuid())
            with pytest.raises(UserError, match="absolute"):
                await again.apply("e.toml", {}, dry=False)

    anyio.run(main)
