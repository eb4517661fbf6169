"""The kernel's TCP in a namespace: a switch and a counter for the lab's tests."""

from tests.lab.netns import Namespace


def set_timestamps(*namespaces: Namespace, on: bool) -> None:
    """Whether TCP, over IPv6 too, sends time stamps, and so has options in every segment (RFC 7323)."""
    for namespace in namespaces:
        namespace.run(["sysctl", "-q", "-w", f"net.ipv4.tcp_timestamps={int(on)}"])


def tcp_errors(namespace: Namespace) -> int:
    """Segments that were dropped for what is wrong in them: checksum, length, data offset (RFC 4022, tcpInErrs)."""
    lines = namespace.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["InErrs"])
