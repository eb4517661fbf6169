"""Serves an ASGI application within a daemon, whose signals and log stay its own."""

import asyncio
import socket
from contextlib import nullcontext
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol


async def serve_application(
    app: ASGIApp,
    listener: socket.socket,
    *,
    http: type[H11Protocol] = H11Protocol,
    limit: int | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled; closes the listener. Signals `started` once callers can connect. `limit`: of them at once."""
    settings: dict[str, Any] = {"ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
    config = uvicorn.Config(
        app, http=http, server_header=False, proxy_headers=False, limit_concurrency=limit, **settings
    )
    server = _Server(config)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            try:
                await server.listening.wait()
                task_status.started()
                await anyio.sleep_forever()
            finally:
                server.should_exit = server.force_exit = True
    finally:
        # uvicorn leaves its reader behind when it is cancelled; the next owner of this descriptor would never be woken.
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (the daemon has its own), saying when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = anyio.Event()

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()
