"""The names under which the web is exposed: what a person may write, and what a URL looks like. Pure."""

import re
from typing import Final

from overlay.errors import Exit, UserError
from overlay.wire.control.hostnames import MAX_NAME, ascii_name

_LONGEST_PATH: Final = 256
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")


def parse_host(text: str) -> tuple[str, str]:
    """`docs.example.com/prefix` → the name as `ascii_name` has it, and the prefix, which begins and ends with "/".

    `*.example.com` is taken for all names of one label below. Raises `UserError` ("host-invalid", exit 2).
    """
    name, slash, path = text.strip().partition("/")
    wild = "*." if name.startswith("*.") else ""
    try:
        host = wild + _parse_name(name.removeprefix("*."), least=2)
    except ValueError as error:
        raise _invalid(text, str(error)) from error
    prefix = f"/{path.strip('/')}/" if path.strip("/") else "/"
    if (
        len(prefix) > _LONGEST_PATH
        or not _PATH.fullmatch(prefix)
        or any(part in (".", "..") for part in prefix.split("/"))
    ):
        raise _invalid(text, f"'{slash}{path[:64]}' is not a path such as /docs")
    return host, prefix


def parse_web_domain(text: str) -> str:
    """Below which the server picks names, as `ascii_name` has it. Raises `UserError` ("host-invalid", exit 2)."""
    try:
        return _parse_name(text.strip().strip("."), least=1)
    except ValueError as error:
        raise UserError(
            "host-invalid",
            f"No names can be picked below '{text[:100]}': {error}.",
            "As in --web-domain apps.example.com.",
            Exit.USAGE,
        ) from error


def _parse_name(text: str, *, least: int) -> str:
    """`least`: labels. Raises `ValueError` with the rest of a sentence."""
    try:
        name, _ = ascii_name(text)
    except ValueError as error:
        raise ValueError(f"'{text[:64]}' is not a name, as {str(error).rstrip('.')}") from error
    labels = name.split(".")
    if len(name) > MAX_NAME - len("*.") or len(labels) < least or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"'{text[:64]}' is not a name such as docs.example.com")
    if labels[-1].isdigit():
        raise ValueError("an address is not a name: leave the host out, or give a port with --public")
    return name


def url_of(host: str, ports: tuple[int, ...], path: str) -> str:
    """Where a browser finds it: by https where the usual port is ours, else by http."""
    if 443 in ports:
        return f"https://{host}{path}"
    if 80 in ports or not ports:
        return f"http://{host}{path}"
    return f"http://{host}:{ports[0]}{path}"


def tls_port(ports: tuple[int, ...]) -> int:
    """Where users by TLS find a name."""
    return 443 if 443 in ports or not ports else ports[0]


def _invalid(text: str, why: str) -> UserError:
    return UserError(
        "host-invalid", f"'{text[:100]}' cannot be exposed: {why}.", "As in --host docs.example.com.", Exit.USAGE
    )
