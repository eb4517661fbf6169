"""One port of ours, mapped by one gateway with NAT-PMP or PCP: found, made, renewed, made anew, removed. No I/O.

The caller sends what `datagrams_to_send` gives to the gateway's port, and hands over what comes from the gateway's
address alone, the multicast announcements to 224.0.0.1 among it. NAT-PMP is preferred where both answer: it is the one
that routers do right; where it grants nothing, PCP is asked. Time is an argument, in seconds.
"""

import math
from ipaddress import IPv4Address
from typing import Literal

from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint
from overlay.wire.portmap import LIFETIME, nat_pmp, pcp

PROBE = 0.25
"""s in which a gateway of the own network answers, if it ever does."""
RETRY = 0.25
"""s before the first repetition; each further one waits twice as long (RFC 6886 §3.1)."""
LONGEST_RETRY = 64.0  # s (RFC 6886 §3.1)
TRIES = 5
"""Requests without an answer before a gateway that has mapped nothing yet is given up."""
LONGEST_REFUSAL = 3600.0
"""s: no gateway keeps us from asking again for longer."""
SOONEST_RENEWAL = 4.0
"""s: no gateway makes us ask more often, whatever lifetime it grants."""

State = Literal["probing", "mapping", "mapped", "none", "refused", "removed"]
Protocol = Literal["nat-pmp", "pcp"]


class Client:
    """`own`: our address in the gateway's network. `nonce`: 12 random bytes, the mapping's as long as it lives."""

    def __init__(self, own: IPv4Address, transport: nat_pmp.Transport, port: int, nonce: bytes, now: float) -> None:
        self.state: State = "probing"
        self.protocol: Protocol | None = None
        self.retry_after = 0.0
        """s for which a gateway that refused wants to be left alone; 0: it does not say."""
        self._own, self._transport, self._port, self._nonce = own, transport, port, nonce
        self._address: IPv4Address | None = None
        self._external_port = 0
        self._expires = -math.inf
        self._epochs: dict[Protocol, tuple[int, float]] = {}
        self._pcp_seen = False
        self._refused = False
        self._tries = 0
        self._timer = now + PROBE
        self._out = [nat_pmp.external_address_request(), pcp.announce_request(own)]

    @property
    def mapped(self) -> Endpoint | None:
        """Where the gateway says that the port is to be reached; whether that is so from outside, it cannot know."""
        if self.state != "mapped" or self._address is None:
            return None
        return (str(self._address), self._external_port)

    def datagrams_to_send(self) -> list[bytes]:
        """What the gateway is to be sent now."""
        out, self._out = self._out, []
        return out

    def next_timeout(self) -> float:
        """When `handle_timeout` is due; infinity: never."""
        return self._timer

    def handle_timeout(self, now: float) -> None:
        """To be called at `next_timeout`, or later."""
        if now < self._timer:
            return
        if self.state == "probing":
            if not self._pcp_seen:
                self._stop("none")
                return
            self.protocol = "pcp"
            self._ask(now)
        elif self.state == "mapped" and now >= self._expires:
            self._give_up(now)
        elif self.state == "mapping" and self._tries >= TRIES:
            self._give_up(now)
        else:
            self._request(now)

    def receive_datagram(self, data: bytes, now: float) -> None:
        """What came from the gateway. Raises `RemoteProtocolError`, those of both protocols' `parse_response`."""
        if self.state in ("none", "refused", "removed"):
            return
        if data[:1] == bytes((pcp.VERSION,)):
            self._receive_pcp(pcp.parse_response(data), now)
        else:
            self._receive_nat_pmp(nat_pmp.parse_response(data), now)

    def remove(self) -> None:
        """Take the mapping away, with one datagram: nobody waits for the answer of a gateway that is left."""
        if self.protocol == "nat-pmp":
            self._out = [nat_pmp.removal_request(self._transport, self._port)]
        elif self.protocol == "pcp":
            self._out = [pcp.map_request(self._own, self._nonce, self._transport, self._port, lifetime=0)]
        self._stop("removed")

    def _receive_nat_pmp(self, response: nat_pmp.Response, now: float) -> None:
        if self.protocol == "pcp":
            return
        if isinstance(response, nat_pmp.Refused):
            if self.protocol is not None and response.transport == self._transport:
                self._take_refusal(0.0, now)
        elif isinstance(response, nat_pmp.ExternalAddress):
            self._address = response.address
            lost = self._take_epoch("nat-pmp", response.epoch, now)
            if self.protocol is None or lost:
                self.protocol = "nat-pmp"
                self._ask(now)
        elif self.protocol is None or response.transport != self._transport or response.internal_port != self._port:
            raise RemoteProtocolError("portmap_unasked")
        else:
            self._take_epoch("nat-pmp", response.epoch, now)
            self._take_mapping(response.external_port, response.lifetime, now)

    def _receive_pcp(self, response: pcp.Response, now: float) -> None:
        if isinstance(response, pcp.Announced):
            self._pcp_seen = True
            # A gateway that speaks both has one table for both, and may tell of its start by one alone.
            if self._take_epoch("pcp", response.epoch, now) and self.protocol is not None:
                self._ask(now)
        elif isinstance(response, pcp.Refused) and response.nonce is None:
            # No answer to MAP: to ANNOUNCE, which not every PCP server knows.
            self._pcp_seen |= response.result != pcp.Result.UNSUPP_VERSION
        elif self.protocol != "pcp" or response.nonce != self._nonce:
            raise RemoteProtocolError("portmap_unasked")
        elif isinstance(response, pcp.Refused):
            self._take_refusal(min(response.lifetime, LONGEST_REFUSAL), now)
        elif response.transport != self._transport or response.internal_port != self._port:
            raise RemoteProtocolError("portmap_unasked")
        elif isinstance(response.external_address, IPv4Address):
            self._take_epoch("pcp", response.epoch, now)
            self._address = response.external_address
            self._take_mapping(response.external_port, response.lifetime, now)

    def _take_epoch(self, protocol: Protocol, epoch: int, now: float) -> bool:
        before = self._epochs.get(protocol)
        self._epochs[protocol] = (epoch, now)
        return before is not None and pcp.epoch_lost(*before, epoch, now)

    def _take_mapping(self, external_port: int, lifetime: int, now: float) -> None:
        if not lifetime:
            self._take_refusal(0.0, now)
            return
        granted = min(lifetime, LIFETIME)
        self.state, self._external_port, self._tries, self._refused = "mapped", external_port, 0, False
        self._timer = now + max(granted / 2, SOONEST_RENEWAL)
        self._expires = max(now + granted, self._timer)

    def _take_refusal(self, wait: float, now: float) -> None:
        self._refused, self.retry_after = True, wait
        if self.state == "mapped":
            self._timer = self._expires  # what was granted before stands until then
        else:
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        if self.protocol == "nat-pmp" and self._pcp_seen:
            self.protocol = "pcp"
            self._ask(now)
        else:
            self._stop("refused" if self._refused else "none")

    def _ask(self, now: float) -> None:
        """A mapping that is not there (any more): the one lost is wished for again."""
        self.state, self._tries = "mapping", 0
        self._request(now)

    def _request(self, now: float) -> None:
        if self.protocol == "pcp":
            wish = self._address or IPv4Address(0)
            self._out.append(
                pcp.map_request(
                    self._own,
                    self._nonce,
                    self._transport,
                    self._port,
                    external_port=self._external_port,
                    external_address=wish,
                    lifetime=LIFETIME,
                )
            )
        else:
            wish_port = self._external_port or self._port
            self._out.append(nat_pmp.mapping_request(self._transport, self._port, wish_port, LIFETIME))
        self._timer = now + min(RETRY * 2**self._tries, LONGEST_RETRY)
        if self.state == "mapped":
            self._timer = max(now + RETRY, min(self._timer, self._expires))
        self._tries = min(self._tries + 1, 16)

    def _stop(self, state: State) -> None:
        self.state, self._timer = state, math.inf
