"""The header of relayed datagrams. A relay forwards by node number what it cannot read; the ticket says who may."""

from overlay.wire.relay.header import (
    MAX_TICKET,
    RELAY_HEADER_SIZE,
    RELAY_TYPE,
    RelayHeader,
    blank_tickets,
    pack_header,
    pack_header_into,
    parse_header,
    tickets_equal,
)
from overlay.wire.relay.runs import header_runs, rewrite

__all__ = [
    "MAX_TICKET",
    "RELAY_HEADER_SIZE",
    "RELAY_TYPE",
    "RelayHeader",
    "blank_tickets",
    "header_runs",
    "pack_header",
    "pack_header_into",
    "parse_header",
    "rewrite",
    "tickets_equal",
]
