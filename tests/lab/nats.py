"""Home routers of every behaviour, made of nftables: what RFC 4787 has names for, as far as Linux can be made to do it.

    router, node = lab.namespace("nat"), lab.namespace("a")     # eth0 of the router is its way out
    home(lab, router, "192.168.1", [(node, "10")], "symmetric")
    set_nat(router, "full-cone", hairpinning=True)              # another one, at once; flows of before are forgotten
    with udp_blocked(router): …

`router` may stand behind another one: give that one's `home` the router as a node, and the two are a carrier-grade NAT
with a home NAT behind it.

A Linux NAT keeps ports where it can, and maps and filters by connection. So `port-restricted` is a plain masquerade, in
effect endpoint-independent mapping as long as ports do not collide; `symmetric` draws a port for each connection. For
the others the router remembers which machine inside uses which port, and lets in what comes to that port from anybody
(`full-cone`) or from addresses that it was sent to from (`address-restricted`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from pyroute2 import NFCTSocket

from overlay.path.nat import Dependence
from tests.lab.gates import only
from tests.lab.netns import Lab, Namespace

NatKind = Literal["full-cone", "address-restricted", "port-restricted", "symmetric"]

NAT_KINDS: Final[tuple[NatKind, ...]] = ("full-cone", "address-restricted", "port-restricted", "symmetric")

MAPPING: Final[dict[NatKind, Dependence]] = {
    "full-cone": "endpoint-independent",
    "address-restricted": "endpoint-independent",
    "port-restricted": "endpoint-independent",
    "symmetric": "address-and-port-dependent",
}
FILTERING: Final[dict[NatKind, Dependence]] = {
    "full-cone": "endpoint-independent",
    "address-restricted": "address-dependent",
    "port-restricted": "address-and-port-dependent",
    "symmetric": "address-and-port-dependent",
}
"""What each is in the words of RFC 4787: what the program must find."""

_TABLE: Final = "inet overlay_lab_home"
_MEMORY: Final = "5m"  # that the router remembers a port: RFC 4787 REQ-5
_PROTOCOLS: Final = ("udp", "tcp")


def home(
    lab: Lab,
    router: Namespace,
    inside: str,
    nodes: Sequence[tuple[Namespace, str]],
    kind: NatKind,
    *,
    outside: str = "eth0",
    hairpinning: bool = False,
) -> None:
    """A switch with `nodes` (namespace, host part of its address in `inside`/24) on `router`, which is host 1 and their
    way out by IPv4, and does NAT. `outside`: the router's interface to the world, which has its address already."""
    lab.bridge(router, [f"{inside}.1/24"], [(node, f"{inside}.{host}/24") for node, host in nodes])
    for node, _ in nodes:
        node.route("default", f"{inside}.1")
    router.forward()
    # What goes from one machine inside to another by the outside address is routed, not bridged: a switch does not send
    # back to where it came from.
    with contextlib.suppress(FileNotFoundError):
        router.set("net.bridge.bridge-nf-call-iptables", 0)
    set_nat(router, kind, outside=outside, hairpinning=hairpinning)


def set_nat(router: Namespace, kind: NatKind, *, outside: str = "eth0", hairpinning: bool = False) -> None:
    """Make the router's NAT be of this kind from now on, and as if it had just started.

    `hairpinning`: what a machine inside sends to the router's outside address comes back in, from the outside address
    and port of its sender. Not for `symmetric`.
    """
    if hairpinning and kind == "symmetric":
        raise ValueError("a NAT with random ports does not know whose a port is")
    remembers = hairpinning or kind in ("full-cone", "address-restricted")
    parts = [
        *(_memory() if remembers else ()),
        _forward(outside, kind, hairpinning, remembers),
        f"chain input {{ type filter hook input priority filter; iifname {outside} ct state new drop; }}",
        *([_prerouting(outside, kind, hairpinning)] if remembers else ()),
        _postrouting(outside, kind, hairpinning),
    ]
    rules = "\n".join(parts)
    router.rules(f"table {_TABLE} {{}}\ndelete table {_TABLE}\ntable {_TABLE} {{\n{rules}\n}}\n")
    forget_flows(router)


def forget_flows(router: Namespace) -> None:
    """As a reboot would: no connection of before is known any more, nor its mapping."""
    with router.enter(), NFCTSocket() as tracker:
        tracker.flush()


@contextlib.contextmanager
def udp_blocked(router: Namespace) -> Iterator[None]:
    """Nothing leaves its home by UDP but questions for names."""
    with only(router, "meta l4proto != udp", "udp dport 53"):
        yield


@contextlib.contextmanager
def only_tcp_443(router: Namespace) -> Iterator[None]:
    """Nothing leaves its home but TCP to port 443, and questions for names."""
    with only(router, "tcp dport 443", "udp dport 53"):
        yield


def _memory() -> Iterator[str]:
    """Who inside has which port, and whom he has sent to."""
    for protocol in _PROTOCOLS:
        yield f"map {protocol}_owner {{ type inet_service : ipv4_addr; flags dynamic,timeout; timeout {_MEMORY}; }}"
        yield f"set {protocol}_sent {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout {_MEMORY}; }}"


def _forward(outside: str, kind: NatKind, hairpinning: bool, remembers: bool) -> str:
    rules = ["type filter hook forward priority filter; policy accept;"]
    if remembers:
        rules += [
            f"iifname != {outside} ct status ! dnat meta l4proto {protocol}"
            f" update @{protocol}_owner {{ {protocol} sport : ip saddr }}"
            f" update @{protocol}_sent {{ ip daddr . {protocol} sport }}"
            for protocol in _PROTOCOLS
        ]
    rules.append(f"iifname {outside} ct status dnat accept")  # also what somebody inside had mapped
    rules.append(f"iifname {outside} ct state new drop")
    return _chain("forward", rules)


def _prerouting(outside: str, kind: NatKind, hairpinning: bool) -> str:
    rules = ["type nat hook prerouting priority dstnat; policy accept;"]
    for protocol in _PROTOCOLS:
        owner = f"dnat ip to {protocol} dport map @{protocol}_owner"
        if kind == "full-cone":
            rules.append(f"iifname {outside} meta l4proto {protocol} {owner}")
        elif kind == "address-restricted":
            rules.append(f"iifname {outside} ip saddr . {protocol} dport @{protocol}_sent {owner}")
        if hairpinning:
            rules.append(f"iifname != {outside} fib daddr type local {protocol} dport 1024-65535 {owner}")
    return _chain("prerouting", rules)


def _postrouting(outside: str, kind: NatKind, hairpinning: bool) -> str:
    rules = ["type nat hook postrouting priority srcnat; policy accept;"]
    rules.append(f"oifname {outside} masquerade{' random,fully-random' if kind == 'symmetric' else ''}")
    if hairpinning:
        # From the outside address, as RFC 4787 REQ-9 has it: it is the one that the packet was for.
        rules.append(f"oifname != {outside} ct status dnat snat ip to ct original ip daddr")
    return _chain("postrouting", rules)


def _chain(name: str, rules: Sequence[str]) -> str:
    return f"chain {name} {{\n" + "\n".join(rules) + "\n}"
