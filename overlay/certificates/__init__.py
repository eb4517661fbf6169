"""Certificates of servers and of nodes that end TLS: made, read, ordered from an authority by ACME, and kept."""
