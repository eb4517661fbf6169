"""What NetworkManager does with the system's names. org.freedesktop.NetworkManager.DnsManager(5).

It is asked, and told nothing. Since 1.26.6 it leaves out links that it does not manage, so that it cannot be told of
our resolver; and what can be set for all links (`GlobalDnsConfiguration`) hides their own name servers and outlives
a kill and a reboot, which must leave the names as they were. So where it has systemd-resolved, that is told; where
it writes the file, the file is taken over, and again after it.
"""

from typing import Final

from jeepney import DBusAddress, Properties

from overlay_dns.osconfig.bus import Bus

NAME: Final = "org.freedesktop.NetworkManager"
_DNS: Final = DBusAddress(
    "/org/freedesktop/NetworkManager/DnsManager", bus_name=NAME, interface="org.freedesktop.NetworkManager.DnsManager"
)


def dns_mode(bus: Bus) -> str:
    """Mode and rc-manager (NetworkManager.conf(5)) as they are now, "dnsmasq, symlink", say; "" if it says nothing."""
    try:
        values = [bus.call(Properties(_DNS).get(name))[0][1] for name in ("Mode", "RcManager")]
    except OSError:
        return ""
    return ", ".join(str(value)[:40] for value in values)
