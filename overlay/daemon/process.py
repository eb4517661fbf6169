"""A daemon's process: its event loop, errors for people unwrapped, and its `main` when it runs in the background."""

import gc
import sys
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio

from overlay.daemon.collector import collect_while_at_rest
from overlay.daemon.launch import read_settings, report_error
from overlay.errors import Exit, UserError


class Run(Protocol):
    """A daemon's life. Raises `UserError`, or `KeyboardInterrupt` when it was ended by SIGINT."""

    def __call__(self, settings: Any, *, background: bool) -> None: ...


def background_main(run: Run, settings: type[Any]) -> int:
    """The `main` of `python -m overlay.node` and its like: settings on standard input, an exit code out."""
    try:
        run(read_settings(settings), background=True)
    except UserError as error:
        if not report_error(error):  # it was ready before: the log is all that is left to tell
            sys.stderr.write(f"overlay: {error.message} {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.DONE


def run_loop(main: Callable[[], Awaitable[None]], new_loop: Callable[[], AbstractEventLoop]) -> None:
    """Run `main` in an event loop of its own. Raises as `unwrapped` does.

    What was imported stays for good, so the collector need not look at it again: a full collection of a daemon's 85,000
    objects takes 38 ms, in which no other thread runs, the data plane's neither.
    """
    gc.collect()  # what is garbage already would stay, too
    gc.freeze()

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect_while_at_rest)
            await main()
            tasks.cancel_scope.cancel()

    anyio.run(unwrapped, run, backend_options={"loop_factory": new_loop})


async def unwrapped(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main`; the first `UserError` of an exception group is raised in the group's place."""
    try:
        await main()
    except BaseExceptionGroup as group:
        error = _first_user_error(group)
        if error is None:
            raise
        raise error from group


def _first_user_error(group: BaseExceptionGroup[BaseException]) -> UserError | None:
    for error in group.exceptions:
        found = _first_user_error(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, UserError):
            return found
    return None
