"""The network's names: answers for the zone, forwarding of all else, and the system's resolver pointed here.

Knows DNS and the system's resolver configuration; knows nothing of tunnels.
"""
