"""WireGuard's session, sans-I/O: handshake, cookies, key pairs, timers, replay window, allowed addresses.

Wire-compatible with any WireGuard (whitepaper: Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", cited
as "paper §"). Nothing here knows sockets, clocks, threads or the record layer: `now` is an argument, randomness is
injected, and what a peer sends ends as an event, a reply or a named drop.

    constants    every number, with its reason          primitives   hash, mac, kdf, dh, aead
    messages     types 1, 2, 3 as values                transport    type 4 header and padding
    handshake    Noise IKpsk2, as steps                 cookie       mac1, mac2, cookie replies
    replay       window over counters                   keypair      transport keys and their slots
    timers       one session's deadlines                tai64n       timestamps that only grow
    session      everything between us and one peer     device       all peers: who is this message for?
    events       what a session asks of the engine      allowedips   address -> peer
    indextable   receiver indices                       ratelimiter  load, and handshakes per source
"""
