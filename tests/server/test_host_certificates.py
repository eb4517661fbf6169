"""Certificates of names that are exposed: from Pebble, kept, renewed and dropped; self-signed without it."""

import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from overlay.certificates import host_certificates as module
from overlay.server.certificates import Certificates
from tests.server.pebble import BLOCKED, LIFETIME
from tests.server.test_acme import NAME, Server, looked_after, with_authority
from tests.server.test_certificates import DAY, NOW, Files, Wall, certificates, pin_of, running, until
from tests.server.tls_port import handshake

HOST = "docs.example.org"
WILDCARD = "*.apps.example.org"


class Leases:
    def __init__(self, *hosts: str) -> None:
        self.held = set(hosts)

    def host_of(self, name: str) -> str | None:
        return next((host for host in (name, f"*.{name.partition('.')[2]}") if host in self.held), None)

    def hosts(self) -> Iterable[str]:
        return sorted(self.held)


def sources(kept: Certificates) -> dict[str, str]:
    found: dict[str, str] = kept.status()["hosts"]
    return found


def names_of(der: bytes) -> list[str]:
    shown = x509.load_der_x509_certificate(der)
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in names]


def test_an_exposed_name_has_a_certificate_at_once_and_an_authoritys_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Server) -> None:
        kept = server.open()
        leases = kept.leases = Leases(HOST, WILDCARD)
        first = (await handshake(server.port, HOST))[0]
        assert names_of(first) == [HOST] and pin_of(first) == kept.pin
        await looked_after(kept, lambda: sources(kept) == {HOST: "acme", WILDCARD: "self-signed"})
        given = (await handshake(server.port, HOST))[0]
        assert names_of(given) == [HOST] and pin_of(given) == kept.pin and given != first
        assert names_of((await handshake(server.port, "a.apps.example.org"))[0]) == [WILDCARD]
        own = kept.current.chain[0].public_bytes(Encoding.DER)
        for other in (NAME, "other.example.org", "b.a.apps.example.org", None):
            assert (await handshake(server.port, other))[0] == own
        leases.held.clear()
        await looked_after(kept, lambda: sources(kept) == {})
        assert (await handshake(server.port, HOST))[0] == own
        leases.held.add(HOST)
        await looked_after(kept, lambda: sources(kept) == {HOST: "acme"})
        assert (await handshake(server.port, HOST))[0] == given, "it was kept: nothing was ordered"
        server.wall.now = time.time() + LIFETIME * 0.7
        again = server.open()
        again.leases = leases
        await looked_after(again, lambda: sources(again) == {HOST: "acme"} and shown(again) != given)
        assert again.warnings == ()
        for file in server.state.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file

    with_authority(tmp_path, monkeypatch, test)


def shown(kept: Certificates) -> bytes:
    assert kept._hosts_have is not None
    return kept._hosts_have.contexts(HOST).certificate.chain[0].public_bytes(Encoding.DER)


def test_what_fails_holds_up_nobody_and_orders_have_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AN_HOUR", 2)
    looked: list[str] = []

    async def leads_here(host: str) -> bool:
        looked.append(host)
        return host != "away.example.org"

    async def test(server: Server) -> None:
        kept = server.open(leads_here=leads_here)
        kept.leases = Leases(HOST, BLOCKED, "away.example.org", "later.example.org")
        await looked_after(kept, lambda: sources(kept)[HOST] == "acme" and len(kept.warnings) == 2)
        away, blocked = kept.warnings
        assert away == "The public DNS does not lead away.example.org to this server: no certificate is asked for."
        assert blocked.startswith("The certificate authority says: ") and BLOCKED in blocked
        count = looked.count(BLOCKED)
        await looked_after(kept, lambda: True)
        assert looked.count(BLOCKED) == count == 1 and looked.count(HOST) == 1
        assert "later.example.org" not in looked and sources(kept)["later.example.org"] == "self-signed"

    with_authority(tmp_path, monkeypatch, test)


def test_without_an_authority_they_are_self_signed_and_renewed(tmp_path: Path) -> None:
    wall = Wall(NOW)
    kept = certificates(tmp_path, wall)
    kept.leases = Leases(HOST)

    async def test(port: int) -> None:
        first = (await handshake(port, HOST))[0]
        assert names_of(first) == [HOST] and pin_of(first) == kept.pin
        wall.now += DAY
        assert (await handshake(port, HOST))[0] == first
        wall.now += 300 * DAY
        second = (await handshake(port, HOST))[0]
        assert second != first and names_of(second) == [HOST]
        assert sources(kept) == {HOST: "self-signed"}

    running(kept, test)


def test_bounded_are_the_names_that_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONTEXTS_KEPT", 2)
    kept = certificates(tmp_path)
    assert kept._hosts_have is not None
    for number in range(5):
        kept._hosts_have.contexts(f"{number}.example.org")
    assert list(kept._hosts_have._contexts) == ["3.example.org", "4.example.org"]


def test_of_several_files_the_name_decides(tmp_path: Path) -> None:
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
    own, other = Files(tmp_path / "own"), Files(tmp_path / "other")
    other.issue("*.example.com")
    settings = {key: own.settings[key] + other.settings[key] for key in own.settings}
    kept = certificates(tmp_path / "state", wall=time.time, **settings)
    kept.leases = Leases("a.example.com", HOST)

    async def test(port: int) -> None:
        before = (await handshake(port, "a.example.com", other.client()))[0]
        for name in ("vpn.example.org", "a.b.example.com", HOST, None):
            assert (await handshake(port, name))[0] == kept.current.chain[0].public_bytes(Encoding.DER)
        other.issue("*.example.com")
        await until(lambda: kept._more[1].certificate.chain[0].public_bytes(Encoding.DER) != before)
        await until(lambda: kept.warnings == ())
        await handshake(port, "a.example.com", other.client())
        assert kept.pin == b""

    running(kept, test)
