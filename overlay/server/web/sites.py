"""Which exposure a user is for, by the host and path prefix of a request or the name in a ClientHello, and what became
of the last requests."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import anyio

from overlay.server.access.gate import Asker, Gate
from overlay.server.tunnels import Tunnel
from overlay.wire.control.messages import RequestEntry

MAX_SERVED: Final = 1024  # at once, of one exposure: each has a connection to its target
LOG_SIZE: Final = 200  # requests of one exposure that are remembered


@dataclass(eq=False)
class Site:
    """One exposure that users find by its name, or by http at a port."""

    name: str
    tunnel: Tunnel
    log: deque[RequestEntry] = field(default_factory=lambda: deque(maxlen=LOG_SIZE))
    count: int = 0  # requests so far
    gate: Gate = field(default_factory=Gate)
    is_near: Callable[[str], bool] = lambda source: False
    """Whether who comes from this address may be told where the target is: peers, and the node's own place."""
    watchers: dict[str, Callable[[RequestEntry], None]] = field(default_factory=dict)  # by exposure's name
    _served: dict[anyio.CancelScope, Asker] = field(default_factory=dict)
    _askers: Counter[Asker] = field(default_factory=Counter)

    @property
    def connections(self) -> int:
        """Users who are being served: by HTTP/2 one may ask for many things at once."""
        return len(self._askers)

    def full_for(self, asker: Asker) -> bool:
        """Whether nothing more is taken from this user now."""
        limit = self.gate.terms.limits.connections
        if len(self._served) >= max(limit, MAX_SERVED):
            return True
        return bool(limit) and asker not in self._askers and len(self._askers) >= limit

    def enter(self, scope: anyio.CancelScope, asker: Asker) -> None:
        """A user is being served within this scope, until it `leave`s."""
        self._served[scope] = asker
        self._askers[asker] += 1

    def leave(self, scope: anyio.CancelScope) -> None:
        asker = self._served.pop(scope)
        self._askers[asker] -= 1
        if not self._askers[asker]:
            del self._askers[asker]

    def close(self) -> None:
        """It is given back: those who are being served are cut off."""
        for scope in tuple(self._served):
            scope.cancel()

    def cut_off_those_shut_out(self) -> None:
        """Who was let in may not be any more."""
        for scope, asker in tuple(self._served.items()):
            if self.gate.shuts_out(asker.source):
                scope.cancel()

    def note(self, entry: RequestEntry) -> None:
        self.count = entry.number
        self.log.append(entry)
        for tell in self.watchers.values():
            tell(entry)

    def watch(self, name: str, tell: Callable[[RequestEntry], None] | None) -> None:
        """Have `tell` hear of requests for `name`, one of the exposures here; None: no longer."""
        if tell is None:
            self.watchers.pop(name, None)
        else:
            self.watchers[name] = tell


class Sites:
    """By host, and the path prefix that is longest. A host `*.example.com` stands for every one label before it; what
    is exposed under a name itself goes before that, by TLS as by HTTP."""

    def __init__(self, own_hosts: Iterable[str] = ()) -> None:
        """`own_hosts`: the server's own names, which no wildcard may take from it: nodes find it by them."""
        self._own_hosts = frozenset(host.lower() for host in own_hosts)
        self._hosts: dict[str, list[tuple[str, Site]]] = {}
        self._tls: dict[str, Site] = {}

    def add(self, host: str, prefix: str, site: Site) -> None:
        """`prefix` begins and ends with "/"."""
        sites = [*self._hosts.get(host, ()), (prefix, site)]
        self._hosts[host] = sorted(sites, key=lambda each: -len(each[0]))

    def add_tls(self, host: str, site: Site) -> None:
        """All that comes for this host by TLS."""
        self._tls[host] = site

    def remove(self, site: Site) -> None:
        self._tls = {host: each for host, each in self._tls.items() if each is not site}
        for host, sites in tuple(self._hosts.items()):
            left = [each for each in sites if each[1] is not site]
            if left:
                self._hosts[host] = left
            else:
                del self._hosts[host]

    def exposes(self, host: str) -> bool:
        """By HTTP."""
        return any(name in self._hosts for name in self._names(host))

    def find_tls(self, host: str) -> Site | None:
        """Where a user goes as he comes who asks for this host by TLS; None: nowhere, or TLS is ended to see what he
        wants by HTTP."""
        for name in self._names(host):
            if name in self._tls or name in self._hosts:
                return self._tls.get(name)
        return None

    def ended_here(self, host: str) -> str | None:
        """The exposed name that this one belongs to, if TLS for it is ended here."""
        for name in self._names(host):
            if name in self._tls:
                return name if self._tls[name].gate.terms.tls_end == "server" else None
            if name in self._hosts:
                return name
        return None

    def all_ended_here(self) -> Iterable[str]:
        yield from self._hosts
        yield from (name for name, site in self._tls.items() if site.gate.terms.tls_end == "server")

    def find(self, host: str, path: str) -> Site | None:
        for name in self._names(host):
            for prefix, site in self._hosts.get(name, ()):
                if path.startswith(prefix) or path == prefix[:-1]:
                    return site
        return None

    def _names(self, host: str) -> tuple[str, ...]:
        """Under which it may be exposed, the one that counts most first."""
        return () if host in self._own_hosts else (host, f"*.{host.partition('.')[2]}")
