"""Tokens for HTTP CONNECT: made, shown once, kept as digests, and looked up when somebody shows one."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import json_object
from overlay.errors import Exit, UserError
from overlay.server.registry import Registry
from overlay.server.schema import TokenRecord
from overlay.wire.control.proxy_token import LONGEST, SECRET_SIZE, ProxyToken

MOST_TOKENS: Final = 1000
MOST_EXPIRY: Final = 10 * 365 * 24 * 3600.0  # s
DEFAULT_EXPIRY: Final = 30 * 24 * 3600.0  # s


class Tokens:
    """All methods are for the event loop."""

    def __init__(
        self,
        registry: Registry,
        *,
        wall: Callable[[], float],
        random_bytes: Callable[[int], bytes],
        names: Callable[[], Mapping[str, int]],
        place: Callable[[], tuple[tuple[str, ...], bytes]],
    ) -> None:
        """`names`: of all nodes, and their numbers; `place`: the server's addresses and its certificate's pin."""
        self._registry = registry
        self._wall = wall
        self._random_bytes = random_bytes
        self._names = names
        self._place = place
        self._by_digest: dict[bytes, TokenRecord] = {}
        self._removed: Callable[[int], None] = lambda token: None

    async def start(self) -> None:
        async with self._registry.transaction() as transaction:
            self._by_digest = {record.digest: record for record in await transaction.tokens()}

    def find(self, text: str) -> TokenRecord | None:
        """Also one that has expired. What a stranger can learn from how long it takes is of a digest alone."""
        return self._by_digest.get(_digest(text)) if len(text) <= LONGEST else None

    async def add(self, nodes: tuple[str, ...], expires_in: float) -> dict[str, Any]:
        """{"id", "token", "nodes", "expires"}. `nodes`: which alone are reached; (): all. Raises `UserError`:
        "node-unknown", "token-invalid", "too-many-tokens"."""
        names = self._names()
        unknown = next((name for name in nodes if name.lower() not in names), None)
        if unknown is not None:
            raise UserError("node-unknown", f"There is no node '{unknown[:100]}'.", "See 'overlay node ls'.")
        if not 0 < expires_in <= MOST_EXPIRY:  # false for NaN too
            raise UserError(
                "token-invalid", "A token's time must be more than nothing and at most ten years.", exit_code=Exit.USAGE
            )
        if len(self._by_digest) >= MOST_TOKENS:
            raise UserError(
                "too-many-tokens", f"There are {MOST_TOKENS} tokens.", "Remove some with 'overlay token rm ID'."
            )
        addresses, pin = self._place()
        text = ProxyToken(addresses, self._random_bytes(SECRET_SIZE), pin).encode()
        now = self._wall()
        wanted = TokenRecord(
            id=0,
            digest=_digest(text),
            nodes=tuple(names[name.lower()] for name in nodes),
            created=now,
            expires=now + expires_in,
        )
        async with self._registry.transaction() as transaction:
            record = await transaction.add_token(wanted)
        self._by_digest[record.digest] = record
        return {**self._show(record), "token": text}

    def when_removed(self, call: Callable[[int], None]) -> None:
        """Have this called with the number of each token that is taken back."""
        self._removed = call

    async def remove(self, name: str) -> None:
        """Raises `UserError` ("token-unknown"). Connections that have begun by it end."""
        record = next((each for each in self._by_digest.values() if each.name == name), None)
        if record is None:
            raise UserError("token-unknown", f"There is no token '{name[:64]}'.", "See 'overlay token ls'.")
        async with self._registry.transaction() as transaction:
            await transaction.remove_token(record.id)
        self._by_digest.pop(record.digest, None)
        self._removed(record.id)

    def status(self) -> list[dict[str, Any]]:
        return [self._show(record) for record in self._by_digest.values()]

    def _show(self, record: TokenRecord) -> dict[str, Any]:
        numbers = {number: name for name, number in self._names().items()}
        return {
            "id": record.name,
            "nodes": [numbers.get(number, f"number {number}") for number in record.nodes],
            "expires": record.expires,
        }


def _digest(text: str) -> bytes:
    """Of 128 random bits: no salt or stretching is needed against guessing."""
    return hashlib.blake2s(text.encode("utf-8", "surrogatepass"), person=b"proxy").digest()


def token_routes(tokens: Tokens) -> list[Route]:
    """Of the server's local API."""

    async def add(request: Request) -> Response:
        document = await json_object(request)
        nodes, expires_in = document.get("nodes", []), document.get("expires_s", DEFAULT_EXPIRY)
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
            raise UserError("bad-request", "'nodes' must be a list of texts.", exit_code=Exit.USAGE)
        if not isinstance(expires_in, int | float) or isinstance(expires_in, bool):
            raise UserError("bad-request", "'expires_s' must be a number of seconds.", exit_code=Exit.USAGE)
        return JSONResponse(await tokens.add(tuple(nodes), expires_in))

    async def show(_request: Request) -> Response:
        return JSONResponse({"tokens": tokens.status()})

    async def remove(request: Request) -> Response:
        await tokens.remove(request.path_params["id"])
        return JSONResponse({})

    return [
        Route("/v1/tokens", add, methods=["POST"]),
        Route("/v1/tokens", show, methods=["GET"]),
        Route("/v1/tokens/{id}", remove, methods=["DELETE"]),
    ]
