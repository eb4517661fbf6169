"""A captured packet's document as one line, in tcpdump's way. Knows the documents of `decode`; looks into no packet."""

import time
from typing import Any

Document = dict[str, Any]

_OPTIONS = {"NOP": "nop", "EOL": "eol", "MSS": "mss", "WScale": "wscale", "SAckOK": "sackOK"}


def line(document: Document) -> str:
    """`12:34:56.789012 overlay0 Out IP a.443 > b.5000: Flags [P.], seq 1:10, ack 1, win 512, length 9`"""
    clock = time.strftime("%H:%M:%S", time.localtime(document["time"]))
    micros = int(document["time"] * 1e6) % 1_000_000
    direction = "Out" if document["direction"] == "out" else "In "
    head = f"{clock}.{micros:06d} {document['interface']} {direction}"
    if "source" not in document:
        return f"{head} malformed: {document.get('malformed', 'no address')}, length {document['length']}"
    return f"{head} {_addresses(document)}: {', '.join(_said(document))}"


def _addresses(document: Document) -> str:
    source = document.get("source_name") or document["source"]
    destination = document.get("destination_name") or document["destination"]
    if "source_port" in document:
        source, destination = f"{source}.{document['source_port']}", f"{destination}.{document['destination_port']}"
    return f"{'IP' if document['version'] == 4 else 'IP6'} {source} > {destination}"


def _said(document: Document) -> list[str]:
    if "message" in document:
        said = [_message(document["message"])]
    elif "flags" in document:
        said = _tcp(document)
    else:
        said = [_other(document)]
    if "fragment_offset" in document:
        said.append(f"frag {document['fragment_offset']}{'+' if document['more_fragments'] else ''}")
    if "malformed" in document:
        said.append(f"malformed: {document['malformed']}")
    said.append(f"length {document.get('payload', document['length'])}")
    if "segment" in document:
        said.append(f"superpacket of {document['segment']}")
    if "checksum" in document:
        said.append(f"checksum {document['checksum']}")
    if "captured" in document:
        said.append(f"cut to {document['captured']}")
    return said


def _tcp(document: Document) -> list[str]:
    said = [f"Flags [{document['flags']}]"]
    seq, payload = document["seq"], document["payload"]
    if payload:
        said.append(f"seq {seq}:{(seq + payload) % 2**32}")
    elif set(document["flags"]) & set("SFR"):
        said.append(f"seq {seq}")
    if "." in document["flags"]:
        said.append(f"ack {document['ack']}")
    said.append(f"win {document['window']}")
    if document["options"]:
        said.append(f"options [{','.join(_option(*each) for each in document['options'])}]")
    return said


def _option(name: str, *values: Any) -> str:
    if name == "Timestamp" and len(values) == 2:
        return f"TS val {values[0]} ecr {values[1]}"
    if name == "SAck":
        pairs = zip(values[::2], values[1::2], strict=False)
        return f"sack {len(values) // 2} {''.join(f'{{{start}:{end}}}' for start, end in pairs)}"
    return " ".join([_OPTIONS.get(name, name), *map(str, values)])


def _other(document: Document) -> str:
    said = str(document["protocol"]).upper().replace("ICMPV6", "ICMP6")
    if "info" in document:
        said += f" {document['info']}"
    if "seq" in document:
        said += f", id {document['id']}, seq {document['seq']}"
    return said


def _message(message: Document) -> str:
    if message["name"] == "unknown":
        return f"unknown message type {message['type']}"
    said = [message["name"]]
    if "fragments" in message:
        said = [f"{message['name']} {message['fragment'] + 1}/{message['fragments']}"]
    said += [
        f"{word} {message[key]:#010x}"
        for key, word in (("sender_index", "sender"), ("receiver_index", "receiver"))
        if key in message
    ]
    if "counter" in message:
        said.append(f"counter {message['counter']}")
    if "node" in message:
        said.append(_node(message["node"], message["node_name"]))
    if "sender" in message:
        said.append(f"from {_node(message['sender'], message['sender_name'])}")
    if "malformed" in message:
        said.append(message["malformed"])
    if "carries" in message:
        return f"{', '.join(said)}: {_message(message['carries'])}"
    return ", ".join(said)


def _node(number: int, name: str | None) -> str:
    return f"node {number}" if name is None else f"node {number} ({name})"
