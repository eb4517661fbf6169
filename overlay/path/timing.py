"""Every number of path selection, with its unit and its reason. Nothing else."""

from overlay.path.types import PathKind

# --- life and death of the path in use --------------------------------------------------------------------------------

ACTIVE = 45.0
"""s after the last packet of data, either way, in which a pair counts as active. After it a pair is silent: short
enough that pairs which only met once cost nothing, long enough that a person who reads a page finds the path still
proven."""

HEARTBEAT = 3.0
"""s between pings on the path in use while the pair is active and sends nothing. Keeps the NATs' mappings (the worst
last 30 s) and notices a dead path before the next packet needs it."""

TRUST = 6.5
"""s for which a pong proves a path. Two heartbeats and the answer to the second: one lost ping proves nothing."""

LIVENESS = 0.25
"""s between pings on the path in use while data goes out. Only the answer to a ping proves our own direction: data that
comes in does not, where a cut is one-way. With `PATIENCE`, a cut is noticed after 0.95 s at the latest."""

LIVENESS_RATE = 400.0
"""Such pings per second, of all peers together: up to a hundred that talk at once are each asked as often as that, more
ever more rarely, down to `HEARTBEAT`. Ping and pong cost a node some four times what a small packet does."""

RETRY = 0.1
"""s between pings once an answer is overdue: a path with loss gets several chances within `PATIENCE` (with one datagram
in ten lost each way, about five pings in a row would have to fail)."""

PATIENCE = 0.7
"""s after the first of the pings without answer when the path is left. Paths slower than 0.35 s get two round trips."""

MIN_UNANSWERED = 3
"""Pings without answer that it takes, besides: after a pause of our own process time has passed, but nobody was
asked."""

# --- looking for paths ------------------------------------------------------------------------------------------------

PROBE_PAUSES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""s after the 1st, 2nd, … unanswered ping to a candidate until the next. The first few survive loss and the handshake
of a firewall on the other side; then it asks ever more seldom, as most candidates never answer."""

LOOK_AGAIN = 60.0
"""s between pings to candidates that answered and are not in use: a better path is found within a minute."""

GOOD_ENOUGH = 0.005
"""s of round trip on a LAN path below which nothing better is looked for."""

PING_LIFE = 5.0
"""s in which a pong may answer its ping. No usable path is slower."""

MIN_INTERVAL = 1.0
"""s between two pings to one candidate because the peer pinged us from there: pings can be replayed, ours must not
pile up."""

PROBE_RATE = 4.0
PROBE_BURST = 16.0
"""Pings per second, and at once, to candidates of one peer (the path in use not counted). Enough to try all advertised
candidates at once at the start; bounds what a replayer can make us send anywhere."""

CUE_PAUSES = (2.0, 4.0, 8.0, 8.0, 8.0, 16.0, 30.0, 60.0)
"""s after the 1st, 2nd, … call-me to a peer until the next, while data flows and no direct path carries it. The first
calls survive loss and a NAT that is slow; later ones find what has changed meanwhile, on either side."""

CUE_AGAIN = 8.0
"""s between call-mes at most where a direct path has worked within `RECENTLY`: what was cut is direct again within 10 s
of being possible, and a call is 300 bytes."""

RECENTLY = 600.0
"""s for which a path that worked is worth asking more often than one that never did."""

RETRY_WORKED = 5.0
"""s between pings at most, to a candidate that worked within `RECENTLY`."""

CALLED = 4.0
"""s for which a call of the peer has us ask its endpoints, though no data flows on our side: knocking takes two."""

UDP_PATIENCE = 2.0
"""s after the first call until TCP is tried as well: five rounds of pings, with the worst of round trips."""

UNPROVEN_PINGS = 16
UNPROVEN_SPAN = 600.0
UNPROVEN_PAUSE = 20.0
"""Pings that an endpoint without any answer gets within so many s; after them one in `UNPROVEN_PAUSE` s. Who offers a
third party's endpoint, over and over, makes us send it no more than that: 2 KB, then six bytes a second."""

MAX_ASKED = 256
"""Endpoints without an answer, of one peer, whose pings are remembered."""

NODE_RATE = 80.0
NODE_BURST = 20.0
"""Pings per second, and at once, to candidates of all peers together (the paths in use not counted): in no second more
than 100."""

CROWDED = (0.2, 1.0)
"""s, from and to: how much later the pings of a peer go that this budget had no room for; scattered, lest all come at
once."""

# --- choosing ---------------------------------------------------------------------------------------------------------

RANK: dict[PathKind, int] = {"lan": 0, "udp": 1, "tcp": 2, "relay": 3}
"""Lower is better. A kind always beats the next one: it costs the relay nothing and gives away less."""

BETTER_RATIO = 0.8
BETTER_BY = 0.002
"""Within one kind a path replaces another only if its round trip is 20 % *and* 2 ms shorter: round trips vary by as
much from ping to ping, and every change can reorder packets."""

REST = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""s for which a path that was left is not tried again, for the 1st, 2nd, … time: a link that comes and goes must not
take the traffic with it each time. The first is short, as most cuts are single (a radio changes its cell)."""

STABLE = 60.0
"""s of service after which a path's earlier falls are forgotten."""

# --- bounds -----------------------------------------------------------------------------------------------------------

MAX_ADVERTISED = 16
"""Candidates from the network map per peer: a machine with more interfaces than this shows its first ones."""

MAX_OFFERED = 16
"""Candidates that a peer's call may bring."""

MAX_LEARNED = 8
"""Candidates per peer that were learnt from its pings and packets. A peer behind one NAT needs one or two."""

LEARNED_LIFE = 45.0
"""s that a learnt candidate is kept without a sign of the peer from there: as long as an active pair's silence may
last."""
