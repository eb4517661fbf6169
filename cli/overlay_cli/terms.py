"""What was set for an exposure, in a few words: `password, 10 Mbit/s, ends in 2 h`."""

import time
from typing import Any, Final

from overlay.daemon.quantities import format_rate, format_size
from overlay_cli.durations import format_duration

HIDDEN: Final = "…"


def describe_terms(terms: dict[str, Any]) -> str:
    """As the local API's documents have them; what is not set is not there."""
    return ", ".join((*_who(terms.get("access", {})), *_how_much(terms.get("limits", {})), *_rest(terms)))


def without_secrets(exposure: dict[str, Any]) -> dict[str, Any]:
    """For print: hashes, and the values of fields that requests get, are left out."""
    terms = dict(exposure.get("terms", {}))
    if access := dict(terms.get("access", {})):
        access["users"] = [user.partition(":")[0] for user in access.get("users", ())]
        access["bearers"] = [HIDDEN for _ in access.get("bearers", ())]
        access["link"] = HIDDEN if access.get("link") else ""
        terms["access"] = {name: value for name, value in access.items() if value}
    if terms.get("private", {}).get("token"):
        terms["private"] = {**terms["private"], "token": HIDDEN}
    if fields := terms.get("headers", {}).get("request"):
        hidden = [f"{field.partition(':')[0]}: {HIDDEN}" for field in fields]
        terms["headers"] = {**terms["headers"], "request": hidden}
    return {**exposure, "terms": terms} if terms else exposure


def _who(access: dict[str, Any]) -> list[str]:
    lists = len(access.get("allow", ())) + len(access.get("deny", ()))
    return [
        *(["password"] if access.get("users") else []),
        *(["bearer token"] if access.get("bearers") else []),
        *(["secret link"] if access.get("link") else []),
        *([f"{lists} network{'s' if lists > 1 else ''} allowed or denied"] if lists else []),
    ]


def _how_much(limits: dict[str, Any]) -> list[str]:
    return [
        *([f"{limits['connections']} at once"] if limits.get("connections") else []),
        *([f"{limits['connection_rate']} connections"] if limits.get("connection_rate") else []),
        *([f"{limits['request_rate']} requests"] if limits.get("request_rate") else []),
        *([format_rate(limits["bandwidth"])] if limits.get("bandwidth") else []),
        *([f"{format_size(limits['quota'])} a month"] if limits.get("quota") else []),
    ]


def _rest(terms: dict[str, Any]) -> list[str]:
    expires = terms.get("expires")
    return [
        *(["headers changed"] if terms.get("headers") else []),
        *([f"ends in {format_duration(expires - time.time())}"] if expires else []),
    ]
