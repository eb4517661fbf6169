"""The control channel between node and server, sans-I/O.

`channel` makes any byte stream a mutually authenticated one, `codec` turns its messages into those of `messages` and
back, `netmap` signs network maps and tells their differences, `invite` is the string that brings a node in.
"""
