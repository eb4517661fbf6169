"""One module per group of commands: they parse, ask a daemon, and show; each imports what it needs when it runs."""
