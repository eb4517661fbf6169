"""The names under which the web is exposed: what a person may write, and what a URL looks like. Pure."""

import re
from typing import Final

from overlay.errors import Exit, UserError

_LONGEST_NAME: Final = 253  # RFC 1035 §2.3.4, as text
_LONGEST_PATH: Final = 256
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")


def parse_host(text: str) -> tuple[str, str]:
    """`docs.example.com/prefix` → the name in lower case and the prefix, which begins and ends with "/".

    `*.example.com` is taken for all names of one label below. Raises `UserError` ("host-invalid", exit 2).
    """
    name, slash, path = text.strip().partition("/")
    host = name.lower().removesuffix(".")
    labels = host.removeprefix("*.").split(".")
    if len(host) > _LONGEST_NAME or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid(text, f"'{name[:64]}' is not a name such as docs.example.com")
    if labels[-1].isdigit():
        raise _invalid(text, "an address is not a name: leave the host out, or give a port with --public")
    prefix = f"/{path.strip('/')}/" if path.strip("/") else "/"
    if (
        len(prefix) > _LONGEST_PATH
        or not _PATH.fullmatch(prefix)
        or any(part in (".", "..") for part in prefix.split("/"))
    ):
        raise _invalid(text, f"'{slash}{path[:64]}' is not a path such as /docs")
    return host, prefix


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
