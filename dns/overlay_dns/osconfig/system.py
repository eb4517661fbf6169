"""The system pointed at our resolver, whichever way it has for that, and put back. Blocking: for a thread.

Where our resolver is first in a list, the system's own name servers stand behind it, and answer when the daemon is
killed (see `resolvconf`).
"""

import logging
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final, Literal

import msgspec

from overlay_dns.osconfig.bus import Bus
from overlay_dns.osconfig.decision import STUBS, Decision, Found, decide, survey
from overlay_dns.osconfig.resolvconf import PATH, PATIENCE, Journal, ResolvConf, parse_nameservers
from overlay_dns.osconfig.resolved import Resolved

ROOT: Final = "."
"""As a route: all names."""
JOURNAL_NAME: Final = "system-dns.json"
UPLINKS: Final = Path("/run/systemd/resolve/resolv.conf")
"""The name servers that resolved itself asks (systemd-resolved.service(8))."""
RECORD: Final = "tun0.overlay"
"""Our name in resolvconf: openresolv and Debian's list tunnels (`tun[0-9]*`) first, if they have no metric."""
PROGRAM_TIMEOUT: Final = 5.0
REAPPLY_LIMIT: Final = 5
REAPPLY_WINDOW: Final = 600.0
"""So often in so many seconds is the configuration put right after others: more would be a fight."""

_log = logging.getLogger(__name__)


class SystemDnsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, what was done and why."""

    way: str  # "resolved", "resolvconf", "file", "none"
    reason: str
    done: str  # a sentence
    warning: str
    found: Found | None
    upstreams: list[str]  # the system's own name servers
    reapplied: int  # times that others had changed it since


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    way: Literal["resolvconf", "resolved"]
    interface: str = ""


class SystemDns:
    """`path`: the resolver file. `bus`: another one than the system's, for a test."""

    def __init__(
        self,
        journal: Journal,
        path: Path = PATH,
        *,
        bus: Bus | None = None,
        uplinks: Path = UPLINKS,
        clock: Callable[[], float] = monotonic,
        look: Callable[[Path, Bus], Found] = survey,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`guard` is called before ours is written as the only name server: somebody must undo that after a kill."""
        self._journal = journal
        self._path = path
        self._file = ResolvConf(journal, path)
        self._bus = bus or Bus()
        self._resolved = Resolved(self._bus)
        self._uplinks = uplinks
        self._clock = clock
        self._look = look
        self._guard = guard
        self._found: Found | None = None
        self._decision = Decision(way="none", reason="names have not been brought up")
        self._wanted: tuple[str, tuple[str, ...], str, tuple[str, ...]] | None = None
        self._upstreams: list[str] = []
        self._owner = ""
        self._alone = False
        self._reapplied: list[float] = []
        self._reapplications = 0
        self._gave_up = ""

    def status(self) -> SystemDnsStatus:
        """What was found, what was done and why."""
        return SystemDnsStatus(
            way=self._decision.way,
            reason=self._decision.reason,
            done=self._done(),
            warning=self._gave_up or self._decision.warning,
            found=self._found,
            upstreams=list(self._upstreams),
            reapplied=self._reapplications,
        )

    def _done(self) -> str:
        if self._wanted is None or self._gave_up:
            return "nothing is changed"
        _, servers, search, routes = self._wanted
        ours = ", ".join(servers)
        match self._decision.way:
            case "resolved":
                what = "all names" if ROOT in routes else ", ".join((search, *routes))
                return f"systemd-resolved asks {ours} for {what}"
            case "resolvconf":
                return f"resolvconf has {ours} as {RECORD}, before the system's own name servers"
            case "file":
                rest = "alone" if self._alone else "before the system's own name servers"
                return f"{self._path} names {ours} {rest}, and searches {search}"
        return "nothing is changed"

    @property
    def upstreams(self) -> list[str]:
        """The system's own name servers, as found last."""
        return list(self._upstreams)

    @property
    def takes_over(self) -> bool:
        """Whether all of the system's questions come to our resolver."""
        if self._decision.way == "resolved":
            return self._wanted is not None and ROOT in self._wanted[3]
        return self._decision.way in ("file", "resolvconf")

    def apply(self, interface: str, servers: Sequence[str], search: str, routes: Sequence[str] = ()) -> list[str]:
        """Point the system at `servers` on `interface`, for `search` and the (reverse) zones `routes` or for all.
        `search`: domains, by spaces.

        Where the system splits, `ROOT` among the routes brings us all names. Returns the system's own name servers.
        Raises `OSError`, or what the journal raises, with all as it was.
        """
        self.restore()
        self._found = self._look(self._path, self._bus)
        self._decision = decide(self._found)
        self._wanted = (interface, tuple(servers), search, tuple(routes))
        # Whom a person chose for all names is not to be passed over for the system's when it is slow.
        self._alone = self._decision.way == "file" and (self._decision.alone or ROOT in routes)
        if self._alone:
            self._guard()
        if self._decision.way == "none":
            _log.warning("%s", self._decision.warning)
        self._upstreams = self._do()
        return self._upstreams

    def route(self, routes: Sequence[str]) -> None:
        """The zones besides `search` are these now. Raises `OSError`."""
        if self._wanted is None or self._wanted[3] == tuple(routes):
            return
        self._wanted = (*self._wanted[:3], tuple(routes))
        if self._decision.way == "resolved":  # elsewhere all questions come to us
            self._do()

    def check(self) -> bool:
        """Put right what others have changed since, within bounds; returns whether there was something."""
        if self._wanted is None or self._gave_up or not self._is_changed():
            return False
        now = self._clock()
        self._reapplied = [at for at in self._reapplied if now - at < REAPPLY_WINDOW]
        if len(self._reapplied) >= REAPPLY_LIMIT:
            self._gave_up = (
                f"another program keeps changing {self._path}, which is left to it: names of the network may not work; "
                "stop that program or tell it of our name server, then run 'overlay down' and 'overlay up'"
            )
            _log.warning("%s", self._gave_up)
            return False
        self._reapplied.append(now)
        self._reapplications += 1
        self._upstreams = self._do()
        _log.info("the system's resolver configuration was changed by somebody else and is pointed at us again")
        return True

    def restore(self) -> bool:
        """Undo what was changed, by this process or one before it; returns whether there was something. Idempotent."""
        self._wanted, self._gave_up = None, ""
        undone = self._file.restore()
        data = self._journal.read(JOURNAL_NAME)
        if data is None:
            return undone
        try:
            entry = msgspec.json.decode(data, type=_Entry)
            if entry.way == "resolvconf":
                with suppress(FileNotFoundError):  # the program is gone, and with it what it had
                    _resolvconf("-f", "-d", RECORD)
            else:
                with suppress(OSError):  # the interface is gone, or resolved is: so is what was set
                    self._resolved.revert(socket.if_nametoindex(entry.interface))
        except msgspec.DecodeError:
            _log.warning("the journal %s is damaged", JOURNAL_NAME)
        self._journal.remove(JOURNAL_NAME)
        return True

    def _do(self) -> list[str]:
        assert self._wanted is not None
        interface, servers, search, routes = self._wanted
        if self._decision.way == "file":
            former = self._file.apply(servers, search, alone=self._alone)
            if self._found is None or not self._found.resolved:
                return former
            # It may ask whom the file names, and that is us: whom it asked before, it is not asked itself.
            return [server for server in former if server not in STUBS] or self._others(self._uplinks, servers)
        if self._decision.way == "none":
            return self._others(self._path, servers)
        entry = _Entry(way=self._decision.way, interface=interface)
        self._journal.write(JOURNAL_NAME, msgspec.json.encode(entry))
        if self._decision.way == "resolved":
            self._owner = self._resolved.owner()
            self._resolved.apply(socket.if_nametoindex(interface), servers, search.split(), routes)
            return self._others(self._uplinks, servers)
        former = self._others(self._path, servers)
        lines = [f"search {search}", *(f"nameserver {server}" for server in servers), f"options {PATIENCE}"]
        _resolvconf("-a", RECORD, given="\n".join(lines) + "\n")
        return former

    def _is_changed(self) -> bool:
        if self._decision.way == "file":
            return self._file.is_changed()
        if self._decision.way == "resolved":
            owner = self._resolved.owner()
            return bool(owner) and owner != self._owner  # it has started anew, and knows nothing of us
        if self._decision.way == "resolvconf":
            assert self._wanted is not None
            return self._wanted[1][0] not in _nameservers(self._path)
        return False

    @staticmethod
    def _others(path: Path, servers: Sequence[str]) -> list[str]:
        return [server for server in _nameservers(path) if server not in servers and server not in STUBS]


def _nameservers(path: Path) -> list[str]:
    try:
        return parse_nameservers(path.read_text(errors="replace"))
    except OSError:
        return []


def _resolvconf(*arguments: str, given: str = "") -> None:
    try:
        subprocess.run(
            ["resolvconf", *arguments], input=given, text=True, check=True, capture_output=True, timeout=PROGRAM_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        raise OSError(f"resolvconf failed: {error.stderr.strip()[:200]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError("resolvconf does not come to an end") from error
