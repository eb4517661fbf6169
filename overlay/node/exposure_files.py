"""Files that say what is exposed: what their entries ask for and what there is are made to agree, and files that are
watched are read again when they change.

What stands in a file is the command line's affair, since its keys are options: it is read by a process of the program's
own, with the rights of the user who named the file, and the entries come here as wishes (`apply`). Here is known by
which entry each exposure was asked for, so that nobody has to remember what the file said before.
"""

import logging
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, Literal

import anyio
import msgspec

from overlay.daemon.launch import error_document
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node.exposures import Exposures
from overlay.node.kept import Kept
from overlay.node.ranges import spread, whole
from overlay.node.status import Entry, ExposeWish, ExposureStatus
from overlay.node.wishes import is_renewable

FILE: Final = "exposure-files.json"
MOST_FILES: Final = 16
MOST_ENTRIES: Final = 256
MOST_REMEMBERED: Final = 64  # files of whose entries is known when they were published first
LOOK_INTERVAL: Final = 0.5  # s between looks at a file; it is read when two of them show the same
RETRY_INTERVAL: Final = 30.0  # s until a file is read again of which something failed that may pass
READ_TIMEOUT: Final = 120.0  # s for reading and applying one
_LONGEST_PROBLEM: Final = 1000  # characters of it are shown
_NEVER: Final[Mapping[str, float]] = MappingProxyType({})

_log = logging.getLogger(__name__)

Action = Literal["kept", "added", "changed", "replaced", "removed", "over"]
"""over: it is not published, as its time is over."""
Signature = tuple[int, int, int]
"""Changes when a file is written, or another one is put in its place."""


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    hint: str
    exit_code: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an entry, or would become of it."""

    entry: str
    action: Action
    exposure: ExposureStatus | None = None  # as it is now; None: there is none
    error: ErrorDocument | None = None  # why the action failed


class WatchedFile(msgspec.Struct, frozen=True, kw_only=True):
    file: str  # absolute
    owner: int  # uid of who named it


class FileStatus(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    watched: bool
    problem: str = ""  # what is wrong with it, or with some of its entries


class _KeptFiles(msgspec.Struct, frozen=True, kw_only=True):
    files: tuple[WatchedFile, ...] = ()
    since: dict[str, dict[str, float]] = {}  # by file and entry: when it was published first, Unix time


class ExposureFiles:
    """Files are applied one after another."""

    def __init__(self, state: StateDir, exposures: Exposures, wall: Callable[[], float] = time.time) -> None:
        """Raises `UserError` ("state-corrupt")."""
        stored = state.read_struct(FILE, _KeptFiles) or _KeptFiles()
        self._watched = {each.file: each for each in stored.files}
        self._since = stored.since
        self._wall = wall
        self._state = state
        self._exposures = exposures
        self._lock = anyio.Lock()
        self._problems: dict[str, str] = {}
        self._seen: dict[str, Signature | None] = {}  # what was there at the last look
        self._applied: dict[str, Signature | None] = {}  # what was read last
        self._retry_at: dict[str, float] = {}

    def status(self) -> tuple[FileStatus, ...]:
        named = {shown.entry.file for shown in self._exposures.status() if shown.entry is not None}
        return tuple(
            FileStatus(file=file, watched=file in self._watched, problem=self._problems.get(file, ""))
            for file in sorted(named | set(self._watched))
        )

    async def apply(
        self,
        file: str,
        entries: Mapping[str, ExposeWish],
        owner: int = 0,
        *,
        lasts: Mapping[str, float] = _NEVER,
        dry: bool = False,
    ) -> tuple[Outcome, ...]:
        """Make what this file asked for before what it asks for now, for the user of this uid. An entry that fails
        leaves the others alone; what was there for it stays where that can be. `lasts`: seconds from when an entry was
        published first, however often the file is read. `dry`: only say what would be done. Raises `UserError`
        ("bad-request")."""
        _check_path(file)
        if len(entries) > MOST_ENTRIES:
            raise _bad(f"A file of exposures has {MOST_ENTRIES} entries at most")
        async with self._lock:
            there, now, since = self._exposures.declared(file), self._wall(), self._since.get(file, {})
            timed = {
                name: _ending(wish, since.get(name, now) + lasts[name]) if name in lasts else wish
                for name, wish in entries.items()
            }
            over = {name for name, wish in timed.items() if 0 < wish.terms.expires <= now}
            wanted = {name: wish for name, wish in timed.items() if name not in over}
            plan: dict[str, Action] = {name: _plan(there.get(name, ()), wish) for name, wish in wanted.items()}
            plan |= {name: "removed" for name in there if name not in wanted}
            plan |= {name: "over" for name in over if name not in there}
            if dry:
                shown = self._shown(file)
                return tuple(
                    Outcome(entry=name, action=action, exposure=shown.get(name)) for name, action in plan.items()
                )
            outcomes = await self._carry_out(file, wanted, owner, there, plan)
            published = set(since) | set(self._exposures.declared(file))
            await self._note(file, {name: since.get(name, now) for name in entries if name in published})
            return outcomes

    async def watch(self, file: str, owner: int) -> None:
        """Go on applying this file as it changes, after a restart too. Raises `UserError`."""
        if self._watched.get(file) == WatchedFile(file=file, owner=owner):
            return
        if os.geteuid() != 0 and owner not in (0, os.geteuid()):
            raise UserError(
                "file-forbidden",
                "This daemon runs without root and cannot read files for another user than its own.",
                "Leave out --background, or start a daemon of your own with --state.",
                Exit.REFUSED,
            )
        if len(self._watched) >= MOST_FILES and file not in self._watched:
            raise UserError(
                "too-many-files",
                f"{MOST_FILES} files are watched already.",
                "End one with 'overlay expose rm FILE'.",
                Exit.REFUSED,
            )
        await self._save({**self._watched, file: WatchedFile(file=file, owner=owner)}, self._since)

    async def forget(self, file: str) -> tuple[Outcome, ...]:
        """Watch it no longer, and give back what it asked for. Raises `UserError` ("file-unknown")."""
        if file not in self._watched and not self._exposures.declared(file):
            raise UserError(
                "file-unknown", f"Nothing is exposed by a file {file}.", "See 'overlay expose ls' for what is."
            )
        await self._save({name: each for name, each in self._watched.items() if name != file}, self._since)
        for kept in (self._problems, self._seen, self._applied, self._retry_at):
            kept.pop(file, None)
        return await self.apply(file, {})

    async def run(self) -> None:
        """Look after the watched files until cancelled."""
        while True:
            for watched in tuple(self._watched.values()):
                await self._look_after(watched)
            await anyio.sleep(LOOK_INTERVAL)

    # inside ----------------------------------------------------------------------------------------------------------

    async def _carry_out(
        self,
        file: str,
        entries: Mapping[str, ExposeWish],
        owner: int,
        there: Mapping[str, tuple[Kept, ...]],
        plan: Mapping[str, Action],
    ) -> tuple[Outcome, ...]:
        """Names and ports are freed before others take them."""
        exposures, failed = self._exposures, dict[str, UserError]()
        freed: set[str] = set()

        async def attempt(name: str, part: Awaitable[object]) -> None:
            try:
                await part
            except UserError as error:
                failed[name] = error

        for name, action in plan.items():
            if action in ("removed", "replaced"):
                await attempt(name, self._remove(there[name][0]))
                if name not in failed:
                    freed.add(name)
        for name, action in plan.items():
            wish = entries.get(name)
            if wish is None or action == "kept" or name in failed:
                continue
            if action == "changed":
                await attempt(name, self._change(there[name], wish, owner))
            else:
                await attempt(name, exposures.add(wish, owner, Entry(file=file, name=name)))
        for name in freed & set(failed):
            before = [kept.wish for kept in there[name] if kept.wish is not None]
            if before:
                try:
                    await exposures.add_all(before, there[name][0].owner, Entry(file=file, name=name))
                except UserError as error:
                    _log.warning("exposure %s of %s is gone: %s", name, file, error)
        shown = self._shown(file)
        return tuple(
            Outcome(
                entry=name,
                action=action,
                exposure=shown.get(name),
                error=ErrorDocument(**error_document(failed[name])) if name in failed else None,
            )
            for name, action in plan.items()
        )

    async def _remove(self, kept: Kept) -> None:
        """The whole range, if it is one of a range."""
        try:
            await self._exposures.remove(kept.range or kept.id)
        except UserError as error:
            if error.code != "exposure-unknown":  # its time was over just now, or the server has taken it
                raise

    async def _change(self, there: Sequence[Kept], wish: ExposeWish, owner: int) -> None:
        """All ports of a range, or none."""
        changed: list[Kept] = []
        try:
            for kept, one in zip(there, spread(wish), strict=True):
                await self._exposures.change(kept.id, one, owner)
                changed.append(kept)
        except UserError:
            for kept in changed:
                if kept.wish is not None:
                    with suppress(UserError):  # it is made right when the file is applied the next time
                        await self._exposures.change(kept.id, kept.wish, kept.owner)
            raise

    def _shown(self, file: str) -> dict[str, ExposureStatus]:
        """What there is, by entry."""
        by_id = {each.id: each for each in self._exposures.status()}
        return {name: whole([by_id[each.id] for each in kept]) for name, kept in self._exposures.declared(file).items()}

    async def _look_after(self, watched: WatchedFile) -> None:
        file, now = watched.file, anyio.current_time()
        signature = await _look(file)
        before, self._seen[file] = self._seen.get(file), signature
        if signature is None:
            self._applied.pop(file, None)
            if file not in self._problems:
                _log.warning("the file of exposures %s is gone; what it asked for stays", file)
                self._problems[file] = "The file is gone; what it asked for stays."
            return
        due = now >= self._retry_at.get(file, float("inf"))
        if signature != before or (signature == self._applied.get(file) and not due):
            return
        self._applied[file] = signature
        problem, passes = await self._read(watched)
        if file not in self._watched:
            return
        if problem and problem != self._problems.get(file):
            _log.warning("the file of exposures %s: %s", file, problem)
        self._retry_at.pop(file, None)
        self._problems.pop(file, None)
        if problem:
            self._problems[file] = problem
        if passes:
            self._retry_at[file] = now + RETRY_INTERVAL

    async def _read(self, watched: WatchedFile) -> tuple[str, bool]:
        """Have it read and applied. → what went wrong, and whether that may be otherwise the next time"""
        command = [
            sys.executable,
            "-m",
            "overlay_cli",
            "expose",
            "--file",
            watched.file,
            "--background",
            "--unattended",
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERLAY_")}
        try:
            user, group, groups = rights_of(watched.owner)
            with anyio.fail_after(READ_TIMEOUT):
                done = await anyio.run_process(
                    [*command, "--state", str(self._state.path)],
                    stdin=subprocess.DEVNULL,
                    check=False,
                    cwd="/",
                    env=environment,
                    user=user,
                    group=group,
                    extra_groups=groups,
                )
        except TimeoutError:
            return "It could not be read in time.", True
        except (OSError, KeyError) as error:
            return f"It could not be read ({error}).", True
        if done.returncode == 0:
            return "", False
        said = done.stderr.decode(errors="replace").strip()[:_LONGEST_PROBLEM]
        return said or "It could not be applied.", done.returncode != Exit.USAGE

    async def _note(self, file: str, since: dict[str, float]) -> None:
        """When entries of a file were published first; of those that it has no longer nothing is known."""
        if since == self._since.get(file, {}):
            return
        others = {name: each for name, each in self._since.items() if name != file}
        for oldest in list(others)[: max(0, len(others) - MOST_REMEMBERED + 1)]:
            del others[oldest]
        await self._save(self._watched, {**others, file: since} if since else others)

    async def _save(self, watched: dict[str, WatchedFile], since: dict[str, dict[str, float]]) -> None:
        kept = _KeptFiles(files=tuple(watched.values()), since=since)
        await anyio.to_thread.run_sync(self._state.write_struct, FILE, kept)
        self._watched, self._since = watched, since


def _ending(wish: ExposeWish, at: float) -> ExposeWish:
    return msgspec.structs.replace(wish, terms=msgspec.structs.replace(wish.terms, expires=at))


def _plan(there: Sequence[Kept], wish: ExposeWish) -> Action:
    if not there:
        return "added"
    try:
        wishes = spread(wish)
        if [kept.wish for kept in there] == list(wishes):
            return "kept"
        pairs = zip(there, wishes, strict=False)  # of another length it is another range
        renewable = [is_renewable(kept.wish, one) for kept, one in pairs]
        return "changed" if len(there) == len(wishes) and all(renewable) else "replaced"
    except UserError:
        return "changed"  # which says what is wrong with it, and leaves what is there


def rights_of(owner: int) -> tuple[int | None, int | None, list[int] | None]:
    """User, group and further groups of a process that reads a file for this user; None: those of this one. Raises
    `KeyError`: there is no such user any more."""
    if owner in (0, os.geteuid()):
        return None, None, None
    entry = pwd.getpwuid(owner)
    return owner, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)


async def _look(file: str) -> Signature | None:
    try:
        found = await anyio.Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_path(file: str) -> None:
    if not file.startswith("/") or not file.isprintable() or len(file) > 4096:
        raise _bad("A file of exposures is named by its absolute path")


def _bad(sentence: str) -> UserError:
    return UserError("bad-request", f"{sentence}.", exit_code=Exit.USAGE)
