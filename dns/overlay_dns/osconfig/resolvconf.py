"""Plain `/etc/resolv.conf`: taken over while the network is up, put back after. See resolv.conf(5).

Before the file is changed, a journal in the daemon's state folder says what it was and what it will be. `restore`
undoes from the journal alone, so it works after a crash too; a file that somebody else has
written since is theirs and stays.

The former name servers stay in the file behind ours, and the C library is told to wait a second for each: when the
daemon is killed its address goes with its interface, and the next name server answers. At once where no route leads to
that address any more; a second later where it goes to the router, who knows nothing of it (so after a reboot, too).
"""

import errno
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Protocol

import msgspec

PATH = Path("/etc/resolv.conf")
JOURNAL_NAME = "resolv-conf.json"
_MARK = "# Written by overlay; the file before is put back by 'overlay down'."
PATIENCE = "timeout:1"
"""Seconds that the C library waits for one name server (resolv.conf(5)); five if nobody says. What is slow to answer is
asked of the next one as well, which does no harm: it is one that we would ask."""
_OPTIONS = f"options {PATIENCE} attempts:2"  # two is what it is without; so nobody else has just this line
_KEPT = "# before: "
_NAMESERVER_LIMIT = 3  # glibc and musl read no more: MAXNS in resolv.h
_log = logging.getLogger(__name__)


class Journal(Protocol):
    """Where the journal is kept; `overlay.daemon.state.StateDir` is one. Raises on failure to write."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the file was, and a digest of what we made of it."""

    path: str
    kind: Literal["file", "link", "missing"]
    content: bytes = b""  # of a file
    target: str = ""  # of a link
    led_to: str = ""  # digest of what it led to, "" for nothing: who looks after that changes it without the link
    mode: int = 0o644
    applied: str


class ResolvConf:
    """One resolver file and its journal."""

    def __init__(self, journal: Journal, path: Path = PATH) -> None:
        self._journal = journal
        self._path = path

    def apply(self, nameservers: Sequence[str], search: str, *, alone: bool = False) -> list[str]:
        """Point the file at `nameservers`, with `search`, domains by spaces, as first search domains.

        Returns the name servers found before. Those stand behind, unless `nameservers` are to be `alone`.

        Undoes an earlier take-over first. Raises `OSError`, or what the journal raises, with the file as it was.
        """
        self.restore()
        text = _read(self._path)
        is_edited = _MARK in text  # somebody has edited what we wrote: ours is no part of the original
        if is_edited:
            text = _without(text, nameservers, search)
        former = [server for server in parse_nameservers(text) if server not in nameservers]
        content = render(text, nameservers, former, search, alone=alone).encode()
        entry = _describe(self._path, hashlib.sha256(content).hexdigest())
        if is_edited:
            entry = msgspec.structs.replace(entry, content=text.encode())
        self._journal.write(JOURNAL_NAME, msgspec.json.encode(entry))
        try:
            _replace(self._path, content, 0o644)
        except OSError:
            self._journal.remove(JOURNAL_NAME)
            raise
        return former

    def is_changed(self) -> bool:
        """Whether the file is another one than we made (somebody else's, or none), or what it linked to before is."""
        data = self._journal.read(JOURNAL_NAME)
        try:
            entry = msgspec.json.decode(data, type=Entry) if data is not None else None
        except msgspec.DecodeError:
            return False
        return entry is not None and (
            _digest(self._path) != entry.applied or _led_to(self._path, entry) != entry.led_to
        )

    def restore(self) -> bool:
        """Put the file back as the journal says; returns whether it did. Nothing happens without a journal."""
        data = self._journal.read(JOURNAL_NAME)
        if data is None:
            return False
        try:
            entry = msgspec.json.decode(data, type=Entry)
        except msgspec.DecodeError:
            _log.warning("the journal %s is damaged; %s stays as it is", JOURNAL_NAME, self._path)
            self._journal.remove(JOURNAL_NAME)
            return False
        path = Path(entry.path)
        ours = _digest(path) == entry.applied
        if ours:
            _put_back(path, entry)
        else:
            _log.info("%s was changed by somebody else meanwhile and stays as it is", path)
        self._journal.remove(JOURNAL_NAME)
        return ours


def parse_nameservers(text: str) -> list[str]:
    """The name servers of a resolv.conf, in order; lines that the C library would skip are skipped."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with suppress(ValueError):
                ip_address(words[1].partition("%")[0])
                found.append(words[1])
    return found


def render(text: str, nameservers: Sequence[str], former: Sequence[str], search: str, *, alone: bool = False) -> str:
    """The new file: our name servers before the former ones, our search domain before the former ones, options kept.

    If `nameservers` are to be `alone`, the former ones are comments.
    """
    options: list[str] = []
    domains = own = search.split()
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["options"]:
            options.append(" ".join(words))
        elif words[:1] in (["search"], ["domain"]):
            domains = [*own, *(word for word in words[1:] if word not in own)]  # the last such line wins
    lines = [_MARK, f"search {' '.join(domains)}"]
    behind = () if alone else former
    lines += [f"nameserver {server}" for server in [*nameservers, *behind][:_NAMESERVER_LIMIT]]
    lines += [f"{_KEPT}nameserver {server}" for server in former if server not in behind]
    if not any(word.startswith("timeout:") for line in options for word in line.split()):
        options.append(_OPTIONS)
    return "\n".join([*lines, *options]) + "\n"


def _without(text: str, nameservers: Sequence[str], search: str) -> str:
    """A file of ours that somebody has edited, without what is ours."""
    kept = []
    for line in text.splitlines():
        line = line.removeprefix(_KEPT)
        words = line.split()
        if words[:1] == ["search"]:
            words = [word for word in words if word not in search.split()]
            line = " ".join(words)
        if (
            line not in (_MARK, _OPTIONS)
            and words != ["search"]
            and not (words[:1] == ["nameserver"] and set(words[1:2]) & set(nameservers))
        ):
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _describe(path: Path, applied: str) -> Entry:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Entry(path=str(path), kind="missing", applied=applied)
    if stat.S_ISLNK(status.st_mode):
        entry = Entry(path=str(path), kind="link", target=os.readlink(path), applied=applied)
        return msgspec.structs.replace(entry, led_to=_led_to(path, entry))
    mode = stat.S_IMODE(status.st_mode)
    return Entry(path=str(path), kind="file", content=path.read_bytes(), mode=mode, applied=applied)


def _led_to(path: Path, entry: Entry) -> str:
    if entry.kind != "link":
        return ""
    try:
        return hashlib.sha256((path.parent / entry.target).read_bytes()).hexdigest()
    except OSError:
        return ""


def _put_back(path: Path, entry: Entry) -> None:
    if entry.kind == "file":
        _replace(path, entry.content, entry.mode)
    elif entry.kind == "missing":
        path.unlink(missing_ok=True)
    else:
        temporary = _temporary(path)
        os.symlink(entry.target, temporary)
        os.rename(temporary, path)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Replace the file (or link) at once; in place where it is a mount of its own, as in containers."""
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask is: everybody resolves names
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        with path.open("wb") as file:
            file.write(content)


def _temporary(path: Path) -> Path:
    """Of this call alone: machines in namespaces have resolver files of their own in a folder that is everybody's."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:  # missing, or a link to nowhere
        return ""


def _digest(path: Path) -> str | None:
    try:
        return None if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
