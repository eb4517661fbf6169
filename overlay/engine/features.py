"""What the kernel can do for us. A value, and the words for it in the snapshot; probing is done where each is used.

The set that one wishes for goes in, the set that was found comes out: a test asks for less to see a fall-back work, and
so does a person whose kernel has a bug in one of them (`OVERLAY_DISABLE=udp_gso`).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Features:
    """One flag per kernel feature that we can do without."""

    tun_vnet: bool = True  # IFF_VNET_HDR in little-endian: packets carry offload fields
    tun_csum: bool = True  # TUN_F_CSUM: packets come with checksums left to complete
    tun_tso: bool = True  # TUN_F_TSO4 | TUN_F_TSO6: TCP superpackets
    tun_uso: bool = True  # TUN_F_USO4 | TUN_F_USO6 (Linux 6.2): UDP superpackets
    udp_gso: bool = True  # UDP_SEGMENT (Linux 4.18)
    udp_gro: bool = True  # UDP_GRO (Linux 5.0)
    udp_buffers: bool = True  # SO_RCVBUFFORCE, SO_SNDBUFFORCE: needs CAP_NET_ADMIN
    udp_ipv6: bool = True
    udp_msghdr: bool = True  # records are sent on message headers made once; without, through `socket.sendmsg`

    def without(self, names: Iterable[str]) -> Self:
        """The same, less `names`. Raises `ValueError` for a name that is none."""
        wrong = set(names) - {field.name for field in fields(self)}
        if wrong:
            raise ValueError(f"no kernel feature has the name {', '.join(sorted(wrong))}")
        return replace(self, **dict.fromkeys(names, False))

    def as_dict(self) -> dict[str, bool]:
        return asdict(self)


ALL = Features()
