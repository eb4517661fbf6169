"""Hypothesis strategies of control messages and network maps."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from overlay.wire.control.messages import MapNode, MapRecord, NetworkMap
from overlay.wire.endpoint import format_endpoint

names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
addresses = st.one_of(
    st.integers(1, 2**32 - 1).map(lambda number: str(IPv4Address(number))),
    st.integers(1, 2**128 - 1).map(lambda number: str(IPv6Address(number))),
)
endpoints = st.builds(lambda address, port: format_endpoint((address, port)), addresses, st.integers(1, 65535))


def nodes(number: int) -> st.SearchStrategy[MapNode]:
    """A node of this number; its key follows from the number, as keys are unique in a map."""
    return st.builds(
        MapNode,
        number=st.just(number),
        name=names,
        key=st.just(number.to_bytes(32, "big")),
        addresses=st.lists(addresses, max_size=2).map(tuple),
        lan=st.lists(endpoints, max_size=2).map(tuple),
        observed=st.lists(endpoints, max_size=2).map(tuple),
        online=st.booleans(),
        tags=st.lists(names, max_size=2).map(tuple),
    )


records = st.one_of(
    st.builds(MapRecord, name=names, rtype=st.just("TXT"), value=names, node=st.integers(1, 3)),
    st.builds(MapRecord, name=names.map("*.{}".format), rtype=st.just("CNAME"), value=names, node=st.integers(1, 3)),
)


def maps(version: int) -> st.SearchStrategy[NetworkMap]:
    """Maps of one network, of up to five of the same eight nodes, in any order."""
    chosen = st.lists(st.integers(1, 8), unique=True, max_size=5)
    members = chosen.flatmap(lambda numbers: st.tuples(*map(nodes, numbers)))
    return st.builds(
        NetworkMap,
        network=st.just("6f76"),
        version=st.just(version),
        domain=st.just("local.test"),
        networks=st.just(("10.77.0.0/16", "fd00::/48")),
        nodes=members,
        records=st.lists(records, max_size=4, unique_by=lambda record: (record.name, record.rtype, record.value)).map(
            tuple
        ),
    )
