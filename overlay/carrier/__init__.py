"""What links a node to the server, and users to targets: real sockets, under anyio.

`tcp` dials and serves the control channel; `forward` and `flows` carry users' traffic. What the bytes of the control
channel mean, and how they are sealed, is known to `overlay.wire.control` alone.
"""
