"""The server daemon: registry, admission of nodes, network map, exposures and their ingress. It never sees a packet."""
