"""Which node may claim what: the file, its rules, and what becomes of files that are wrong or change."""

from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.server import policy_file
from overlay.server.policy import EVERYTHING, FILE, Policy, parse_policy
from overlay.server.policy_file import PolicyFile

EXAMPLE = b"""
[default]
exposures = 16
protocols = ["http"]

[[rule]]
nodes = ["shop", "build-*"]
protocols = ["http", "tcp"]
hosts = ["*.Shop.example.com", "shop.example.com"]
ports = [443, "9000-9099"]
exposures = 4
quota = "100GB"
bandwidth = "50Mbit"

[[rule]]
tags = ["web", "open"]

[[rule]]
nodes = ["*"]
tags = ["closed"]
hosts = []
ports = []
"""


def parsed(text: bytes = EXAMPLE) -> Policy:
    return parse_policy(text, "policy.toml")


def test_the_first_rule_that_fits_counts() -> None:
    policy = parsed()
    shop = policy.rights("shop", ())
    assert shop == policy.rights("build-7", ("web",))
    assert (shop.exposures, shop.quota, shop.bandwidth) == (4, 10**11, 50e6 / 8)
    assert policy.rights("laptop", ("x", "web")) == EVERYTHING
    assert policy.rights("laptop", ()).hosts == ()
    assert parsed(EXAMPLE.rpartition(b"[[rule]]")[0]).rights("laptop", ()).exposures == 16
    assert Policy().rights("laptop", ()) == EVERYTHING


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("shop.example.com", True),
        ("a.shop.example.com", True),
        ("a.b.shop.example.com", True),
        ("*.shop.example.com", True),
        ("*.example.com", False),  # it would take names that are not below
        ("xshop.example.com", False),
        ("shop.example.com.evil.test", False),
        ("shopxexample.com", False),
    ],
)
def test_names(host: str, *, allowed: bool) -> None:
    rights = parsed().rights("shop", ())
    if allowed:
        rights.check_host("shop", host)
        return
    with pytest.raises(UserError) as caught:
        rights.check_host("shop", host)
    error = caught.value
    assert (error.code, error.exit_code) == ("policy-forbids", Exit.REFUSED)
    assert error.message == f"The server's policy does not let node 'shop' have the name {host}."
    assert error.hint == "It may have: *.shop.example.com, shop.example.com."


def test_names_are_compared_as_they_are_written() -> None:
    """Case, a final dot and the way to write what is beyond ASCII make no other name."""
    rights = parsed(
        "[[rule]]\nnodes = ['Büro']\nhosts = ['*.Bücher.example', 'Shop.test.', 'XN--BCHER-KVA.test']".encode()
    ).rights("xn--bro-hoa", ())
    for host in ("a.xn--bcher-kva.example", "*.xn--bcher-kva.example", "shop.test", "xn--bcher-kva.test"):
        rights.check_host("xn--bro-hoa", host)
    with pytest.raises(UserError, match="the name größe.test") as caught:
        rights.check_host("a", "xn--gre-6ka8i.test")
    assert caught.value.hint == "It may have: *.bücher.example, shop.test, bücher.test."


def test_ports_and_protocols() -> None:
    rights, nothing = parsed().rights("shop", ()), parsed().rights("laptop", ())
    for port in (443, 9000, 9099):
        rights.check_port("shop", port)
    for port in (442, 444, 8999, 9100):
        with pytest.raises(UserError, match=f"public port {port}") as caught:
            rights.check_port("shop", port)
        assert caught.value.hint == "It may have: 443, 9000-9099."
    rights.check_protocol("shop", "tcp")
    with pytest.raises(UserError, match="expose by udp"):
        rights.check_protocol("shop", "udp")
    with pytest.raises(UserError) as caught:
        nothing.check_port("laptop", 80)
    assert caught.value.hint == "Ask whoever runs the server."
    EVERYTHING.check_protocol("a", "udp")
    EVERYTHING.check_host("a", "any.test")
    EVERYTHING.check_port("a", 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[default", "Expected"),
        (b"\xff", "utf-8"),
        (b"[defaults]", "defaults"),
        (b"[[rule]]\nnodes = ['a']\nhost = ['x']", "host"),
        (b"[[rule]]\nhosts = ['x']", "neither nodes nor tags"),
        ("[default]\nhosts = ['bü*.test']".encode(), "'bü*.test' is no name"),
        (b"[default]\nports = [0]", "'0' is neither a port"),
        (b"[default]\nports = ['9-8']", "'9-8'"),
        (b"[default]\nports = [70000]", "'70000'"),
        (b"[default]\nprotocols = ['ftp']", "protocols are"),
        (b"[default]\nquota = '10Gbit'", "not a size"),
        (b"[default]\nbandwidth = 'fast'", "not a rate"),
        (b"[default]\nexposures = -1", "less than none"),
        (b"[default]\nexposures = 'x'", "int"),
        (b"#" * 1024 * 1024 + b"#", "bytes"),
    ],
)
def test_files_that_are_wrong(text: bytes, why: str) -> None:
    with pytest.raises(UserError, match="policy.toml cannot be used") as caught:
        parsed(text)
    assert why in caught.value.message and caught.value.code == "policy-invalid"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_is_in_the_file(data: bytes) -> None:
    try:
        parsed(b"[default]\n" + data)
    except UserError as error:
        assert error.code == "policy-invalid"


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_file, "LOOK", 0.01)
    path = tmp_path / FILE

    async def main() -> None:
        file = PolicyFile(tmp_path, "")
        assert file.current.default == EVERYTHING
        changes = 0
        changed = anyio.Event()

        async def on_change() -> None:
            nonlocal changes, changed
            changes += 1
            changed.set()
            changed = anyio.Event()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(file.run, on_change)
            for text, exposures in (("[default]\nexposures = 3", 3), ("[default]\nexposures = 42", 42)):
                event = changed
                path.write_text(text)
                await event.wait()
                assert file.current.default.exposures == exposures
            path.write_text("[default]\nexposures = 'many'")  # logged, and nothing else
            event = changed
            path.unlink()
            await event.wait()
            assert file.current.default == EVERYTHING
            event = changed
            file.reload()
            await event.wait()
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_file_that_was_named_must_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no policy"):
        PolicyFile(tmp_path, str(tmp_path / "none.toml"))
    (tmp_path / FILE).write_text("[[rule]]")
    with pytest.raises(UserError, match="cannot be used"):
        PolicyFile(tmp_path, "")
