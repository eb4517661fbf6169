"""WireGuard's numbers: value, unit, place in the paper, and why. Pure data; imports nothing."""

from typing import Final

# Limits of a key pair (paper §6.1, §6.2) -----------------------------------------------------------------------------

REKEY_AFTER_MESSAGES: Final = 2**60
"""Messages sent with one key before a new one is asked for: long before the counter could run out."""

REPLAY_WINDOW: Final = 8128
"""Counters behind the newest one that are still told apart: 127 words of 64 bits, as all WireGuards have it."""

REJECT_AFTER_MESSAGES: Final = 2**64 - REPLAY_WINDOW - 64 - 1
"""A counter from here on is neither sent nor taken: 2**64 − 2**13 − 1, so that window arithmetic never wraps."""

REKEY_AFTER_TIME: Final = 120.0
"""s; the initiator of a key asks for the next one when it sends and the key is this old. Only the initiator, so that
both ends do not start at once."""

REJECT_AFTER_TIME: Final = 180.0
"""s; an older key neither seals nor opens."""

ZERO_KEY_MATERIAL_TIME: Final = 3 * REJECT_AFTER_TIME
"""s since the last key was derived, after which all secrets of a session are forgotten (paper §6.3)."""

# Handshakes (paper §6.4) ---------------------------------------------------------------------------------------------

REKEY_TIMEOUT: Final = 5.0
"""s between two handshake messages of ours to one peer, whatever asks for them."""

REKEY_TIMEOUT_JITTER: Final = 0.333
"""s; retries are spread over this, so that two ends that collide once do not collide for ever."""

REKEY_ATTEMPT_TIME: Final = 90.0
"""s of retrying before a handshake is given up."""

MAX_HANDSHAKE_ATTEMPTS: Final = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
"""Retries are counted, not timed, as the kernel does it: 18."""

INITIATION_INTERVAL: Final = 0.020
"""s; initiations of one peer that come closer together are a flood (50 per second, paper §5.1 by way of TAI64N)."""

# Keepalives (paper §6.5) ---------------------------------------------------------------------------------------------

KEEPALIVE_TIMEOUT: Final = 10.0
"""s; who received data and has had nothing to send since, sends an empty packet."""

NEW_HANDSHAKE_TIME: Final = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
"""s; who sent data and heard nothing at all since, starts a new handshake."""

LAST_MINUTE_TIME: Final = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
"""s; an initiator that only receives renews a key of this age: one passive keepalive and one retry before it dies."""

# Denial of service (paper §5.3, §5.4.4, §5.4.7) ----------------------------------------------------------------------

COOKIE_SECRET_TIME: Final = 120.0
"""s; the secret behind the cookies that we hand out is replaced when it is this old."""

COOKIE_TIME: Final = COOKIE_SECRET_TIME - REKEY_TIMEOUT
"""s; a cookie that we were given is used this long: one retry less than its maker keeps the secret."""

LOAD_HANDSHAKES: Final = 128
"""Handshake messages with a right mac1 within `LOAD_WINDOW` that mean load. Each costs about 0.3 ms of curve
arithmetic, so this is some 4 % of a core; a cookie costs the other side a retry of 5 s, so it must not be lower."""

LOAD_WINDOW: Final = 1.0
"""s; over which handshakes are counted, and for which load lasts once it was seen."""

RATE_PER_SOURCE: Final = 20.0
"""Handshakes per second and source address under load, and …"""

RATE_BURST: Final = 5
"""… how many of them at once."""

RATE_TABLE_SIZE: Final = 8192
"""Sources remembered at most; a source that finds the table full is refused. Bounds memory under attack."""

# Packets -------------------------------------------------------------------------------------------------------------

PADDING: Final = 16
"""Inner packets are padded with zeros to a multiple of this many bytes (paper §5.4.6)."""

TAG_SIZE: Final = 16
"""Bytes of a Poly1305 tag."""

HANDSHAKE_TOS: Final = 0x88
"""IP traffic class of handshake messages: AF41 without ECN, so that they get through a full link."""
