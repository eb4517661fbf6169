"""What a person's wish for an exposure means, and what it must be. No sockets."""

from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.node.direct_end import WELL_KNOWN
from overlay.node.kept import Kept
from overlay.node.own_tls import NO_TLS_OPTIONS
from overlay.node.status import Entry, ExposeWish
from overlay.node.targets import Target
from overlay.wire.control.messages import Exposure, TunnelKind

MOST_INSPECTED: Final = 8 << 20
"""Bytes of a body that the inspector may keep."""


def is_renewable(old: ExposeWish | None, new: ExposeWish) -> bool:
    """Whether what was exposed for `old` can become `new` and keep its name or port: users' way there is the same, and
    they speak the same. Raises `UserError` for a target that is none."""
    if old is None or _spoken(old) != _spoken(new):
        return False
    if any((old.terms.group.name != new.terms.group.name, old.terms.private.name != new.terms.private.name)):
        return False
    mended = msgspec.structs.replace(
        old,
        target=new.target,
        known_as=new.known_as,
        service=new.service,
        terms=new.terms,
        options=new.options,
        inspect=new.inspect,
    )
    return mended == new


def _spoken(wish: ExposeWish) -> tuple[str, bool]:
    return target_of(wish).protocol, wish.terms.tls_end == "node"


def target_of(wish: ExposeWish) -> Target:
    """A port of its own carries whatever is said there; a name needs a protocol that tells it. Raises `UserError`."""
    return Target.parse(wish.target, "tcp" if wish.public or wish.terms.private.name else "http")


def service_of(wish: ExposeWish) -> str:
    if wish.terms.private.name:
        return ""  # peers know it by that name
    target = target_of(wish)
    transport = "udp" if target.protocol == "udp" else "tcp"
    return wish.service.lower() or WELL_KNOWN.get((transport, target.port), "")


def check_private(wish: ExposeWish) -> None:
    """Raises `UserError` ("private-invalid")."""
    if wish.terms.private.name and wish.tunnel not in ("auto", "single"):
        raise UserError(
            "private-invalid",
            "Peers come to a private exposure by the best way there is: straight to this machine after 'overlay up', "
            "else through the server.",
            "Leave out --tunnel.",
            Exit.USAGE,
        )


def checked_target(wish: ExposeWish) -> Target:
    """Raises `UserError` ("bad-target") for what does not fit together."""
    target = target_of(wish)
    if wish.host and (wish.public or wish.known_as or target.protocol not in ("http", "tls")):
        raise UserError(
            "bad-target",
            "Only a target that speaks http or tls can be reached by a host's name on the shared port.",
            "Leave out --host, or --public, --known-as and the scheme tcp:// or udp://.",
            Exit.USAGE,
        )
    if (target.protocol == "tls" or wish.terms.tls_end == "node") and (wish.public or wish.known_as):
        raise UserError(
            "bad-target",
            "Users who come by TLS are told apart by the name that they ask for, on the shared port.",
            "Give --host db.example.com alone, or write tcp:// to have a port that carries TLS as all else.",
            Exit.USAGE,
        )
    _check_tls(target, wish)
    wish.options.check(target)
    return target


def _check_tls(target: Target, wish: ExposeWish) -> None:
    if wish.terms.tls_end != "node":
        if wish.tls != NO_TLS_OPTIONS:
            raise UserError(
                "bad-target",
                "--acme-email is for TLS that ends at this machine.",
                "Add --tls-end node, or leave it out.",
                Exit.USAGE,
            )
        return
    wish.tls.check()
    if target.protocol not in ("http", "tls"):
        raise UserError(
            "bad-target",
            f"Of {target.protocol} there is no TLS to end.",
            "Write tls://HOST:PORT --host NAME: what is in the users' TLS goes to that port.",
            Exit.USAGE,
        )
    if wish.tunnel == "udp":
        raise UserError(
            "no-tunnel", "With --tls-end node users come by tls, tcp, ws or wss.", "Leave out --tunnel.", Exit.USAGE
        )


def checked_inspect(wish: ExposeWish, target: Target) -> int:
    """Bytes of a body. Raises `UserError`."""
    if wish.inspect and target.protocol != "http":
        raise UserError("bad-target", "Only what speaks http can be inspected.", "Leave out --inspect.", Exit.USAGE)
    if not 0 <= wish.inspect <= MOST_INSPECTED:
        raise UserError(
            "bad-request",
            f"At most {MOST_INSPECTED >> 20} MiB of a body are kept.",
            "Give --inspect-body 8MB, or less.",
            Exit.USAGE,
        )
    return wish.inspect


def check_heard(exposure: Exposure, wish: ExposeWish) -> None:
    """Raises `UserError` ("server-older"): what the server does not know it does not hold to."""
    if exposure.terms != wish.terms:
        raise UserError(
            "server-older",
            "The server is older than this machine's overlay and does not know all that was asked for.",
            "Bring the server up to date, or leave out the options that it does not know.",
        )


def tunnel_of(wish: ExposeWish, *, up: bool) -> TunnelKind:
    """`up`: this machine has an address in the network. Raises `UserError` ("no-tunnel")."""
    if wish.tunnel == "single" and not up:
        raise UserError(
            "no-tunnel",
            "Without 'overlay up' this machine has no address in the network that users could be carried to.",
            "Leave out --tunnel single, or run 'sudo overlay up'.",
            Exit.USAGE,
        )
    if wish.tunnel == "auto":
        return "single" if up else "tls"
    return wish.tunnel


def wanted_of(
    wish: ExposeWish,
    target: Target,
    port: int,
    tunnel: TunnelKind,
    *,
    owner: int,
    range: str,
    entry: Entry | None,
) -> Kept:
    """What is asked of the server for a wish, with nothing of its answer yet. Raises `UserError`."""
    return Kept(
        id="",
        public=wish.public,
        target=target.text,
        port=port,
        tunnel=tunnel,
        known_as=wish.known_as,
        service=service_of(wish),
        owner=owner,
        options=wish.options,
        range=range,
        tls=wish.tls,
        terms=wish.terms,
        inspect=checked_inspect(wish, target),
        entry=entry,
        wish=wish,
    )
