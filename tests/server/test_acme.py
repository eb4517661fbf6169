"""A certificate from a real authority's software, Pebble: both challenges on the one port, renewal, and every no."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from overlay.certificates import acme, acme_renewal
from overlay.certificates.acme import Account, ChallengeKind, _clean
from overlay.certificates.certificate import make_key
from overlay.certificates.challenges import Challenges
from overlay.certificates.pace import Pace
from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.server.certificates import Certificates
from overlay.server.settings import ServerSettings
from overlay.wire.ingress.client_hello import ClientHello
from tests.programs import program
from tests.server.pebble import BLOCKED, LIFETIME, Pebble, pebble
from tests.server.test_certificates import Wall, pin_of, until
from tests.server.tls_port import PATIENCE, handshake, tls_port

NAME = "vpn.example.org"
QUICK = Pace(look=0.02, unreachable=0.05, unreachable_most=0.05)


class Server:
    """What a test has: the certificates of a server with a port, and an authority that finds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.wall = Wall(time.time() + 3600)  # Pebble does not date its certificates back
        self.certificates: Certificates
        self.authority: Pebble
        self.port = 0

    def open(self, *hosts: str, directory: str = "", email: str = "admin@example.org", **more: Any) -> Certificates:
        self.certificates = Certificates(
            StateDir(self.state).open(),
            ServerSettings(
                state=str(self.state), acme_email=email, acme_directory=directory or self.authority.directory
            ),
            hosts or (NAME, "203.0.113.1"),
            wall=self.wall,
            pace=QUICK,
            **more,
        )
        return self.certificates

    def http_answer(self, path: str) -> bytes | None:
        return self.certificates.http_answer(path)

    def context(self, hello: ClientHello) -> Any:
        return self.certificates.context(hello)


def with_authority(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[Server], Awaitable[None]],
    *,
    tls: bool = True,
    http: bool = True,
    bad_nonces: int = 5,
) -> None:
    """`tls`, `http`: which challenges reach the server; the others lead to a port where nobody is."""
    program("pebble")

    async def main() -> None:
        server = Server(folder)
        with anyio.fail_after(3 * PATIENCE):
            async with tls_port(server) as port:
                server.port = port
                ports = {"tls_port": port if tls else 1, "http_port": port if http else 1}
                with pebble(folder, bad_nonces=bad_nonces, **ports) as authority:
                    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_bundle))
                    server.authority = authority
                    await test(server)

    anyio.run(main)


async def looked_after(kept: Certificates, outcome: Callable[[], bool]) -> None:
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(kept.run)
        await until(outcome)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("tls", "http"), [(True, False), (False, True)], ids=["tls-alpn-01", "http-01"])
def test_one_challenge_of_two_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, http: bool) -> None:
    async def test(server: Server) -> None:
        kept = server.open(NAME, "second.example.org", "203.0.113.1")
        before = (await handshake(server.port, NAME))[0]  # self-signed serves meanwhile
        assert kept.status()["source"] == "self-signed"
        await looked_after(kept, lambda: kept.status()["source"] == "acme")
        shown, protocol, _ = await handshake(server.port, NAME)
        assert shown == kept.current.chain[0].public_bytes(Encoding.DER) != before and protocol == "http/1.1"
        assert pin_of(shown) == pin_of(before) == kept.pin  # an invite from before is good
        assert set(kept.current.names) == {NAME, "second.example.org"} and len(kept.current.chain) > 1
        assert kept.warnings == () and not kept._challenges.pending
        for file in server.state.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file

    with_authority(tmp_path, monkeypatch, test, tls=tls, http=http)


def test_it_is_renewed_ahead_of_time_and_a_restart_orders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Server) -> None:
        kept = server.open()
        await looked_after(kept, lambda: kept.status()["source"] == "acme")
        first = kept.current
        account = StateDir(server.state).read_struct(acme_renewal.ACCOUNT_NAME, Account)
        again = server.open()
        assert again.current.chain == first.chain
        server.wall.now = time.time() + LIFETIME / 2
        assert again._authority is not None
        await again._authority.renew_if_due()
        assert again._authority.certificate is again.current
        assert again.current.chain == first.chain
        server.wall.now = time.time() + LIFETIME * 0.7
        await looked_after(again, lambda: again.current.chain != first.chain)
        assert again.current.pin == first.pin and again.warnings == ()
        assert StateDir(server.state).read_struct(acme_renewal.ACCOUNT_NAME, Account) == account
        server.wall.now = time.time() + 2 * LIFETIME  # and if nothing helped, nobody is shown what has expired
        assert server.open().status()["source"] == "self-signed"

    with_authority(tmp_path, monkeypatch, test)


def test_an_authority_that_forgets_nonces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        kept = server.open()
        await looked_after(kept, lambda: kept.status()["source"] == "acme")

    with_authority(tmp_path, monkeypatch, test, bad_nonces=30)


def test_a_name_that_leads_elsewhere_is_a_warning_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(server: Server) -> None:
        kept = server.open()
        await looked_after(kept, lambda: kept.warnings != ())
        (warning,) = kept.warnings
        assert f"could not verify {NAME} by tls-alpn-01: " in warning
        assert f"could not verify {NAME} by http-01: " in warning and "\n" not in warning
        assert warning in caplog.text and kept.status()["source"] == "self-signed"
        orders = caplog.text.count("could not verify")
        await looked_after(kept, lambda: True)
        assert caplog.text.count("could not verify") == orders  # it waits before it asks again

    with_authority(tmp_path, monkeypatch, test, tls=False, http=False)


def test_a_name_that_no_authority_certifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Server) -> None:
        kept = server.open(BLOCKED)
        await looked_after(kept, lambda: kept.warnings != ())
        assert kept.warnings[0].startswith("The certificate authority says: ") and BLOCKED in kept.warnings[0]

    with_authority(tmp_path, monkeypatch, test)


def test_an_authority_that_is_away_is_asked_again_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Server) -> None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")  # it answers, but nobody vouches for it
        kept = server.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kept.run)
            await until(lambda: kept.warnings != ())
            assert "Cannot reach the certificate authority" in kept.warnings[0]
            assert "certificate verify failed" in kept.warnings[0]
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.authority.ca_bundle))
            await until(lambda: kept.status()["source"] == "acme")
            assert kept.warnings == ()
            tasks.cancel_scope.cancel()

    with_authority(tmp_path, monkeypatch, test)


def test_nobody_at_the_directory(tmp_path: Path) -> None:
    async def main() -> None:
        kept = Server(tmp_path).open(directory="https://127.0.0.1:1/dir")
        await looked_after(kept, lambda: kept.warnings != ())
        assert kept.warnings == ("Cannot reach the certificate authority: Connection refused.",)

    anyio.run(main)


def test_an_order_to_an_authority_that_says_nothing_can_be_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/dir"
            kept = Server(tmp_path).open(directory=url)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(kept.run)
                with anyio.fail_after(PATIENCE):
                    connection, _ = await asyncio.get_running_loop().sock_accept(silent)
                tasks.cancel_scope.cancel()
            connection.close()  # the thread's end
        assert kept.warnings == ()

    anyio.run(main)


def test_another_authority_means_another_account_and_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Server) -> None:
        kept = server.open()
        await looked_after(kept, lambda: kept.status()["source"] == "acme")
        before = StateDir(server.state).read_struct(acme_renewal.ACCOUNT_NAME, Account)
        assert server.open(email="other@example.org").status()["source"] == "acme"
        after = StateDir(server.state).read_struct(acme_renewal.ACCOUNT_NAME, Account)
        assert before is not None and after is not None and before.key != after.key
        assert before.key not in repr(before)
        assert server.open(directory="https://127.0.0.1:1/dir").status()["source"] == "self-signed"

    with_authority(tmp_path, monkeypatch, test)


def test_an_account_that_the_authority_forgot_is_registered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Server) -> None:
        server.open()
        state = StateDir(server.state)
        account = state.read_struct(acme_renewal.ACCOUNT_NAME, Account)
        assert account is not None
        forgotten = server.authority.directory.replace("/dir", "/my-account/123")
        state.write_struct(
            acme_renewal.ACCOUNT_NAME,
            Account(directory=account.directory, email=account.email, key=account.key, uri=forgotten),
        )
        kept = server.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kept.run)
            await until(lambda: kept.warnings != () or kept.status()["source"] == "acme")
            kept.reload()
            await until(lambda: kept.status()["source"] == "acme")
            tasks.cancel_scope.cancel()

    with_authority(tmp_path, monkeypatch, test)


def test_a_damaged_account_is_said(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.open(directory="https://127.0.0.1:1/dir")
    state = StateDir(server.state)
    account = state.read_struct(acme_renewal.ACCOUNT_NAME, Account)
    assert account is not None
    state.write_struct(
        acme_renewal.ACCOUNT_NAME, Account(directory=account.directory, email=account.email, key="garbage")
    )
    with pytest.raises(UserError) as caught:
        server.open(directory="https://127.0.0.1:1/dir")
    assert caught.value.code == "state-corrupt"


def test_waits_grow_and_end_at_their_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    fails = [True]

    async def obtain(_orders: acme.Orders, _names: object, _kind: ChallengeKind) -> None:
        asked.append(anyio.current_time())
        raise acme.AcmeFailure("No.", refused=fails[0])

    monkeypatch.setattr(acme.Orders, "obtain", obtain)

    async def main() -> None:
        state, key = StateDir(tmp_path).open(), make_key()
        orders = acme_renewal.open_orders(
            state, key, Challenges(), directory="https://ca.test/dir", email="a@b.c", wall=time.time
        )
        renewal = acme_renewal.AcmeRenewal(
            state,
            key,
            [NAME],
            orders,
            wall=time.time,
            uniform=lambda low, high: low,
            pace=Pace(refused=100.0, refused_most=350.0, unreachable=10.0, unreachable_most=15.0),
        )
        for expected in (100.0, 200.0, 350.0, 350.0):
            asked.clear()
            await renewal.renew_if_due()
            assert len(asked) == 2  # both kinds
            assert renewal._not_before - asked[-1] == pytest.approx(expected, abs=5.0)
            await renewal.renew_if_due()
            assert len(asked) == 2
            renewal._not_before = 0.0
        renewal.try_at_once()
        fails[0] = False
        for expected in (10.0, 15.0):
            asked.clear()
            await renewal.renew_if_due()
            assert len(asked) == 1  # the other kind would not be heard either
            assert renewal._not_before - asked[-1] == pytest.approx(expected, abs=5.0)
            renewal._not_before = 0.0
        assert renewal.warning == "No."

    anyio.run(main)


def test_what_an_authority_says_is_one_line_and_short() -> None:
    assert _clean("a\nb\x1b[31m  c.") == "a b [31m c"
    assert len(_clean("x" * 10_000)) == 300
