"""The registry's file: opened, checked, migrated, and written in transactions. Knows no policy.

SQLite in WAL mode, one connection: transactions follow one another, and a reader from outside (a backup) never blocks
us for longer than the busy timeout. What the file system or a damaged file does is a `UserError`, never a traceback;
a transaction that failed has changed nothing.
"""

import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from sqlalchemy import create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from overlay.daemon.state import corrupt, write_error
from overlay.errors import UserError
from overlay.server.schema import REVISION, metadata, version_table
from overlay.server.transaction import Transaction

FILE_NAME = "registry.sqlite"
_BUSY_TIMEOUT = 5.0  # s; somebody copies the file: wait, but not longer than a person would
_MIGRATIONS = Path(__file__).parent / "migrations"


class Registry:
    """An open registry. Make one with `Registry.open`."""

    def __init__(self, path: Path, engine: AsyncEngine) -> None:
        self.path = path
        self._engine = engine

    @classmethod
    async def open(cls, path: Path) -> "Registry":
        """Open the file, making or migrating it if need be.

        Raises `UserError`: "state-corrupt", "state-newer" (a later release wrote it), "state-write-failed",
        "no-permission".
        """
        await anyio.to_thread.run_sync(_prepare, path)
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0, connect_args={"timeout": _BUSY_TIMEOUT}
        )
        event.listen(engine.sync_engine, "connect", _configure)
        event.listen(engine.sync_engine, "begin", _begin)
        return cls(path, engine)

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """All or nothing. Commits at the end of the block, rolls back if it raises.

        Not cancellable (it is short, and half a commit is nobody's friend): do nothing slow in it. Raises `UserError`
        as `open` does.
        """
        with anyio.CancelScope(shield=True):
            try:
                async with self._engine.begin() as connection:
                    yield Transaction(connection, self.path)
            except SQLAlchemyError as error:
                raise storage_error(self.path, error) from error


def _prepare(path: Path) -> None:
    """Make, check and migrate the file, with the plain driver, in a worker thread."""
    try:
        # SQLite would make the file with the umask's mode, and gives its own mode to the files beside it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise write_error(path, error) from error
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": _BUSY_TIMEOUT})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    try:
        with engine.begin() as connection:
            found = connection.execute(text("PRAGMA quick_check(1)")).scalar()
            if found != "ok":
                raise corrupt(path, str(found).splitlines()[-1])
            _migrate(connection, path)
    except SQLAlchemyError as error:
        raise storage_error(path, error) from error
    finally:
        engine.dispose()


def _migrate(connection: Connection, path: Path) -> None:
    """Bring the tables to `REVISION`.

    A file without any gets them from the schema at once, as if all migrations had run (a test holds the two together):
    so alembic, and what it imports, is in the memory of a daemon only after an upgrade.
    """
    if not inspect(connection).get_table_names():
        metadata.create_all(connection)
        version_table.create(connection)
        connection.execute(insert(version_table).values(version_num=REVISION))
        return
    revision = connection.execute(select(version_table.c.version_num)).scalar()
    if revision != REVISION:
        upgrade(connection, path, revision)


def upgrade(connection: Connection, path: Path, revision: str | None) -> None:
    """Run the migrations after `revision`. Raises `UserError` ("state-newer")."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise UserError(
            "state-newer",
            f"The registry {path} was written by a later release (revision {revision}; this one knows {REVISION}).",
            "Install that release again, or put a copy of the registry from before back.",
        )
    command.upgrade(config, "head")


def _configure(connection: Any, _record: object) -> None:
    # The driver's own transaction control begins late and commits around DDL; ours is explicit, see `_begin`.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def storage_error(path: Path, error: SQLAlchemyError) -> UserError:
    """The sentence for what SQLite said."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return write_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return write_error(path, OSError(errno.EACCES, str(cause)))
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR) or cause is None:
        # SQLITE_ERROR is a table or column that is not there: a file of somebody else's.
        return corrupt(path, str(cause or error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UserError(
            "state-busy", f"The registry {path} is locked by another program.", "End that program and try again."
        )
    return UserError("state-write-failed", f"Cannot use the registry {path}: {cause}.", "See whether its disk is well.")
