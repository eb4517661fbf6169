"""What every daemon of ours has: a state folder, a local API, a way to be started and to say that it is ready."""
