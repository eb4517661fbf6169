"""The deadlines of one session, in `now` seconds; `NEVER` when not armed. What they mean is the session's business.

| deadline             | armed by                                    | cancelled by                        |
|----------------------|---------------------------------------------|-------------------------------------|
| retransmit_handshake | our initiation                              | handshake complete                  |
| send_keepalive       | data received, if not armed                 | any authenticated packet sent       |
| new_handshake        | data sent, if not armed                     | any authenticated packet received   |
| persistent_keepalive | any authenticated packet, either way        | switched off                        |
| reject_keypair       | a key pair's birth: the oldest's end        | no key pair left                    |
| zero_key_material    | a key pair's birth; giving up, if not armed | (armed anew)                        |
"""

from math import inf
from typing import Final

NEVER: Final = inf


class Timers:
    """Plain attributes: `data_sent` and `data_received` touch them once per batch of packets."""

    __slots__ = (
        "new_handshake",
        "persistent_keepalive",
        "reject_keypair",
        "retransmit_handshake",
        "send_keepalive",
        "zero_key_material",
    )

    def __init__(self) -> None:
        self.cancel_all()

    def cancel_all(self) -> None:
        """Disarm everything."""
        self.retransmit_handshake = NEVER
        self.send_keepalive = NEVER
        self.new_handshake = NEVER
        self.persistent_keepalive = NEVER
        self.reject_keypair = NEVER
        self.zero_key_material = NEVER

    def next(self) -> float | None:
        """The nearest deadline, None if there is none."""
        nearest = min(
            self.retransmit_handshake,
            self.send_keepalive,
            self.new_handshake,
            self.persistent_keepalive,
            self.reject_keypair,
            self.zero_key_material,
        )
        return None if nearest == NEVER else nearest
