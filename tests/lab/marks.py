"""What routers do to, and see of, the traffic class: nftables rules for the lab's tests."""

import json
from collections.abc import Mapping

from tests.lab.netns import Namespace

TUNNEL = "udp dport 41641"
"""Our datagrams, in the lab where every engine has that port."""


class Watch:
    """Counts packets by rule (`hook`: of the namespace where they are counted) until the namespace goes."""

    def __init__(self, namespace: Namespace, hook: str, **rules: str) -> None:
        self.namespace = namespace
        self.table = f"overlay_lab_watch_{hook}"
        counters = "\n".join(f"counter {name} {{ }}" for name in rules)
        lines = "\n".join(f"{rule} counter name {name}" for name, rule in rules.items())
        namespace.rules(
            f"""
            table inet {self.table} {{
                {counters}
                chain watch {{
                    type filter hook {hook} priority 100; policy accept;
                    {lines}
                }}
            }}
            """
        )

    def packets(self) -> Mapping[str, int]:
        """By the rules' names."""
        said = self.namespace.run(["nft", "-j", "list", "counters", "table", "inet", self.table]).stdout
        entries = (entry["counter"] for entry in json.loads(said)["nftables"] if "counter" in entry)
        return {entry["name"]: int(entry["packets"]) for entry in entries}


def ecn_of(what: str, ipv6: bool = False) -> dict[str, str]:
    """Rules for `Watch`: `what` by its ECN field."""
    family = "ip6" if ipv6 else "ip"
    fields = {"none": "not-ect", "ect0": "ect0", "ect1": "ect1", "ce": "ce"}
    return {name: f"{what} {family} ecn {field}" for name, field in fields.items()}


def congest(namespace: Namespace, hook: str, rule: str = TUNNEL) -> None:
    """A router that marks: ECN-capable packets that match `rule` become CE."""
    _mark(namespace, hook, [f"{rule} {family} ecn {{ ect0, ect1 }} {family} ecn set ce" for family in ("ip", "ip6")])


def congest_wrongly(namespace: Namespace, hook: str, rule: str = TUNNEL) -> None:
    """A broken router: all become CE, those too whose senders do not understand it."""
    _mark(namespace, hook, [f"{rule} {family} ecn set ce" for family in ("ip", "ip6")])


def _mark(namespace: Namespace, hook: str, rules: list[str]) -> None:
    lines = "\n".join(rules)
    namespace.rules(
        f"""
        table inet overlay_lab_marks {{
            chain marks {{
                type filter hook {hook} priority -200; policy accept;
                {lines}
            }}
        }}
        """
    )
