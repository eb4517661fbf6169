"""What is asked of a node's daemon for one exposure, out of what the options of `overlay expose` say."""

import os.path
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from overlay.daemon.quantities import parse_rate, parse_size
from overlay.errors import Exit, UserError
from overlay_cli.credentials import NEW, Made, make_credentials
from overlay_cli.durations import parse_end
from overlay_cli.targets import absolute_target

NOT_OF_AN_EXPOSURE: Final = frozenset(
    "context state file dry_run unattended foreground show_secrets invite carrier proxy ca json quiet help".split()
)
"""Parameters of the command that say how it is run; all others say what is exposed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """`document`: `overlay.node.status.ExposeWish` as the local API takes it, for one that begins now; `made`: secrets
    that were made for it; `lasts`: seconds from its begin, 0: it does not end, or at a point in time."""

    document: dict[str, Any]
    made: Made
    lasts: float = 0.0


def wish(given: Mapping[str, Any], folder: Path, *, known: Mapping[str, Any] | None = None) -> Wish:
    """`given`: at least all parameters of the command that say what is exposed, by their names; paths start from
    `folder`. `known`: the terms on which it is exposed already: secrets stay as they are there. Raises `UserError`
    (exit 2)."""
    ends, lasts = parse_end(given["expires"]) if given["expires"] else (0.0, 0.0)
    made = make_credentials(
        users=_secrets_file(given["users"], folder),
        bearer=_secrets_file(given["bearer"], folder),
        link=given["secret_link"],
        private=given["token"],
        known=(known or {}).get("access", {}),
        known_private=(known or {}).get("private", {}).get("token", ""),
    )
    document = {
        "target": absolute_target(given["target"], folder),
        "public": given["public"],
        "host": given["host"],
        "tunnel": given["tunnel"],
        "known_as": given["known_as"] or [],
        "service": given["service"],
        "inspect": parse_size(given["inspect_body"]) if given["inspect"] else 0,
        "options": target_options(
            listing=given["listing"],
            insecure=given["insecure_target"],
            ca=given["target_ca"],
            proxy=given["target_proxy"],
            proxy_auth=folder / given["target_proxy_auth"] if given["target_proxy_auth"] else None,
        ),
        "tls": {"acme_email": given["acme_email"], "acme_directory": given["acme_directory"]},
        "terms": terms(
            allow=given["allow"],
            deny=given["deny"],
            credentials=made.access,
            max_connections=given["max_connections"],
            connection_rate=given["connection_rate"],
            request_rate=given["request_rate"],
            bandwidth=given["bandwidth"],
            quota=given["quota"],
            expires=time.time() + lasts if lasts else ends,
            headers={
                "forwarded": given["forwarded"],
                "host": given["host_header"],
                "request": given["request_header"] or [],
                "request_remove": given["remove_request_header"] or [],
                "response": given["response_header"] or [],
                "response_remove": given["remove_response_header"] or [],
            },
            proxy_protocol=given["proxy_protocol"],
            transparent=given["transparent"],
            tls_end=given["tls_end"],
            group=given["group"],
            balance=given["balance"],
            health=given["health"],
            private=given["private"],
            for_tag=given["for_tag"],
            token=made.private,
        ),
    }
    return Wish(document, made, lasts)


def _secrets_file(name: str, folder: Path) -> str:
    return name if name in ("", "-", NEW) else os.path.join(folder, name)


def check_typed(context: typer.Context) -> None:
    """Raises `UserError` for what has no place among arguments."""
    source = context.get_parameter_source("target_proxy")
    if source is not None and source.name == "COMMANDLINE" and "@" in context.params["target_proxy"]:
        raise UserError(
            "proxy-password",
            "A password among the arguments is seen by every user of this machine.",
            "Put USER:PASSWORD into a file and name that with --target-proxy-auth, or the whole URL into "
            "OVERLAY_TARGET_PROXY.",
            Exit.USAGE,
        )


def target_options(
    *, listing: bool, insecure: bool, ca: Path | None, proxy: str, proxy_auth: Path | None
) -> dict[str, Any]:
    """`overlay.node.targets.TargetOptions` as the local API takes them. Files are read here, with the rights of who
    calls. Raises `UserError` (exit 2)."""
    if proxy_auth is not None:
        proxy = _with_password(proxy, _read(proxy_auth, "--target-proxy-auth"))
    return {
        "listing": listing,
        "insecure": insecure,
        "ca": "" if ca is None else _read(ca, "--target-ca"),
        "proxy": proxy,
    }


def _with_password(proxy: str, text: str) -> str:
    from urllib.parse import quote

    user, colon, password = text.partition("\n")[0].rstrip("\r").partition(":")
    scheme, separator, host = proxy.rpartition("://")
    if not (colon and user and host) or "@" in host:
        raise UserError(
            "proxy-password",
            "The file that --target-proxy-auth names must begin with USER:PASSWORD, and --target-proxy say where to.",
            "As in: --target-proxy socks5://HOST:1080 --target-proxy-auth FILE",
            Exit.USAGE,
        )
    return f"{scheme}{separator}{quote(user, safe='')}:{quote(password, safe='')}@{host}"


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            "file-unreadable", f"{path}, which {option} names, cannot be read: {why}.", "Name another file.", Exit.USAGE
        ) from error


def terms(
    *,
    allow: list[str] | None,
    deny: list[str] | None,
    credentials: dict[str, Any],
    max_connections: int,
    group: str,
    balance: str,
    health: str,
    private: str,
    for_tag: list[str] | None,
    token: str,
    connection_rate: str,
    request_rate: str,
    bandwidth: str,
    quota: str,
    expires: float,
    headers: dict[str, Any],
    proxy_protocol: str,
    transparent: bool,
    tls_end: str | None,
) -> dict[str, Any]:
    """`overlay.wire.control.terms.Terms` as the local API takes them. `expires`: Unix time; 0: never. Raises
    `UserError` (exit 2)."""
    return {
        "access": {"allow": allow or [], "deny": deny or [], **credentials},
        "group": {"name": group.lower(), "balance": balance},
        "health": health,
        "private": {"name": private.lower(), "tags": for_tag or [], "token": token},
        "limits": {
            "connections": max_connections,
            "connection_rate": connection_rate,
            "request_rate": request_rate,
            "bandwidth": parse_rate(bandwidth) if bandwidth else 0.0,
            "quota": parse_size(quota) if quota else 0,
        },
        "headers": headers,
        "told": {"proxy_protocol": "" if proxy_protocol == "none" else proxy_protocol, "transparent": transparent},
        "expires": expires,
        "tls_end": tls_end or "",
    }
